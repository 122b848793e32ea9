"""The results of scripts/gpu_bench.py as Markdown tables."""

from __future__ import annotations

import statistics

from .gpu_cases import (DIRECTIONS, MODELS, OUR_WAYS, PEAK_FLOPS, STEPS, THEIR_WAYS, TINY_MODEL, TINY_STEPS, AttentionShape, Case,
                        attention_shapes, op_cases, spread, step_key)
from .report import table
from .shapes import step_flops

BASELINES = {"forward": ("flash", "cuDNN", "efficient", "math"), "backward": ("flash, deterministic", "cuDNN", "efficient", "math")}


def microseconds(seconds: float) -> str:
    return f"{1e6 * seconds:,.1f}"


def measured(cells: dict, key: str) -> list[float] | None:
    return cells.get(key, {}).get("seconds")


def with_spread(seconds: list[float]) -> str:
    middle, low, high = spread(seconds)
    return f"{microseconds(middle)} ({microseconds(low)} to {microseconds(high)})"


def op_rows(cells: dict, cases: list[Case]) -> list[list[str]]:
    rows = []
    for case in cases:
        seconds = measured(cells, case.key)
        if not seconds:
            if case.key in cells:
                rows.append([case.label, "", microseconds(case.floor), cells[case.key]["error"], "", ""])
            continue
        median = spread(seconds)[0]
        reached = f"{case.flops / median / 1e12:.0f} TFLOP/s" if case.flops else f"{case.bytes / median / 1e12:.2f} TB/s"
        cost = f"{case.bytes / 1e6:,.1f} MB" + (f", {case.flops / 1e9:,.1f} GFLOP" if case.flops else "")
        rows.append([case.label, cost, microseconds(case.floor), with_spread(seconds), f"{case.floor / median:.0%}", reached])
    return rows


def attention_rows(cells: dict, shapes: list[AttentionShape], direction: str) -> list[list[str]]:
    """Ours three ways, the cost of the constant in softmax1, PyTorch's ways, and ours against the best of what it is fair to be
    compared with: in the backward, only what is deterministic as ours is, or does not say (cuDNN, efficient)."""
    rows = []
    for shape in shapes:
        def of(side: str, way: str) -> list[float] | None:
            return measured(cells, f"attention/{shape.name}/{direction}/{side}, {way}")
        ours = {way: of("ours", way) for way in OUR_WAYS}
        theirs = {way: of("PyTorch", way) for way in (*THEIR_WAYS, "math")}
        if not any(ours.values()) and not any(theirs.values()):
            continue
        row = [shape.name, with_spread(ours["softmax1"]) if ours["softmax1"] else "-"]
        median = spread(ours["softmax1"])[0] if ours["softmax1"] else None
        row.append(f"{shape.flops(direction) / median / 1e12:.0f}" if median else "-")
        row += [microseconds(spread(ours[way])[0]) if ours[way] else "-" for way in ("vanilla", "softmax1, dropout")]
        row.append(f"{median / spread(ours['vanilla'])[0] - 1:+.1%}" if median and ours["vanilla"] else "-")
        row += [microseconds(spread(theirs[way])[0]) if theirs[way] else "-" for way in THEIR_WAYS]
        best = min((spread(theirs[way])[0] for way in BASELINES[direction] if theirs[way]), default=None)
        row.append(f"{best / median:.2f}x" if best and median else "-")
        rows.append(row)
    return rows


def step_rows(cells: dict, device: str, shapes: tuple) -> list[list[str]]:
    peak = next((flops for name, flops in PEAK_FLOPS.items() if name in device), None)
    rows = []
    for shape in shapes:
        ours = {way: measured(cells, step_key(shape, f"ours, {way}")) for way in ("softmax1", "vanilla")}
        theirs = cells.get(step_key(shape, "PyTorch"), {})
        if not any(ours.values()) and not theirs.get("seconds"):
            continue
        speed = {way: shape.tokens / statistics.median(seconds) if seconds else None for way, seconds in ours.items()}
        their_speed = shape.tokens / statistics.median(theirs["seconds"]) if theirs.get("seconds") else None
        def number(value: float | None) -> str:
            return f"{value:,.0f}" if value else "-"
        mine = speed["softmax1"]
        share = f"{step_flops(shape) * mine / shape.tokens / peak:.1%}" if mine and peak else "-"
        cost = f"{speed['vanilla'] / mine - 1:+.1%}" if mine and speed["vanilla"] else "-"
        rows.append([f"{shape.name}, {shape.B} x {shape.T}", number(mine), number(speed["vanilla"]), cost, share, number(their_speed),
                     theirs.get("variant", "-"), f"{mine / their_speed:.2f}x" if mine and their_speed else "-",
                     f"{number(shape.target)}: {'met' if mine >= shape.target else 'missed'}" if shape.target and mine else "-"])
    return rows


def markdown(results: dict) -> str:
    cells, device = results["cells"], results["device"]
    parts = [f"On {device}."]
    if results["tiny"]:
        parts.append("**A trial (`--tiny`): shapes of no interest, no measurement.**")
    for model in (TINY_MODEL,) if results["tiny"] else MODELS:
        if rows := op_rows(cells, op_cases(model)):
            parts += [f"### Ops, bf16, {model.name}, {model.B} x {model.T}", "Microseconds: the floor of docs/kernels.md, and the median "
                      "with its quartiles.", table(["op", "moved, multiplied", "floor", "measured", "floor / measured", "reached"], rows)]
    for direction in DIRECTIONS:
        if rows := attention_rows(cells, attention_shapes(results["tiny"]), direction):
            parts += [f"### Attention, {direction}, bf16, 16 k tokens, 1536 channels", "Microseconds (median, quartiles) and TFLOP/s of "
                      "ours, then of PyTorch; the ratio is the best of its "
                      + ("backends" if direction == "forward" else "deterministic flash, cuDNN and efficient backends") + " over ours.",
                      table(["shape", "softmax1", "TFLOP/s", "vanilla", "softmax1, dropout 0.1", "cost of softmax1", *THEIR_WAYS, "ratio"],
                            rows)]
    if rows := step_rows(cells, device, TINY_STEPS if results["tiny"] else STEPS):
        parts += ["### Whole steps, bf16, tokens a second",
                  table(["model, batch", "softmax1", "vanilla", "cost of softmax1", "MFU", "PyTorch", "its variant", "ratio", "aim"], rows)]
    if failed := {key: cell["error"] for key, cell in cells.items() if "error" in cell}:
        parts += ["### Not measured", table(["what", "why"], [[key, error] for key, error in failed.items()])]
    return "\n\n".join(parts) + "\n"
