#!/usr/bin/env python3
"""Times training steps of outeffhop beside Hugging Face transformers on PyTorch's CPU backend, in turn, on this machine.

    bench_vs_pytorch.py --prepare                      once: builds, makes the venv, lets torch.compile fill its cache
    bench_vs_pytorch.py --write docs/benchmarks.md     every cell, then the tables

Same model, batch, dtype and threads on both sides; PyTorch at the best of eager and torch.compile, bf16 also at the best of
autocast and a model wholly in bf16. Finished cells are kept in .cache/bench_pytorch/ and not done again: an interrupted
benchmark goes on with the same command. docs/benchmarks.md has the method. Nothing else should run meanwhile.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
from bench import report  # noqa: E402
from bench.ours import OurRun, configuration, write_shard  # noqa: E402
from bench.shapes import SHAPES, products_input, step_flops  # noqa: E402
from bench.theirs import Worker, choose  # noqa: E402

CACHE = ROOT / ".cache/bench_pytorch"
SPEED_CELLS = [f"{name}/{dtype}" for name in SHAPES for dtype in ("fp32", "bf16")]
SOFTMAX_CELLS = ["softmax/bert-mini/fp32", "softmax/bert-base/bf16", "softmax/opt-mini/fp32", "softmax/opt-125m/bf16"]


class Plan:
    """How much is measured. A block is some steps of one side before the other has its turn."""

    def __init__(self, quick):
        self.trial_steps, self.trial_seconds = 1, 0.0 if quick else 1.0
        self.rounds, self.block_seconds, self.our_steps = (1, 0.0, 1) if quick else (4, 2.5, 2)
        self.softmax_rounds, self.softmax_seconds = (2, 0.0) if quick else (32, 1.2)
        self.product_passes = 1 if quick else 5


def clean_environment():
    """Neither side is tuned by what the caller's shell happens to hold."""
    dropped = r"OPENBLAS_|OMP_|GOMP_|KMP_|MKL_|DNNL_|ONEDNN_|TORCH|OUTEFFHOP_|LD_PRELOAD$"
    kept = {name: value for name, value in os.environ.items() if not re.match(dropped, name)}
    return kept | {"TORCHINDUCTOR_CACHE_DIR": str(CACHE / "inductor"), "TOKENIZERS_PARALLELISM": "false"}


def say(text):
    print(text, flush=True)


def venv_python():
    """The Python of a venv with scripts/requirements_bench.txt, made where it is not there yet."""
    requirements = ROOT / "scripts/requirements_bench.txt"
    venv, stamp = CACHE / "venv", CACHE / "venv/requirements.installed"
    python = venv / "bin/python"
    if not stamp.exists() or stamp.read_text() != requirements.read_text():
        say(f"making {venv} with {', '.join(requirements.read_text().splitlines()[1:])}: some gigabytes, once")
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", requirements], check=True)
        stamp.write_text(requirements.read_text())
    return python


def processor():
    if pathlib.Path("/proc/cpuinfo").exists():
        found = re.search(r"^model name\s*:\s*(.+)$", pathlib.Path("/proc/cpuinfo").read_text(), re.M)
        if found:
            return found.group(1)
    return platform.processor() or platform.machine()


def machine(arguments):
    """What a result belongs to; another machine, program or library version starts over."""
    versions = json.loads(subprocess.run(
        [arguments.python, "-c", "import json, torch, transformers; "
         "print(json.dumps({'torch': torch.__version__, 'transformers': transformers.__version__}))"],
        check=True, capture_output=True, text=True, env=clean_environment()).stdout)
    program = subprocess.run([arguments.program, "--version"], check=True, capture_output=True, text=True).stdout
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return versions | {"processor": processor(), "threads": arguments.threads,
                       "program": program.splitlines()[0] + (f" at {commit}" if commit else "")}


def tokens_per_second(shape, seconds):
    return shape.tokens / statistics.median(seconds)


def speed_cell(shape, dtype, plan, arguments, folder):
    environment = clean_environment()
    config = configuration(shape, dtype, arguments.threads, write_shard(folder / "shards", shape.vocabulary), "softmax1")
    log = open(folder / "pytorch.log", "a+")
    with log, Worker(arguments.python, shape, arguments.threads, environment, log) as worker:
        variant, tried = choose(worker, dtype, plan.trial_steps, plan.trial_seconds, say)
        if arguments.prepare:
            return None
        ours, theirs = [], []
        with OurRun(arguments.program, config, folder / "ours", environment) as run:
            run.block(1, 0, warm_up=1)
            for _ in range(plan.rounds):
                ours += run.block(plan.our_steps, plan.block_seconds)
                theirs += worker.run(variant, 1, plan.block_seconds)
    products = json.loads(subprocess.run(
        [arguments.products, dtype, str(arguments.threads), str(plan.product_passes)], input=products_input(shape), check=True,
        capture_output=True, text=True, env=environment).stdout)
    cell = {"kind": "speed", "shape": shape.name, "dtype": dtype, "ours": tokens_per_second(shape, ours),
            "theirs": tokens_per_second(shape, theirs), "variant": variant, "tried": tried,
            "step_gflops": step_flops(shape) / statistics.median(ours) * 1e-9, "products": products,
            "our_seconds": ours, "their_seconds": theirs}
    say(f"    ours {cell['ours']:,.0f} tokens/s, theirs {cell['theirs']:,.0f}: {cell['ours'] / cell['theirs']:.2f}x; "
        f"{cell['step_gflops']:.0f} of {products['gflops_per_second']:.0f} GFLOP/s")
    return cell


