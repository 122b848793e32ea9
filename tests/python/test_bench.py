"""scripts/bench_vs_pytorch.py: what it counts and writes, and how it pauses a run. Timings themselves are not tested."""

import json
import os
import pathlib
import struct
import sys
import tempfile
import textwrap
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
from bench import report  # noqa: E402
from bench.ours import OurRun, configuration, write_shard  # noqa: E402
from bench.shapes import SHAPES, Shape, products_input, step_flops  # noqa: E402
from bench.theirs import choose  # noqa: E402


class Flops(unittest.TestCase):
    def test_a_model_small_enough_to_count_by_hand(self):
        shape = Shape("x", "opt", hidden=2, layers=1, heads=1, ffn=8, vocabulary=10, T=3, B=1, target=1)
        # Weights of a layer: 2x6 + 2x2 + 2x8 + 8x2 = 48, three tokens; head 2x10, two tokens; 6 visible pairs of channels 2.
        self.assertEqual(step_flops(shape), 3 * 2 * (48 * 3 + 20 * 2) + 3 * 2 * 2 * 6 * 2)

    def test_bert_base_is_about_six_flops_a_weight_and_token(self):
        shape = SHAPES["bert-base"]
        weights = 12 * 12 * 768 * 768 + 0.15 * (768 * 768 + 768 * 30522)
        linear = 6 * weights * shape.tokens
        attention = 12 * 12 * shape.T * 768 * shape.tokens
        self.assertAlmostEqual(step_flops(shape) / (linear + attention), 1.0, places=3)

    def test_figures_are_those_of_the_program(self):
        """The same figures stand in tests/train/flops_test.cpp."""
        self.assertEqual({name: step_flops(shape) for name, shape in SHAPES.items()},
                         {"bert-mini": 112778717184, "bert-base": 1116932668416, "opt-mini": 405885812736,
                          "opt-125m": 1575271858176})

    def test_products_are_those_of_the_linear_layers(self):
        for line in products_input(SHAPES["opt-mini"]).splitlines():
            self.assertEqual(len([int(word) for word in line.split()]), 4)
        self.assertIn("4 4096 256 768\n", products_input(SHAPES["opt-mini"]))


class Report(unittest.TestCase):
    RESULTS = {"quick": False, "date": "2026-01-02", "machine": {"processor": "P", "threads": 2, "torch": "1", "transformers": "2",
                                                               "program": "outeffhop 0"},
               "cells": {"bert-mini/fp32": {"kind": "speed", "shape": "bert-mini", "dtype": "fp32", "ours": 3000.0, "theirs": 1000.0,
                                            "variant": "fp32, eager", "step_gflops": 60.0, "products": {"gflops_per_second": 100.0}},
                         "opt-125m/bf16": {"kind": "speed", "shape": "opt-125m", "dtype": "bf16", "ours": 120.0, "theirs": 100.0,
                                           "variant": "bf16, eager", "step_gflops": 71.0, "products": {"gflops_per_second": 100.0}},
                         "softmax/bert-mini/fp32": {"kind": "softmax", "shape": "bert-mini", "dtype": "fp32", "softmax1": 99.0,
                                                    "vanilla": 100.0, "cost": 0.0123, "low": 0.0, "high": 0.02}}}

    def test_tables(self):
        text = report.markdown(self.RESULTS)
        self.assertIn("| bert-mini, 32 x 128 | fp32 | 3,000 | 1,000 | fp32, eager | 3.00x | 2x: met |", text)
        self.assertIn("| 1.20x | 1.3x: missed |", text)
        self.assertIn("| opt-125m | bf16 | 71 | 100 | 71% | 70%: met |", text)
        self.assertIn("| +1.23% | +0.00% to +2.00% | < 1%: missed |", text)
        self.assertNotIn("--quick", text)
        self.assertIn("--quick", report.markdown(self.RESULTS | {"quick": True}))

    def test_writing_twice_keeps_the_rest_of_the_page(self):
        page = f"before\n{report.BEGIN}\nold\n{report.END}\nafter \\1\n"
        once = report.replace_between_markers(page, "new \\g<0>")
        self.assertIn("new \\g<0>", once)
        self.assertNotIn("old", once)
        self.assertTrue(once.startswith("before\n") and once.endswith("after \\1\n"))
        self.assertEqual(report.replace_between_markers(once, "new \\g<0>"), once)
        with self.assertRaises(ValueError):
            report.replace_between_markers("no markers", "x")

    def test_the_page_in_docs_has_the_markers(self):
        report.replace_between_markers((ROOT / "docs/benchmarks.md").read_text(), "")


