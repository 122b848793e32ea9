"""One run of the acceptance: its folders and clock, the programs it starts, and what came out so far."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import time

from . import report
from .pack import Pack

RESERVE_SECONDS = 5.0  # for the last words


class Skip(Exception):
    """The stage cannot be done here, and why."""


@dataclasses.dataclass
class Outcome:
    """What a stage came to: a line, facts for results.json, and Markdown for the end of results.md."""

    summary: str
    details: dict = dataclasses.field(default_factory=dict)
    text: str = ""


class Failure(Exception):
    """The stage was done and went wrong, and how: a summary, and what an Outcome has besides."""

    def __init__(self, summary: str, details: dict | None = None, text: str = "") -> None:
        super().__init__(summary)
        self.outcome = Outcome(summary, details or {}, text)


class Unfinished(Failure):
    """The stage had too little time."""


@dataclasses.dataclass
class Command:
    """A program that has ended."""

    status: int
    seconds: float
    output: str

    def last_line(self) -> str:
        lines = [line for line in self.output.splitlines() if line.strip()]
        return lines[-1].strip() if lines else f"it printed nothing and exited with {self.status}"


@dataclasses.dataclass
class Session:
    pack: Pack
    out: pathlib.Path
    build: pathlib.Path
    seconds: float
    rehearsing: bool
    python: pathlib.Path
    gpu: str = ""                 # its name; "" where there is none
    architecture: str = "90a"     # as CMAKE_CUDA_ARCHITECTURES has it
    results: dict = dataclasses.field(default_factory=lambda: {"stages": []})
    begin: float = dataclasses.field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "logs").mkdir(exist_ok=True)
        self.work = self.build / "acceptance"
        self.work.mkdir(parents=True, exist_ok=True)

    @property
    def device(self) -> str:
        """Where the trainer's runs and the benchmarks run."""
        return "cuda" if self.gpu and not self.rehearsing else "cpu"

    def needs_gpu(self) -> None:
        if self.rehearsing:
            raise Skip("this is a rehearsal on the CPU")
        if not self.gpu:
            raise Skip("there is no GPU here")

    def needs_device(self) -> None:
        """Of stages that a rehearsal does on the CPU."""
        if not self.rehearsing:
            self.needs_gpu()

    def program(self, name: str) -> pathlib.Path:
        """A program that the build made."""
        for folder in (self.build, self.build / "tests"):
            if (folder / name).is_file():
                return folder / name
        raise Skip(f"{name} was not built")

    def left(self) -> float:
        """Seconds until everything has to be over."""
        return self.seconds - RESERVE_SECONDS - (time.monotonic() - self.begin)

    def run(self, command: list, log: str, limit: float | None = None, environment: dict[str, str] | None = None) -> Command:
        """Runs a program to its end, with its output in logs/. Unfinished when it takes more than `limit` seconds or than are
        left; whatever it started ends with it."""
        limit = min(self.left(), limit if limit is not None else self.left())
        if limit <= 1:
            raise Unfinished("no time was left")
        path = self.out / "logs" / f"{log}.log"
        begin = time.monotonic()
        with open(path, "w") as stream:
            print("$", *command, file=stream, flush=True)
            process = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
                                       env={**os.environ, **(environment or {})}, start_new_session=True)
            try:
                status = process.wait(timeout=limit)
            except BaseException as error:
                self._end(process)
                if isinstance(error, subprocess.TimeoutExpired):
                    raise Unfinished(f"{pathlib.Path(str(command[0])).name} was stopped after {limit:.0f} s") from None
                raise
        output = path.read_text(errors="replace").split("\n", 1)[1]
        return Command(status, time.monotonic() - begin, output)

    @staticmethod
    def _end(process: subprocess.Popen) -> None:
        """Asks it and all that it started to end, and ends what does not."""
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=3)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def must_run(self, command: list, log: str, limit: float | None = None) -> Command:
        done = self.run(command, log, limit)
        if done.status != 0:
            raise Failure(f"{pathlib.Path(str(command[0])).name} exited with {done.status}: {done.last_line()}")
        return done

    def tool(self, name: str, oldest: tuple[int, ...]) -> pathlib.Path | None:
        """cmake or ninja of the machine or, where that is missing or too old, of the pack."""
        found = shutil.which(name)
        if found:
            words = subprocess.run([found, "--version"], capture_output=True, text=True).stdout.split()
            numbers = next((word for word in words if word[:1].isdigit()), "0").split("-")[0]
            if tuple(int(part) for part in numbers.split(".") if part.isdigit()) >= oldest:
                return pathlib.Path(found)
        return self.pack.tool(name, self.work / "tools")

    def store(self, stage: dict) -> None:
        """Takes the result of a stage, and writes all of them: an end without warning loses nothing."""
        self.results["stages"] = [known for known in self.results["stages"] if known["name"] != stage["name"]] + [stage]
        self.results["minutes"] = (time.monotonic() - self.begin) / 60
        for name, text in (("results.json", json.dumps(self.results, indent=1) + "\n"), ("results.md", report.markdown(self.results))):
            temporary = self.out / f"{name}.new"
            temporary.write_text(text)
            temporary.replace(self.out / name)
