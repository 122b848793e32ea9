"""What is done, one function a stage. A stage returns what is worth telling, or raises Skip, Failure or Unfinished; the ones
after it are done all the same."""

from __future__ import annotations

import concurrent.futures
import ctypes
import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import time
from typing import Callable

from . import ROOT, report, trials
from .session import Failure, Outcome, Session, Skip, Unfinished

OLDEST_CMAKE, OLDEST_NINJA = (3, 22), (1, 8)
TESTS = ("test_cuda", "test_cuda_ops", "test_cuda_training")
# Of tests/ops; the others have no device under test.
NOT_OF_A_DEVICE = ("softmax_vectors_test", "gradient_test", "op_harness_test", "random_test")
# Cases that reach every kind of kernel with small tensors, for tools under which a kernel takes a hundred times as long.
SANITIZED = ("attention at the edges*,causal attention*,attention with dropout", "[#layernorm_test]", "[#cross_entropy_test]",
             "[#embedding_test]", "[#linear_test]", "[#gather_test]", "[#optimizer_test]", "[#dropout_test]")


def nvidia_smi(fields: list[str]) -> list[str]:
    """Of the first GPU; empty where there is none."""
    program = shutil.which("nvidia-smi")
    if not program:
        return []
    done = subprocess.run([program, f"--query-gpu={','.join(fields)}", "--format=csv,noheader"], capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    return [cell.strip() for cell in lines[0].split(",")] if done.returncode == 0 and lines else []


def architecture_of(capability: str) -> str:
    """What CMAKE_CUDA_ARCHITECTURES calls a compute capability: "9.0" is 90a, with what only that generation has."""
    digits = capability.replace(".", "")
    if not digits.isdigit():
        raise ValueError(f'nvidia-smi names the compute capability "{capability}", expected something like 9.0')
    return digits + ("a" if int(digits) >= 90 else "")


def find_gpu(session: Session) -> None:
    found = nvidia_smi(["name", "compute_cap"])
    if len(found) == 2:
        session.gpu, session.architecture = found[0], architecture_of(found[1])


def nvcc() -> str | None:
    for folder in (None, os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"):
        found = shutil.which("nvcc") if folder is None else shutil.which("nvcc", path=f"{folder}/bin")
        if found:
            return found
    return None


def first_match(pattern: str, text: str, otherwise: str = "unknown") -> str:
    found = re.search(pattern, text)
    return found.group(1) if found else otherwise


def cublaslt_version() -> str:
    """Of the library itself, which needs no GPU to say it."""
    folders = [pathlib.Path(program).resolve().parents[1] for program in [nvcc()] if program]
    names = ["libcublasLt.so.13", "libcublasLt.so.12"]
    paths = names + [str(path) for folder in folders for name in names
                     for path in (*folder.glob(f"lib64/{name}"), *folder.glob(f"targets/*/lib/{name}"))]
    for path in paths:
        try:
            library = ctypes.CDLL(path)
        except OSError:
            continue
        library.cublasLtGetVersion.restype = ctypes.c_size_t
        number = library.cublasLtGetVersion()
        return f"{number // 10000}.{number // 100 % 100}.{number % 100}"
    return "none found"


def device(session: Session) -> Outcome:
    fields = ["name", "compute_cap", "driver_version", "memory.total", "power.limit", "clocks.max.sm", "clocks.max.memory",
              "clocks.applications.graphics", "ecc.mode.current", "persistence_mode"]
    facts: dict[str, str] = {}
    if not session.rehearsing:
        for field in fields:  # one by one: a driver refuses a question with a field that it does not know
            facts.update(dict(zip([field], nvidia_smi([field]))))
    compiler = nvcc()
    if compiler:
        text = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
        facts["CUDA Toolkit"] = first_match(r"V([\d.]+)", text)
        facts["cuBLASLt"] = cublaslt_version()
    torch = subprocess.run([session.python, "-c", "import torch; print(torch.__version__, torch.version.cuda)"], capture_output=True,
                           text=True)
    facts["PyTorch"] = torch.stdout.strip() if torch.returncode == 0 else "not there"
    facts["processors"] = str(len(os.sched_getaffinity(0)))
    git = shutil.which("git")
    commit = git and subprocess.run([git, "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    facts["checkout"] = commit or f"packed at {session.pack.manifest['commit']}"
    session.results["device"] = facts
    return Outcome(session.gpu or "no GPU was found", facts)


def configure_options(session: Session, with_cuda: bool) -> list[str]:
    options = [f"-DCMAKE_PREFIX_PATH={session.pack.prefix}", "-DOUTEFFHOP_ONEDNN=OFF", "-DOUTEFFHOP_SIMT_TESTS=OFF",
               f"-DOUTEFFHOP_CUDA={'ON' if with_cuda else 'OFF'}"]
    if with_cuda:
        options.append(f"-DCMAKE_CUDA_ARCHITECTURES={session.architecture}")
    if session.rehearsing:  # optimising takes most of the time
        options += ["-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG=-O0"]
    else:
        options.append("-DCMAKE_BUILD_TYPE=Release")
    if shutil.which("ccache"):
        options.append("-DCMAKE_CXX_COMPILER_LAUNCHER=ccache")
    return options


def build(session: Session) -> Outcome:
    cmake = session.tool("cmake", OLDEST_CMAKE)
    if cmake is None:
        raise Failure("there is no CMake 3.22 or newer, and none in the pack: pack again with network")
    ninja = session.tool("ninja", OLDEST_NINJA)
    with_cuda = nvcc() is not None and not session.rehearsing
    options = configure_options(session, with_cuda)
    if ninja:
        options = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", *options]
    configured = session.must_run([cmake, "-S", ROOT, "-B", session.build, *options], "configure")
    targets = ["outeffhop", "bench_ops"] + (list(TESTS) if with_cuda else [])
    for program in targets:  # of an earlier build: what is there afterwards is of this one
        for folder in (session.build, session.build / "tests"):
            (folder / program).unlink(missing_ok=True)
    jobs = str(len(os.sched_getaffinity(0)))
    command = [cmake, "--build", session.build, "--parallel", jobs, "--target", *targets, "--", "-k", *(["0"] if ninja else [])]
    done = session.run(command, "build")
    details = {"configure_seconds": configured.seconds, "build_seconds": done.seconds, "targets": targets, "cuda": with_cuda,
               "cmake": str(cmake), "ninja": str(ninja), "architecture": session.architecture if with_cuda else ""}
    if done.status != 0:
        errors = re.findall(r"^.*\berror\b.*$", done.output, flags=re.MULTILINE)
        raise Failure(f"not everything was built: {(errors or [done.last_line()])[0]}")
    what = f"{', '.join(targets)}"
    why = "" if with_cuda else "; without CUDA, as " + ("this is a rehearsal" if session.rehearsing else "no nvcc was found")
    return Outcome(f"{what}{f' for sm_{session.architecture}' if with_cuda else ''}{why}", details)


def catch_counts(output: str) -> tuple[int, int]:
    """(cases passed, cases failed) of a Catch2 program's last words."""
    if found := re.search(r"All tests passed \(.* in (\d+) test cases?\)", output):
        return int(found.group(1)), 0
    if found := re.search(r"test cases:\s*(\d+)\s*\|(.*)", output):
        passed = re.search(r"(\d+) passed", found.group(2))
        count = int(passed.group(1)) if passed else 0
        return count, int(found.group(1)) - count
    return 0, 0


def run_catch(session: Session, program: pathlib.Path, selections: dict[str, list[str]], workers: int) -> Outcome:
    """Runs a Catch2 program once for each selection of its cases, several at a time."""
    def one(item: tuple[str, list[str]]) -> dict:
        name, arguments = item
        begin = time.monotonic()
        try:
            done = session.run([program, *arguments], f"{program.name}_{name}")
        except Unfinished as error:
            return {"name": name, "passed": 0, "failed": 0, "note": str(error), "seconds": time.monotonic() - begin}
        passed, failed = catch_counts(done.output)
        note = "" if passed + failed and (done.status == 0) == (failed == 0) else f"exited with {done.status}: {done.last_line()}"
        return {"name": name, "passed": passed, "failed": failed + (1 if note else 0), "note": note, "seconds": done.seconds}

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        rows = list(pool.map(one, selections.items()))
    passed, failed = sum(row["passed"] for row in rows), sum(row["failed"] for row in rows)
    late = [row["name"] for row in rows if row["note"] and not row["failed"]]
    summary = f"{passed} test cases passed, {failed} failed" + (f"; not finished: {', '.join(late)}" if late else "")
    text = report.table(["tests", "passed", "failed", "seconds", ""],
                        [[row["name"], row["passed"], row["failed"], f"{row['seconds']:.1f}", row["note"]] for row in rows])
    if failed:
        where = ", ".join(row["name"] for row in rows if row["failed"])
        raise Failure(f"{summary}: {where} (logs/{program.name}_*.log)", {"tests": rows}, text)
    if late:
        raise Unfinished(summary, {"tests": rows}, text)
    return Outcome(summary, {"tests": rows}, text)


def library(session: Session) -> Outcome:
    session.needs_gpu()
    return run_catch(session, session.program("test_cuda"), {"libraries": ["-#", "[#libraries_test]"],
                                                            "cublaslt_claims": ["-#", "[#cublaslt_claims_test]"]}, 1)


def ops(session: Session) -> Outcome:
    session.needs_gpu()
    names = sorted(path.stem for path in (ROOT / "tests/ops").glob("*_test.cpp") if path.stem not in NOT_OF_A_DEVICE)
    workers = max(1, min(4, len(os.sched_getaffinity(0)) // 2))
    return run_catch(session, session.program("test_cuda_ops"), {name: ["-#", f"[#{name}]"] for name in names}, workers)


def training(session: Session) -> Outcome:
    session.needs_gpu()
    names = ("backend_test", "training_test")
    return run_catch(session, session.program("test_cuda_training"), {name: ["-#", f"[#{name}]"] for name in names}, 2)


def sanitizer(session: Session) -> Outcome:
    session.needs_gpu()
    compiler = nvcc()
    tool = shutil.which("compute-sanitizer") or (compiler and shutil.which("compute-sanitizer", path=str(pathlib.Path(compiler).parent)))
    if not tool:
        raise Skip("compute-sanitizer was not found")
    program = session.program("test_cuda_ops")
    rows, faults = [], []
    for check in ("memcheck", "racecheck"):
        for cases in SANITIZED:
            name = f"{check}_{re.sub(r'[^a-z]+', '_', cases)[:30]}"
            try:
                done = session.run([tool, "--tool", check, "--error-exitcode", "99", program, "-#", cases], name, limit=60)
            except Unfinished as error:
                rows.append([check, cases, "not finished", str(error)])
                continue
            found = first_match(r"((?:ERROR|RACECHECK) SUMMARY: .*)", done.output, done.last_line())
            passed, failed = catch_counts(done.output)
            if failed:
                found += f", {failed} test cases failed"
            fine = done.status == 0 and passed > 0 and failed == 0
            rows.append([check, cases, "fine" if fine else "FAULT", found])
            if not fine:
                faults.append(f"{check} of {cases}: {found}")
    text = report.table(["tool", "test cases", "", ""], rows)
    if faults:
        raise Failure("; ".join(faults), {"rows": rows}, text)
    if any(row[2] == "not finished" for row in rows):
        raise Unfinished(f"{sum(row[2] == 'fine' for row in rows)} of {len(rows)} finished, without a fault",
                         {"rows": rows}, text)
    return Outcome(f"memcheck and racecheck of {len(SANITIZED)} groups of op tests: no fault", {"rows": rows}, text)


def bench(session: Session) -> Outcome:
    session.needs_device()
    session.program("bench_ops")
    out = session.out / "bench"
    seconds = session.left() - 2
    command = [session.python, ROOT / "scripts/gpu_bench.py", "--device", session.device, "--build", session.build, "--out", out,
               "--minutes", f"{seconds / 60:.2f}", "--fresh"]
    if session.rehearsing:
        command.append("--tiny")
    try:
        session.must_run(command, "bench", seconds)
    finally:  # what was measured before a failure counts
        path = out / "bench.md"
        if path.exists():
            session.results["bench"] = json.loads((out / "bench.json").read_text())
    cells = session.results.get("bench", {}).get("cells", {})
    measured = sum("error" not in cell for cell in cells.values())
    if not measured:
        raise Failure("nothing could be measured: logs/bench.log")
    return Outcome(f"{measured} of {len(cells)} measurements, in bench/bench.json", {}, path.read_text())


STAGES: dict[str, Callable[[Session], Outcome]] = {
    "device": device, "build": build, "library": library, "ops": ops, "training": training, "identity": trials.identity,
    "eager": trials.eager, "resume": trials.resume, "pretraining": trials.pretraining, "sanitizer": sanitizer, "bench": bench,
}
# Stages that others should leave time for: the share of all seconds after which they are stopped.
LATEST_END = {"build": 0.45, "library": 0.55, "ops": 0.65, "training": 0.7, "identity": 0.72, "eager": 0.74, "resume": 0.76,
              "pretraining": 0.8, "sanitizer": 0.85}


def run_stages(session: Session, names: list[str]) -> int:
    """Runs the stages, in their order; 0 where none failed or ran out of time."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what is known so far is written
    find_gpu(session)
    session.results["rehearsal"] = session.rehearsing
    whole = session.seconds
    for name in STAGES:
        if name not in names and name not in ("device", "build"):
            continue
        session.seconds = whole * (LATEST_END.get(name, 1.0) if session.device == "cuda" else 1.0)
        begin = time.monotonic()
        stage: dict = {"name": name, "details": {}, "text": ""}
        try:
            outcome = STAGES[name](session)
            stage.update(dataclasses.asdict(outcome), status="passed")
        except Skip as reason:
            stage.update(status="skipped", summary=str(reason))
        except Failure as reason:
            stage.update(dataclasses.asdict(reason.outcome), status="unfinished" if isinstance(reason, Unfinished) else "failed")
        except KeyboardInterrupt:
            stage.update(status="unfinished", summary="interrupted")
        except Exception as error:  # of one stage, whatever it is: the others go on
            stage.update(status="failed", summary=f"{type(error).__name__}: {error}")
        stage["seconds"] = time.monotonic() - begin
        session.seconds = whole
        session.store(stage)
        print(f"{name:12} {stage['status']:10} {stage['seconds']:6.1f} s  {stage['summary']}", flush=True)
        if stage["summary"] == "interrupted":
            break
    print(f"results: {session.out / 'results.md'}")
    return int(any(stage["status"] in ("failed", "unfinished") for stage in session.results["stages"]))
