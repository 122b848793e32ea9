"""PyTorch's side: the process of pytorch_worker.py, and which variant of it is the fastest."""

import dataclasses
import pathlib
import statistics

from .process import JsonProcess
from .shapes import MLM_PROBABILITY

WORKER = pathlib.Path(__file__).with_name("pytorch_worker.py")
# A precision whose eager step is this much slower than the best one's is not compiled as well.
HOPELESS = 1.5


class Worker(JsonProcess):
    """A process with models of one shape, which computes only while asked to."""

    def __init__(self, python, shape, threads, environment, log, device="cpu"):
        super().__init__([python, WORKER], environment, log)
        self.versions = self.ask({"shape": dataclasses.asdict(shape), "dropout": shape.dropout, "threads": threads,
                                  "mlm_probability": MLM_PROBABILITY, "device": device})

    def run(self, name, steps, seconds):
        return self.ask({"run": name, "steps": steps, "seconds": seconds})["seconds"]


def choose(worker, dtype, trial_steps, trial_seconds, say):
    """Tries the variants and keeps the fastest in the worker. Returns its name and the median seconds of all tried (null for
    one that failed)."""
    precisions = ["fp32"] if dtype == "fp32" else ["autocast", "bf16"]
    tried, best = {}, None

    def attempt(precision, compiled):
        nonlocal best
        name = f"{precision}, {'torch.compile' if compiled else 'eager'}"
        try:
            worker.ask({"make": name, "precision": precision, "compile": compiled})
            first = worker.run(name, 1, 0)[0]  # compiles, allocates
            if compiled:
                worker.run(name, 1, 0)
            tried[name] = statistics.median(worker.run(name, trial_steps, trial_seconds))
            say(f"    {name}: {tried[name]:.3f} s a step (the first took {first:.1f} s)")
        except RuntimeError as error:
            tried[name] = None
            say(f"    {name}: {str(error).splitlines()[0]}")
            return
        loser = name
        if best is None or tried[name] < tried[best]:
            loser, best = best, name
        if loser:
            worker.ask({"drop": loser})

    for precision in precisions:
        attempt(precision, False)
    eager = {p: tried[f"{p}, eager"] for p in precisions}
    fastest = min((t for t in eager.values() if t), default=None)
    for precision in precisions:
        if eager[precision] and eager[precision] <= HOPELESS * fastest:
            attempt(precision, True)
    if best is None:
        raise RuntimeError("no variant of PyTorch's step works here")
    return best, tried
