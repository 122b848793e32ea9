"""The shell scripts, in a copy of scripts/ where apt, the build and the programs are stand-ins that log their calls."""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

SCRIPTS = pathlib.Path(__file__).resolve().parents[2] / "scripts"


class ScriptTest(unittest.TestCase):
    """Gives each test a project root with the real scripts, and a place beside it to call them from."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name).resolve()
        self.root, self.elsewhere, self.bin = (self.folder / name for name in ("root", "some/where/else", "bin"))
        for directory in (self.root, self.elsewhere, self.bin):
            directory.mkdir(parents=True)
        shutil.copytree(SCRIPTS, self.root / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
        self.log = self.folder / "calls"

    def stand_in(self, path, body=""):
        """An executable that appends its name and arguments to the log."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'#!/usr/bin/env bash\necho "${{0##*/}} $*" >>"{self.log}"\n{body}\n')
        path.chmod(0o755)

    def call(self, script, *arguments, status=0):
        """Runs scripts/SCRIPT by a relative path from elsewhere, stand-ins first; returns standard output and error."""
        program = os.path.relpath(self.root / "scripts" / script, self.elsewhere)
        done = subprocess.run([program, *map(str, arguments)], cwd=self.elsewhere, capture_output=True, text=True,
                              stdin=subprocess.DEVNULL, env={**os.environ, "PATH": f"{self.bin}:{os.environ['PATH']}"})
        self.assertEqual(done.returncode, status, done.stdout + done.stderr)
        return done.stdout, done.stderr

    def calls(self, *beginnings):
        """The logged calls that begin with one of these words; empties the log."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.write_text("")
        return [line for line in lines if line.split()[0] in beginnings]


class Help(ScriptTest):
    def test_from_another_directory(self):
        for script in ("build.sh", "fuzz.sh", "setup.sh", "quickstart.sh", "compare_build_flags.sh", "get_corpus.sh"):
            with self.subTest(script):
                text, _ = self.call(script, "--help")
                self.assertGreater(len(text.splitlines()), 2)
                self.assertNotIn("set -euo", text)
                self.assertIn("--" if script != "build.sh" else "scripts/build.sh", text)


class GetCorpus(ScriptTest):
    def test_options(self):
        for arguments in ([], ["a", "b"], ["--alow-missing", "a"]):
            with self.subTest(arguments):
                self.call("get_corpus.sh", *arguments, status=2)


class Setup(ScriptTest):
    def test_optional_packages_that_cannot_be_had_are_asked_for_once(self):
        self.stand_in(self.bin / "dpkg-query", 'if [[ $* != *ccache* ]]; then echo installed; fi')
        self.stand_in(self.bin / "apt-get", 'if [[ $* == *ccache* ]]; then exit 100; fi')
        # The user of the tests need not be root: sudo runs what it is given.
        self.stand_in(self.bin / "sudo", 'while [[ $1 == -* ]]; do shift; done; exec "$@"')
        _, error = self.call("setup.sh")
        self.assertIn("ccache could not be installed", error)
        calls = self.calls("apt-get")
        self.assertEqual(len(calls), 2, calls)
        self.assertIn("apt-get install", calls[1])
        self.call("setup.sh")
        self.assertEqual(self.calls("apt-get"), [])
        shutil.rmtree(self.root / ".cache")
        self.call("setup.sh")
        self.assertEqual(len(self.calls("apt-get")), 2)


    def test_disassemblers_that_cannot_be_had_are_done_without(self):
        self.stand_in(self.bin / "dpkg-query", "echo installed")
        self.stand_in(self.root / ".venv/bin/python", "exit 1")
        _, error = self.call("setup.sh", "--cuda-checks")
        self.assertIn("reads no machine code", error)
        self.assertIn("requirements_cuda.txt", self.calls("python")[0])
        self.call("setup.sh", "--python", status=1)
        self.calls("python")
        self.stand_in(self.root / ".venv/bin/python")
        self.call("setup.sh", "--cuda-checks", "--python")
        self.assertEqual(len(self.calls("python")), 2)
        self.call("setup.sh", "--cuda-checks", "--python")
        self.assertEqual(self.calls("python"), [])


class Compare(ScriptTest):
    def setUp(self):
        super().setUp()
        for script in ("setup.sh", "build.sh"):
            self.stand_in(self.root / "scripts" / script)
        self.stand_in(self.root / ".venv/bin/python",
                      f'if [[ $1 != *print_comparison.py ]]; then exec {sys.executable} "$@"; fi')
        for program in ("outeffhop", "outeffhop_vanilla"):
            # eval's last argument is the file it writes.
            self.stand_in(self.root / "build" / program,
                          'if [[ $1 == eval ]]; then mkdir -p "$(dirname "${!#}")"; echo {} >"${!#}"; fi')
        self.config = self.elsewhere / "mine.json"
        self.write_config(100)

    def write_config(self, steps, validation="shards/v_*.bin"):
        self.config.write_text(f'{{"training": {{"steps": {steps}}}, // mine\n'
                               f' "data": {{"train": "shards/t_*.bin", "validation": "{validation}"}}}}')

    def trained(self, *arguments):
        """The calls of train that a comparison makes."""
        self.call("compare_build_flags.sh", "--config", "mine.json", "--out", "out", *arguments)
        return [line for line in self.calls("outeffhop", "outeffhop_vanilla") if line.split()[1] == "train"]

    def test_results_are_reused_only_for_the_same_configuration_and_shards(self):
        first = self.trained("--steps", 50)
        self.assertEqual([line.split()[0] for line in first], ["outeffhop", "outeffhop_vanilla"])
        for line in first:
            self.assertIn(f"--config {self.config} ", line)
            self.assertIn("--set data.validation=shards/v_*.bin", line)
            self.assertIn(f"--out {self.elsewhere}/out/mine_50_", line)
        self.assertEqual(self.trained("--steps", 50), [])
        self.assertEqual(len(self.trained("--steps", 60)), 2)
        self.assertEqual(len(self.trained("--steps", 50, "--train", "other/t_*.bin")), 2)
        metadata = self.root / "shards/metadata.json"
        metadata.parent.mkdir()
        metadata.write_text('{"vocab_size": 9}')
        self.assertEqual(len(self.trained("--steps", 50)), 2)
        self.write_config(101)
        self.assertEqual(len(self.trained("--steps", 50)), 2)
        self.assertEqual(self.trained("--steps", 50), [])

    def test_paths_are_seen_from_where_the_user_is(self):
        lines = self.trained("--train", "a/*.bin", "--validation", "/b/*.bin")
        for line in lines:
            self.assertIn(f"data.train={self.elsewhere}/a/*.bin ", line)
            self.assertIn("data.validation=/b/*.bin ", line)

    def test_no_validation_shards(self):
        self.write_config(100, validation="")
        _, error = self.call("compare_build_flags.sh", "--config", "mine.json", status=2)
        self.assertIn("--validation GLOB", error)
        self.assertEqual(self.calls("outeffhop", "outeffhop_vanilla"), [])


if __name__ == "__main__":
    unittest.main()
