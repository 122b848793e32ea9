#!/usr/bin/env python3
"""Times ops, attention and whole training steps on a GPU, beside their floors and beside PyTorch on the same GPU.

    gpu_bench.py --build build-gpu                      everything there is time for in 9 minutes
    gpu_bench.py --build build-gpu --only attention     one part; parts are ops, attention, steps
    gpu_bench.py --build build --device cpu --tiny      a trial of this script where there is no GPU

Finished measurements are kept in --out/bench.json, tables in --out/bench.md, both written after each one: the same command
goes on where an earlier one was interrupted or ran out of time (--fresh forgets). Ours come before PyTorch's. What PyTorch
refuses is said and left out; without PyTorch or transformers ours are measured alone. docs/gpu/README.md has the method.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Callable, Iterator

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
from bench import gpu_report  # noqa: E402
from bench.gpu_cases import (DIRECTIONS, MODELS, OUR_WAYS, STEPS, THEIR_WAYS, TINY_MODEL, TINY_STEPS, attention_case,  # noqa: E402
                             attention_shapes, op_cases, step_key, their_ways)
from bench.ours import OurRun, configuration, write_shard  # noqa: E402
from bench.process import JsonProcess  # noqa: E402
from bench.theirs import Worker, choose  # noqa: E402

PARTS = ("ops", "attention", "steps")
SECONDS_A_CASE, SAMPLES = 0.15, 5
LONGEST_CASE = 60.0  # seconds: of one answer, what compiling takes included
LONGEST_STEP = 400.0
Measurement = tuple[str, Callable[[], dict]]  # a key, and what measures it


class OutOfTime(Exception):
    pass


class Bench:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.end = time.monotonic() + 60 * arguments.minutes
        self.out: pathlib.Path = arguments.out
        self.out.mkdir(parents=True, exist_ok=True)
        self.log = open(self.out / "bench.log", "a")
        self.environment = dict(os.environ) | {"TOKENIZERS_PARALLELISM": "false"}
        self.ops: JsonProcess | None = None
        self.torch: JsonProcess | None = None
        self.folder = tempfile.TemporaryDirectory(prefix="gpu_bench_")
        self.results = self._load()

    def _load(self) -> dict:
        path = self.out / "bench.json"
        here = {"device": describe_device(self.arguments), "tiny": self.arguments.tiny, "program": self.program_version()}
        if path.exists() and not self.arguments.fresh:
            former = json.loads(path.read_text())
            if all(former.get(name) == value for name, value in here.items()):
                return former
            print(f"{path} is of {former.get('device')}, {former.get('program')}: starting over")
        return here | {"cells": {}}

    def program_version(self) -> str:
        done = subprocess.run([self.arguments.build / "outeffhop", "--version"], capture_output=True, text=True)
        git = shutil.which("git")
        commit = git and subprocess.run([git, "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        return (done.stdout.splitlines() or ["unknown"])[0] + (f" at {commit}" if commit else "")

    def left(self) -> float:
        return self.end - time.monotonic()

    def store(self) -> None:
        for name, text in (("bench.json", json.dumps(self.results, indent=1) + "\n"), ("bench.md", gpu_report.markdown(self.results))):
            temporary = self.out / f"{name}.new"
            temporary.write_text(text)
            temporary.replace(self.out / name)

    def measure(self, key: str, work: Callable[[], dict]) -> None:
        """Keeps what `work` measures; an error of it is kept as what came out."""
        former = self.results["cells"].get(key)
        if former and "error" not in former:
            return
        if self.left() < 2:
            raise OutOfTime
        try:
            cell = work()
        except RuntimeError as error:
            cell = {"error": str(error).splitlines()[0]}
        self.results["cells"][key] = cell
        self.store()
        said = cell.get("error") or f"{1e6 * sorted(cell['seconds'])[len(cell['seconds']) // 2]:,.1f} us"
        print(f"  {key}: {said}", flush=True)

    # What measures.

    def our_op(self, op: dict) -> dict:
        if self.ops is None or not self.ops.alive():
            self.ops = JsonProcess([self.arguments.build / "bench_ops", self.arguments.device, SECONDS_A_CASE if not self.arguments.tiny
                                    else 0.001, SAMPLES], self.environment, self.log)
        return self.ops.ask(op, min(LONGEST_CASE, max(self.left(), 1)))

    def their_attention(self, request: dict) -> dict:
        if self.torch is None or not self.torch.alive():
            worker = ROOT / "scripts/bench/attention_worker.py"
            self.torch = JsonProcess([self.arguments.python, worker, self.arguments.device], self.environment, self.log)
        seconds = 0.001 if self.arguments.tiny else SECONDS_A_CASE
        return self.torch.ask(request | {"seconds": seconds, "samples": SAMPLES}, min(LONGEST_CASE, max(self.left(), 1)))

    def our_steps(self, shape, softmax: str) -> dict:
        folder = pathlib.Path(self.folder.name, f"{shape.name}_{shape.T}_{softmax}")
        shards = write_shard(pathlib.Path(self.folder.name, f"shards_{shape.vocabulary}"), shape.vocabulary)
        interval = 1 if self.arguments.tiny else 10  # steps that each logged line stands for
        config = configuration(shape, "bf16", 0, shards, softmax, logging_interval=interval)
        with OurRun(self.arguments.build / "outeffhop", config, folder, self.environment, self.arguments.device) as run:
            return {"seconds": run.block(2 if self.arguments.tiny else 8, 0 if self.arguments.tiny else 3 / interval, warm_up=1)}

    def their_steps(self, shape) -> dict:
        with Worker(self.arguments.python, shape, os.cpu_count() or 1, self.environment, self.log, self.arguments.device) as worker:
            variant, tried = choose(worker, "bf16", 3, 0.0 if self.arguments.tiny else 1.0, lambda text: print(text, flush=True))
            return {"seconds": worker.run(variant, 5, 0.0 if self.arguments.tiny else 3.0), "variant": variant, "tried": tried}

    # What there is to measure, the most wanted first.

    def op_measurements(self) -> Iterator[Measurement]:
        for model in (TINY_MODEL,) if self.arguments.tiny else MODELS:
            for case in op_cases(model):
                yield case.key, lambda case=case: self.our_op(case.op)

    def our_attention_measurements(self) -> Iterator[Measurement]:
        for way in OUR_WAYS:
            for shape in attention_shapes(self.arguments.tiny):
                for direction in DIRECTIONS:
                    case = attention_case(shape, direction, way)
                    yield case.key, lambda case=case: self.our_op(case.op)

    def their_attention_measurements(self) -> Iterator[Measurement]:
        if not has_module(self.arguments.python, "torch"):
            print("  PyTorch is not there")
            return
        for way in ("math",) if self.arguments.tiny else THEIR_WAYS:
            backend, n, dropout, deterministic = THEIR_WAYS.get(way, (way, 0, 0.0, False))
            for shape in attention_shapes(self.arguments.tiny):
                for direction in DIRECTIONS:
                    if way not in their_ways(shape, direction, self.arguments.tiny):
                        continue
                    request = {"B": shape.B, "H": shape.H, "T": shape.T, "D": shape.D, "causal": shape.causal,
                               "direction": direction, "backend": backend, "n": n, "dropout": dropout,
                               "deterministic": deterministic}
                    key = f"attention/{shape.name}/{direction}/PyTorch, {way}"
                    yield key, lambda request=request: self.their_attention(request)

    def our_step_measurements(self) -> Iterator[Measurement]:
        for shape in TINY_STEPS if self.arguments.tiny else STEPS:
            for softmax in ("softmax1", "vanilla"):
                key = step_key(shape, f"ours, {softmax}")
                yield key, lambda shape=shape, softmax=softmax: self.our_steps(shape, softmax)

    def their_step_measurements(self) -> Iterator[Measurement]:
        if not has_module(self.arguments.python, "transformers"):
            print("  transformers is not there")
            return
        for shape in TINY_STEPS if self.arguments.tiny else STEPS:
            if self.left() < (0 if self.arguments.tiny else 60):
                raise OutOfTime
            yield step_key(shape, "PyTorch"), lambda shape=shape: self.their_steps(shape)

    def run(self) -> None:
        for part, side, measurements in (
                ("ops", "ours", self.op_measurements), ("steps", "ours", self.our_step_measurements),
                ("attention", "ours", self.our_attention_measurements), ("attention", "PyTorch", self.their_attention_measurements),
                ("steps", "PyTorch", self.their_step_measurements)):
            if part not in self.arguments.only:
                continue
            print(f"{part}, {side}", flush=True)
            for key, work in measurements():
                self.measure(key, work)

    def close(self) -> None:
        for process in (self.ops, self.torch):
            if process:
                process.__exit__()
        self.folder.cleanup()
        self.log.close()


def has_module(python: pathlib.Path, name: str) -> bool:
    return subprocess.run([python, "-c", f"import {name}"], capture_output=True).returncode == 0


def describe_device(arguments: argparse.Namespace) -> str:
    if arguments.device == "cpu":
        return "the CPU"
    if not shutil.which("nvidia-smi"):
        return "an unknown GPU"
    done = subprocess.run(["nvidia-smi", "--query-gpu=name,driver_version,clocks.max.sm", "--format=csv,noheader"], capture_output=True,
                          text=True)
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else "an unknown GPU"


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, required=True, metavar="DIR", help="where outeffhop and bench_ops were built")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: cuda")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "runs/gpu_bench", metavar="DIR", help="default: runs/gpu_bench")
    parser.add_argument("--minutes", type=float, default=9.0, help="begin no measurement after these; default: 9")
    parser.add_argument("--only", metavar="PART,...", help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--python", type=pathlib.Path, default=pathlib.Path(sys.executable), help="a Python that has PyTorch; default: this")
    parser.add_argument("--fresh", action="store_true", help="forget finished measurements")
    parser.add_argument("--tiny", action="store_true", help="shapes of no interest, for a trial of the script")
    arguments = parser.parse_args(argv)
    arguments.only = arguments.only.split(",") if arguments.only else list(PARTS)
    for part in arguments.only:
        if part not in PARTS:
            parser.error(f'--only: there is no part "{part}"; there are {", ".join(PARTS)}')
    for program in ("outeffhop", "bench_ops"):
        if not (arguments.build / program).exists():
            parser.error(f"--build: {arguments.build} has no {program}: build the targets outeffhop and bench_ops there")
    arguments.build = arguments.build.resolve()
    return arguments


def main(argv: list[str] | None = None) -> None:
    arguments = parse(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    bench = Bench(arguments)
    try:
        bench.run()
    except OutOfTime:
        print("out of time: the same command goes on with what is left")
    except KeyboardInterrupt:
        print("interrupted: the same command goes on with what is left")
    finally:
        bench.close()
    if bench.results["cells"]:
        bench.store()
        print(f"results: {bench.out / 'bench.md'}")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        sys.exit(f"gpu_bench.py: error: {error}")
