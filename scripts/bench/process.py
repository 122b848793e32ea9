"""A process that answers each JSON line with one of its own."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import threading
from typing import IO


class JsonProcess:
    """Computes only while asked to. What it says beside its answers goes to `log`."""

    def __init__(self, command: list, environment: dict[str, str], log: IO[str]) -> None:
        self._log = log
        self._process = subprocess.Popen([str(word) for word in command], env=environment, stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, stderr=log, text=True, bufsize=1)
        self._answers: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def ask(self, request: dict, seconds: float | None = None) -> dict:
        """The answer. RuntimeError where it is an error, and, after which the process is gone, where none came in time."""
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            pass  # the process is gone: below is said why
        try:
            line = self._answers.get(timeout=seconds)
        except queue.Empty:
            self._process.kill()
            raise RuntimeError(f"no answer within {seconds:.0f} s") from None
        if not line:
            self._answers.put("")  # for whoever asks again
            raise RuntimeError(f"the process ended while asked {request}; its output is in {self._log.name}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def alive(self) -> bool:
        return self._process.poll() is None

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        self._process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