def softmax_cell(shape, dtype, plan, arguments, folder):
    """Blocks of softmax1 and vanilla in pairs, their order changing from pair to pair, as a machine warms and cools."""
    environment = clean_environment()
    shards = write_shard(folder / "shards", shape.vocabulary)
    times = {"softmax1": [], "vanilla": []}
    differences = []
    with OurRun(arguments.program, configuration(shape, dtype, arguments.threads, shards, "softmax1"), folder / "softmax1",
                environment) as softmax1:
        softmax1.block(1, 0, warm_up=1)
        with OurRun(arguments.program, configuration(shape, dtype, arguments.threads, shards, "vanilla"), folder / "vanilla",
                    environment) as vanilla:
            vanilla.block(1, 0, warm_up=1)
            runs = [("softmax1", softmax1), ("vanilla", vanilla)]
            for pair in range(plan.softmax_rounds):
                medians = {}
                for name, run in runs if pair % 2 == 0 else reversed(runs):
                    block = run.block(1, plan.softmax_seconds)
                    times[name] += block
                    medians[name] = statistics.median(block)
                differences.append(medians["softmax1"] / medians["vanilla"] - 1)
    low, cost, high = statistics.quantiles(differences, n=4)
    say(f"    {cost:+.2%} ({low:+.2%} to {high:+.2%})")
    return {"kind": "softmax", "shape": shape.name, "dtype": dtype, "cost": cost, "low": low, "high": high,
            **{name: tokens_per_second(shape, seconds) for name, seconds in times.items()}}


def measure(key, plan, arguments):
    kind, shape, dtype = key.split("/") if key in SOFTMAX_CELLS else ("speed", *key.split("/"))
    with tempfile.TemporaryDirectory(prefix="bench_", dir=CACHE) as folder:
        cell = softmax_cell if kind == "softmax" else speed_cell
        return cell(SHAPES[shape], dtype, plan, arguments, pathlib.Path(folder))


def load(path, here, arguments):
    """The results so far, without those of another machine or program."""
    if path.exists() and not arguments.fresh:
        results = json.loads(path.read_text())
        if results["machine"] == here:
            return results
        say(f"{path} is of {results['machine']}: starting over")
    return {"quick": arguments.quick, "machine": here, "cells": {}}


def store(path, results):
    results["date"] = datetime.date.today().isoformat()
    order = SPEED_CELLS + SOFTMAX_CELLS
    results["cells"] = dict(sorted(results["cells"].items(), key=lambda item: order.index(item[0])))
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(results, indent=1) + "\n")
    temporary.replace(path)


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=pathlib.Path, help="a Python that has torch and transformers; default: a venv made here")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of both sides; default: all")
    parser.add_argument("--only", action="append", metavar="CELL", choices=SPEED_CELLS + SOFTMAX_CELLS,
                        help=f"some cells: {', '.join(SPEED_CELLS + SOFTMAX_CELLS)}")
    parser.add_argument("--prepare", action="store_true", help="all that a first run would do once, and no measurement")
    parser.add_argument("--quick", action="store_true", help="a trial of the script: a step or two of each; kept apart")
    parser.add_argument("--fresh", action="store_true", help="forget finished cells")
    parser.add_argument("--write", type=pathlib.Path, metavar="FILE",
                        help="put the tables between the marker comments of a Markdown file")
    parser.add_argument("--program", type=pathlib.Path, help="default: build/outeffhop, built first")
    parser.add_argument("--products", type=pathlib.Path, help="default: build/bench_products, built first")
    arguments = parser.parse_args(argv)
    if arguments.threads < 1:
        parser.error(f"--threads is {arguments.threads}, but must be at least 1")
    if arguments.write:
        report.replace_between_markers(arguments.write.read_text(), "")  # said now, not after a quarter of an hour
    return arguments


def main(argv=None):
    arguments = parse(argv)
    CACHE.mkdir(parents=True, exist_ok=True)
    targets = [name for name, given in (("outeffhop", arguments.program), ("bench_products", arguments.products)) if not given]
    if targets:
        subprocess.run([ROOT / "scripts/build.sh", *targets], check=True, stdout=subprocess.DEVNULL)
    arguments.program = (arguments.program or ROOT / "build/outeffhop").resolve()
    arguments.products = (arguments.products or ROOT / "build/bench_products").resolve()
    arguments.python = arguments.python.absolute() if arguments.python else venv_python()

    path = CACHE / ("results_quick.json" if arguments.quick else "results.json")
    results = load(path, machine(arguments), arguments)
    plan, failed = Plan(arguments.quick or arguments.prepare), []
    for key in arguments.only or (SPEED_CELLS if arguments.prepare else SPEED_CELLS + SOFTMAX_CELLS):
        if key in results["cells"] and not arguments.prepare:
            say(f"{key}: done already")
            continue
        say(f"{key}  ({datetime.datetime.now():%H:%M:%S})")
        try:
            cell = measure(key, plan, arguments)
        except (RuntimeError, subprocess.CalledProcessError) as error:
            say(f"    failed: {error}")
            failed.append(key)
            continue
        if cell:
            results["cells"][key] = cell
            store(path, results)
    if results["cells"] and not arguments.prepare:
        tables = report.markdown(results)
        say("\n" + tables + f"\n\n{path} has every step's time.")
        if arguments.write:
            arguments.write.write_text(report.replace_between_markers(arguments.write.read_text(), tables))
    if failed:
        sys.exit(f"bench_vs_pytorch.py: failed: {', '.join(failed)}; the same command tries these again")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"bench_vs_pytorch.py: {error}")
