"""scripts/gpu_bench.py: its floors, shapes and tables, and that an interrupted one goes on. Timings are not tested."""

import contextlib
import io
import json
import os
import pathlib
import re
import sys
import tempfile
import textwrap
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import gpu_bench  # noqa: E402
from bench import gpu_report  # noqa: E402
from bench.gpu_cases import (DIRECTIONS, MODELS, OUR_WAYS, STEPS, AttentionShape, attention_case, attention_shapes, head_rows,  # noqa: E402
                             op_cases, spread, step_key, their_ways)
from bench.process import JsonProcess  # noqa: E402

PAGE = (ROOT / "docs/kernels.md").read_text()


class Floors(unittest.TestCase):
    def test_letters_are_those_of_the_page(self):
        rows = re.findall(r"^\| ([A-Z]) \| .*? \| ([\d,]+) \| ([\d,]+) \|$", PAGE, flags=re.MULTILINE)
        self.assertEqual(len(rows), 7)
        for letter, *numbers in rows:
            for model, number in zip(MODELS, numbers):
                self.assertEqual(getattr(model, letter), int(number.replace(",", "")), f"{letter} of {model.name}")
        self.assertEqual(MODELS[0].M, head_rows(MODELS[0].N))

    def test_floors_are_those_of_the_page(self):
        sections = dict(zip(*[iter(re.split(r"^## (.+)$", PAGE, flags=re.MULTILINE)[1:])] * 2))
        checked = 0
        for column, model in enumerate(MODELS):
            for case in op_cases(model):
                if not case.file:
                    continue
                figures = [line.strip("|").split("|")[3 + column] for line in sections[case.file].splitlines()
                           if re.search(r"\d MB.* us \|.*\d MB.* us \|$", line)]
                floors = [float(re.search(r"([\d.,]+) us", figure).group(1).replace(",", "")) for figure in figures]
                self.assertTrue(any(abs(1e6 * case.floor - floor) < 0.051 for floor in floors),
                                f"{case.key}: {1e6 * case.floor:.1f} us is none of {floors}")
                checked += 1
        self.assertGreater(checked, 30)

    def test_attention_flops(self):
        shape = AttentionShape(B=2, H=3, T=128, D=64, causal=False)
        self.assertEqual(shape.flops("forward"), 4 * 2 * 3 * 128 * 128 * 64)
        self.assertEqual(shape.flops("backward"), 2.5 * shape.flops("forward"))
        self.assertEqual(AttentionShape(2, 3, 128, 64, True).flops("forward"), shape.flops("forward") / 2)


class Shapes(unittest.TestCase):
    def test_keys_are_unique(self):
        keys = [case.key for model in MODELS for case in op_cases(model)]
        keys += [attention_case(shape, direction, way).key for shape in attention_shapes() for direction in DIRECTIONS for way in OUR_WAYS]
        self.assertEqual(len(keys), len(set(keys)))

    def test_every_op_is_one_that_the_program_has(self):
        program = (ROOT / "tests/bench/bench_ops.cpp").read_text()
        names = set(re.findall(r'\{"(\w+)", \w+\}', program))
        self.assertGreater(len(names), 15)
        for model in MODELS:
            for case in op_cases(model):
                self.assertIn(case.op["op"], names)

    def test_attention_covers_what_was_asked(self):
        shapes = attention_shapes()
        self.assertEqual({shape.D for shape in shapes}, {64, 128})
        self.assertEqual({shape.T for shape in shapes}, {128, 256, 512, 1024, 2048, 4096})
        for shape in shapes:
            self.assertEqual((shape.B * shape.T, shape.H * shape.D), (16384, 1536))
            self.assertNotIn("flash, deterministic", their_ways(shape, "forward"))
            self.assertIn("flash, deterministic", their_ways(shape, "backward"))

    def test_spread(self):
        self.assertEqual(spread([4.0, 1.0, 3.0, 2.0, 5.0]), (3.0, 2.0, 4.0))
        self.assertEqual(spread([2.0]), (2.0, 2.0, 2.0))
        self.assertEqual(spread([1.0, 2.0]), (1.5, 1.25, 1.75))


