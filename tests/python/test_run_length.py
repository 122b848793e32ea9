"""scripts/run_length.py and scripts/print_comparison.py."""

import contextlib
import io
import json
import pathlib
import sys
import tempfile
import unittest
from unittest import mock

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import print_comparison  # noqa: E402
import run_length  # noqa: E402


class RunLength(unittest.TestCase):
    def test_reads_every_bundled_configuration(self):
        paths = sorted((ROOT / "configs").glob("*.json"))
        self.assertTrue(paths)
        for path in paths:
            with self.subTest(path.name):
                self.assertIn("model", run_length.read_config(path))

    def test_comments_and_strings(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "config.json")
            path.write_text('{"a": "//no comment \\" /*", // a "comment"\n /* one\n more */ "b": [1, 2]}  // end')
            self.assertEqual(run_length.read_config(path), {"a": '//no comment " /*', "b": [1, 2]})

    def test_scales_the_warm_up_down_but_not_up(self):
        config = {"training": {"steps": 1000}, "schedule": {"warmup_steps": 100}}
        self.assertEqual(run_length.length(config, steps=200), (200, 20))
        self.assertEqual(run_length.length(config, steps=4000), (4000, 100))
        self.assertEqual(run_length.length(config, share=0.5), (500, 50))
        self.assertEqual(run_length.length(config, share=1e-9), (1, 0))
        self.assertEqual(run_length.length({}, steps=10), (10, 0))

    def test_ratios(self):
        self.assertEqual(run_length.positive_ratio("2.5/5"), 0.5)
        self.assertEqual(run_length.positive_ratio("0.4"), 0.4)
        for text in ("", "x/5", "0/5", "-1/5", "nan/5", "inf"):
            with self.subTest(text), self.assertRaises(ValueError):
                run_length.positive_ratio(text)


class Comparison(unittest.TestCase):
    def run_directory(self, folder, name, loss, attn_softmax):
        run = pathlib.Path(folder, name)
        run.mkdir()
        config = {"model": {"attn_softmax": attn_softmax}, "training": {"seed": 7}}
        (run / "config.json").write_text(json.dumps(config))
        lines = [{"step": s, "loss": loss + 1 / s, "tokens_per_second": 100.0 * s} for s in range(1, 21)]
        lines.insert(5, {"step": 5, "validation_loss": 3.0, "validation_perplexity": 20.0})
        lines.append({"step": 21, "loss": None, "tokens_per_second": 1.0, "skipped": True})
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (run / "evaluation.json").write_text(json.dumps({"loss": loss, "perplexity": 9.5, "outliers": {"max_inf_norm": 12.5}}))
        return run

    def test_figures(self):
        with tempfile.TemporaryDirectory() as folder:
            figures = print_comparison.figures(self.run_directory(folder, "a", 2.0, "softmax1"))
        self.assertEqual(figures["attn_softmax"], "softmax1")
        self.assertEqual(figures["steps"], 20)
        self.assertAlmostEqual(figures["training loss (mean of the last 2 logged)"], 2.0 + (1 / 19 + 1 / 20) / 2)
        self.assertEqual(figures["validation perplexity"], 9.5)
        self.assertEqual(figures["max inf norm"], 12.5)
        self.assertIsNone(figures["average kurtosis"])
        self.assertEqual(figures["tokens per second (median)"], 1150.0)

    def test_table_has_a_column_a_run(self):
        with tempfile.TemporaryDirectory() as folder:
            runs = [self.run_directory(folder, "a", 2.0, "softmax1"), self.run_directory(folder, "b", 2.5, "vanilla")]
            printed = io.StringIO()
            with mock.patch.object(sys, "argv", ["print_comparison.py", *map(str, runs)]), contextlib.redirect_stdout(printed):
                print_comparison.main()
        lines = printed.getvalue().splitlines()
        self.assertEqual(len({len(line) for line in lines}), 1)
        self.assertRegex(next(line for line in lines if line.startswith("attn_softmax")), r"softmax1\s+vanilla$")
        self.assertRegex(next(line for line in lines if line.startswith("validation loss")), r"2\.0000\s+2\.5000$")


if __name__ == "__main__":
    unittest.main()
