"""What users of an old or missing transformers are told; stand-ins take the place of PyTorch and transformers."""

import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

SCRIPTS = pathlib.Path(__file__).resolve().parents[2] / "scripts"


class TransformersVersion(unittest.TestCase):
    def said(self, version):
        """The standard error of check_transformers.py where `version` of transformers is installed."""
        with tempfile.TemporaryDirectory() as folder:
            modules = {"safetensors/__init__.py": "", "safetensors/torch.py": "", "torch/__init__.py": "",
                       "transformers/__init__.py": f"__version__ = {version!r}"}
            for name, content in modules.items():
                path = pathlib.Path(folder, name)
                path.parent.mkdir(exist_ok=True)
                path.write_text(content)
            done = subprocess.run([sys.executable, SCRIPTS / "check_transformers.py", "--help"], capture_output=True, text=True,
                                  env={**os.environ, "PYTHONPATH": folder})
        self.assertEqual(done.returncode, 1)
        self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
        return done.stderr

    def test_an_old_one_is_refused_in_one_sentence(self):
        for version in ("4.57.1", "4.9"):
            said = self.said(version)
            self.assertIn(f"transformers {version} is too old", said)
            self.assertIn("5.0 or newer", said)

    def test_a_new_one_is_not(self):
        # The stand-in has nothing to import, which is the next thing said.
        for version in ("5.0.0rc1", "5.23.0", "10.1"):
            self.assertNotIn("too old", self.said(version))


if __name__ == "__main__":
    unittest.main()