class Choosing(unittest.TestCase):
    """With a stand-in for the worker whose steps take what a table says."""

    class Worker:
        def __init__(self, seconds):
            self.seconds, self.alive, self.made = seconds, set(), []

        def ask(self, request):
            if "make" in request:
                if self.seconds[request["make"]] is None:
                    raise RuntimeError("does not work here")
                self.alive.add(request["make"])
                self.made.append(request["make"])
            else:
                self.alive.remove(request["drop"])

        def run(self, name, steps, _):
            return [self.seconds[name]] * steps

    def test_keeps_the_fastest_alone(self):
        worker = self.Worker({"autocast, eager": 2.0, "bf16, eager": 1.5, "autocast, torch.compile": 1.0,
                              "bf16, torch.compile": 1.2})
        best, tried = choose(worker, "bf16", 1, 0, lambda _: None)
        self.assertEqual(best, "autocast, torch.compile")
        self.assertEqual(worker.alive, {best})
        self.assertEqual(len(tried), 4)

    def test_what_fails_or_is_hopeless_is_left_out(self):
        worker = self.Worker({"autocast, eager": 1.0, "bf16, eager": 9.0, "autocast, torch.compile": None})
        best, tried = choose(worker, "bf16", 1, 0, lambda _: None)
        self.assertEqual(best, "autocast, eager")
        self.assertEqual(worker.made, ["autocast, eager", "bf16, eager"])
        self.assertIsNone(tried["autocast, torch.compile"])


class Ours(unittest.TestCase):
    def test_shard(self):
        with tempfile.TemporaryDirectory() as folder:
            self.assertEqual(write_shard(folder, 30522, tokens=1000).name, "random_train_*.bin")
            content = pathlib.Path(folder, "random_train_000.bin").read_bytes()
        self.assertEqual(struct.unpack_from("<3i", content), (20240520, 1, 1000))
        tokens = struct.unpack("<1000H", content[1024:])
        self.assertTrue(1000 <= min(tokens) and max(tokens) < 30522)
        self.assertGreater(len(set(tokens)), 900)

    def test_a_run_rests_between_its_blocks(self):
        shape = SHAPES["bert-mini"]
        # A stand-in that logs a step each 10 ms for ever, with its number in place of a speed.
        program = textwrap.dedent(f"""\
            #!{sys.executable}
            import json, pathlib, sys, time
            run = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
            run.mkdir()
            with open(run / "metrics.jsonl", "w") as out:
                for step in range(1, 100000):
                    print(json.dumps({{"step": step, "tokens_per_second": {shape.tokens} / step}}), file=out, flush=True)
                    time.sleep(0.01)
            """)
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "program")
            path.write_text(program)
            path.chmod(0o755)
            config = configuration(shape, "fp32", 1, "none", "softmax1")
            with OurRun(path, config, pathlib.Path(folder, "run"), dict(os.environ)) as run:
                first = [round(t) for t in run.block(3, 0, warm_up=2)]
                self.assertGreaterEqual(len(first), 3)
                self.assertEqual(first[0], 3)
                logged = run._logged()
                import time
                time.sleep(0.1)
                self.assertLessEqual(len(run._logged()) - len(logged), 1)
                second = [round(t) for t in run.block(2, 0)]
                self.assertGreater(second[0], first[-1] + 1)
            self.assertIsNotNone(run._process.returncode)


if __name__ == "__main__":
    unittest.main()