class Report(unittest.TestCase):
    def results(self):
        shape = attention_shapes()[0]
        key = f"attention/{shape.name}/backward"
        step = STEPS[0]
        norm = next(case for case in op_cases(MODELS[0]) if case.label.startswith("layer norm forward"))
        cells = {norm.key: {"seconds": [50e-6, 67.2e-6, 90e-6]},
                 f"{key}/ours, softmax1": {"seconds": [101e-6]}, f"{key}/ours, vanilla": {"seconds": [100e-6]},
                 f"{key}/PyTorch, flash": {"seconds": [90e-6]}, f"{key}/PyTorch, flash, deterministic": {"seconds": [202e-6]},
                 f"{key}/PyTorch, cuDNN": {"error": "no kernel"},
                 step_key(step, "ours, softmax1"): {"seconds": [step.tokens / 500e3]},
                 step_key(step, "ours, vanilla"): {"seconds": [step.tokens / 505e3]},
                 step_key(step, "PyTorch"): {"seconds": [step.tokens / 250e3], "variant": "bf16, torch.compile"}}
        return {"device": "NVIDIA H100 80GB HBM3", "tiny": False, "cells": cells}

    def test_tables(self):
        text = gpu_report.markdown(self.results())
        self.assertIn("| 33.6 | 67.2 (58.6 to 78.6) | 50% | 1.50 TB/s |", text)
        self.assertIn("+1.0%", text)
        self.assertIn("| 2.00x |", text)  # of the backward: over the deterministic flash, not over the other
        self.assertIn("| 500,000 | 505,000 | +1.0% |", text)
        self.assertIn("| bf16, torch.compile | 2.00x | 400,000: met |", text)
        self.assertIn("no kernel", text)
        self.assertNotIn("--tiny", text)

    def test_nothing_measured_is_no_table(self):
        text = gpu_report.markdown({"device": "X", "tiny": True, "cells": {}})
        self.assertNotIn("|", text)


class Interrupted(unittest.TestCase):
    """With stand-ins for the programs."""

    OPS = """\
        #!{python}
        import json, sys
        count = 0
        for line in sys.stdin:
            op = json.loads(line)["op"]
            with open({log!r}, "a") as log:
                print(op, file=log)
            print(json.dumps({{"error": "no"}} if op == "cast" else {{"seconds": [1e-3, 2e-3], "repeats": 1, "copies": 1}}), flush=True)
        """

    def arguments(self, folder, *more):
        build = pathlib.Path(folder, "build")
        build.mkdir(exist_ok=True)
        for name, text in (("bench_ops", textwrap.dedent(self.OPS).format(python=sys.executable, log=str(build / "asked"))),
                           ("outeffhop", "#!/bin/sh\necho outeffhop 1\n")):
            (build / name).write_text(text)
            (build / name).chmod(0o755)
        return ["--build", str(build), "--device", "cpu", "--tiny", "--only", "ops", "--out", str(pathlib.Path(folder, "out")), *more]

    def bench(self, folder, *more):
        with contextlib.redirect_stdout(io.StringIO()):
            gpu_bench.main(self.arguments(folder, *more))

    def test_what_is_done_is_not_done_again(self):
        with tempfile.TemporaryDirectory() as folder:
            asked = pathlib.Path(folder, "build", "asked")
            self.bench(folder)
            first = asked.read_text().splitlines()
            self.assertGreater(len(first), 15)
            self.bench(folder)
            self.assertEqual(asked.read_text().splitlines()[len(first):], ["cast"])  # what failed is tried again
            cells = json.loads(pathlib.Path(folder, "out", "bench.json").read_text())["cells"]
            self.assertEqual([key for key, cell in cells.items() if "error" in cell], ["op/tiny/cast of the parameters"])
            self.assertIn("1,500.0", pathlib.Path(folder, "out", "bench.md").read_text())

    def test_no_time_is_no_measurement(self):
        with tempfile.TemporaryDirectory() as folder:
            self.bench(folder, "--minutes", "0.01")
            self.assertFalse(pathlib.Path(folder, "out", "bench.json").exists())

    def test_a_silent_process_is_given_up(self):
        command = [sys.executable, "-c", "import time; time.sleep(60)"]
        with open(os.devnull, "w") as log, JsonProcess(command, dict(os.environ), log) as process:
            with self.assertRaisesRegex(RuntimeError, "no answer within 0 s"):
                process.ask({}, 0.1)

    def test_a_process_that_ends_says_where_its_words_are(self):
        with open(os.devnull, "w") as log, JsonProcess([sys.executable, "-c", "pass"], dict(os.environ), log) as process:
            for _ in range(2):
                with self.assertRaisesRegex(RuntimeError, "its output is in /dev/null"):
                    process.ask({}, 30)


if __name__ == "__main__":
    unittest.main()
