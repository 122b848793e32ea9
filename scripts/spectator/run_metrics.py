"""Reads a run's metrics.jsonl, also while it is being written."""

import dataclasses
import json
import math
import pathlib
import re

TRAINING = ("loss", "learning_rate", "gradient_norm", "tokens_per_second")
EVALUATION = ("validation_loss", "validation_perplexity", "max_inf_norm", "average_kurtosis")


def complete_lines(data):
    """The objects of the complete lines of `data` (bytes), and how many bytes those lines are. A last line without its end is
    still being written; a line that is no object with a step is passed over."""
    end = data.rfind(b"\n") + 1
    objects = []
    for line in data[:end].splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            objects.append(entry)
    return objects, end


def number(value):
    """A finite number, or None."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def split_site(site):
    """(what, layer) of a module's name: ("output.dense", 3) of "bert.encoder.layer.3.output.dense"; a layer of None is none."""
    match = re.search(r"\.(\d+)(?:\.(.+))?$", site)
    return (match.group(2) or "layer output", int(match.group(1))) if match else (site, None)


def scalars(entry):
    """(name, value) of each number worth a curve in an object; a skipped step has none but its gradient norm."""
    names = TRAINING + EVALUATION if not entry.get("skipped") else ("gradient_norm",)
    for name in names:
        if (value := number(entry.get(name))) is not None:
            yield name, value
    sites = entry.get("outliers")
    for site, norm in sites.items() if isinstance(sites, dict) else ():
        if (value := number(norm)) is not None:
            yield f"outliers/{site}", value


def mark(entry):
    """(kind, text) of an object that tells of an incident, else None."""
    if entry.get("skipped"):
        samples = entry.get("samples")
        return "skipped", "skipped" + (f", samples {samples[0]} to {samples[1]}" if isinstance(samples, list) and
                                       len(samples) == 2 else "")
    if "checkpoint_error" in entry:
        return "checkpoint", f"step {entry.get('checkpoint_step', entry['step'])} was not saved: {entry['checkpoint_error']}"
    if entry.get("resumed"):
        return "resumed", "resumed"
    return None


@dataclasses.dataclass
class Run:
    name: str
    curves: dict  # name: [(step, value)]
    marks: list  # (step, kind, text)


def parse(name, data):
    run = Run(name, {}, [])
    for entry in complete_lines(data)[0]:
        for curve, value in scalars(entry):
            run.curves.setdefault(curve, []).append((entry["step"], value))
        if incident := mark(entry):
            run.marks.append((entry["step"], *incident))
    return run


def metrics_path(run):
    """The file of a run directory, or the path itself where it is a file."""
    path = pathlib.Path(run)
    return path / "metrics.jsonl" if path.is_dir() else path


def read_runs(paths):
    """The runs, named as shortly as tells them apart. OSError where one has no metrics."""
    files = [metrics_path(path) for path in paths]
    names = [file.resolve().parent.name for file in files]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    return [parse(name, file.read_bytes()) for name, file in zip(names, files)]
