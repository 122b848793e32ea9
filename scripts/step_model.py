#!/usr/bin/env python3
"""A model of how long training steps take on an H100 SXM, summed from their launches: docs/performance.md.

Nothing here is measured. A step is a list of launches, each with the bytes it must move and the FLOPs it must calculate by
the formulas of docs/kernels.md; the list is held to what a step launches on the executor (scripts/step_launches.json,
written by tests/simt/step_launches_test.cpp). A launch takes the longer of both, at the rates below, and a gap.

    scripts/step_model.py                             print the tables
    scripts/step_model.py --write docs/performance.md write them into the page, between its markers
"""

import argparse
import collections
import dataclasses
import json
import math
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Rates:
    """The assumptions; docs/performance.md says where they are from."""
    memory: float = 3.0e12     # bytes/s that large copies reach
    product: float = 700e12    # FLOP/s of a large bf16 product
    product_ramp: float = 128  # a product of K summands takes as long as one of K + this without prologue and epilogue
    attention_forward: float = 280e12  # FLOP/s of mma.sync in the forward, masked parts of tiles included
    attention_backward: float = 200e12
    dropout: float = 1.25      # attention with dropout takes that much longer
    least: float = 2.0e-6      # s that the smallest kernel takes
    gap: float = 1.0e-6        # s from one launch of a graph to the next
    host: float = 0.1e-3       # s of a step that the GPU waits for the host: the decision is read back, the graph launched
    multiprocessors: int = 132


@dataclasses.dataclass(frozen=True)
class Shape:
    """A training step of one micro-batch, stored in bf16."""
    model: str
    B: int
    T: int
    labels: int
    layers: int = 12
    heads: int = 12
    head_size: int = 64
    vocabulary: int = 0
    positions: int = 0
    types: int = 0
    dropout: float = 0.1
    attention_dropout: float = 0.1

    @property
    def letters(self):
        C = self.heads * self.head_size
        return {"N": self.B * self.T, "C": C, "F": 4 * C, "V": self.vocabulary, "T": self.T, "P": self.parameters,
                "M": padded(self.labels, BUCKET)}

    @property
    def causal(self):
        return self.model == "opt"

    @property
    def parameters(self):
        C, V = self.heads * self.head_size, self.vocabulary
        layer = 12 * C * C + 13 * C  # four products of C x C, two of C x 4 C, their biases, two norms
        tables = (V + self.positions + self.types) * C
        head = 2 * C if self.causal else V + C * C + 3 * C  # the final norm; or bias, transformation and its norm
        return self.layers * layer + tables + head + (0 if self.causal else 2 * C)


@dataclasses.dataclass(frozen=True)
class Launch:
    """A kernel that a step launches `count` times, all of the same work."""
    kernel: str
    role: str
    count: int
    bytes: float = 0.0
    flops: float = 0.0
    kind: str = "memory"  # "product", "attention_forward", "attention_backward": which rate its FLOPs have
    shape: tuple = ()     # M, N, K of a product


def constant(file, name):
    """A constexpr of the sources."""
    found = re.search(rf"\b{name}\s*=\s*(?:[\w:]+\{{)?(\d+)\}}?(?:\s*<<\s*(\d+))?", (ROOT / file).read_text())
    return int(found[1]) << int(found[2] or 0)


BUCKET = constant("model/head.h", "kBucket")
ROW_ELEMENTS = constant("model/head.h", "kRowElements")
PRODUCT_ROWS = constant("model/head.h", "kProductRows")
LOGIT_BYTES = constant("kernels/device.h", "kGpuLogitBytes")


def padded(count, multiple):
    return -(-count // multiple) * multiple


def value(formula, letters):
    """Of "4 M C + 8 N": factors stand side by side."""
    assert re.fullmatch(r"[\dA-Z.+() /-]*", formula), formula
    return eval(re.sub(r"(?<=[\dA-Z)])\s+(?=[\dA-Z(])", " * ", formula), {"__builtins__": {}}, letters) if formula else 0


def head_chunks(shape):
    """Rows of the chunks that the head works in: as model/head.cpp cuts them."""
    row_bytes = 2 * padded(shape.vocabulary, ROW_ELEMENTS)
    affordable = LOGIT_BYTES // row_bytes
    step = PRODUCT_ROWS if affordable >= PRODUCT_ROWS else BUCKET
    most = min(padded(shape.B * shape.T, BUCKET), max(BUCKET, affordable // step * step))
    chunks, begin = [], 0
    each = padded(-(-shape.labels // -(-shape.labels // most)), BUCKET)
    while begin < shape.labels:
        count = min(each, shape.labels - begin)
        chunks.append(padded(count, BUCKET))
        begin += count
    return chunks


class Step:
    """Collects the launches of a shape."""

    def __init__(self, shape):
        self.shape, self.letters, self.launches = shape, shape.letters, []

    def add(self, kernel, role, count, formula, flops=0.0, kind="memory"):
        self.launches.append(Launch(kernel, role, count, value(formula, self.letters), flops, kind))

    def product(self, role, count, M, N, K, result_bytes=2, accumulates=False):
        moved = 2 * (M * K + K * N) + result_bytes * M * N * (2 if accumulates else 1)
        self.launches.append(Launch(f"product {M} x {N} x {K}", role, count, moved, 2.0 * M * N * K, "product", (M, N, K)))

    def linear_backward(self, role, count, rows, inputs, outputs, accumulates=False, bias=True):
        self.product(f"{role}, d_x", count, rows, inputs, outputs, accumulates=accumulates)
        self.product(f"{role}, d_weight", count, outputs, inputs, rows, result_bytes=4, accumulates=True)
        if bias:
            self.launches.append(Launch("bias_gradient_partial_sums", role, count, 2 * rows * outputs + 8 * outputs))
            self.launches.append(Launch("bias_gradient_add_partial_sums", role, count))

    def norm_backward(self, role, count, formula):
        self.add("layernorm_backward", role, count, formula)
        self.add("layernorm_add_groups", role, count, "4096 C")


def attention(step):
    """Forward and backward of all layers: which kernels serve is what kernels/cuda/attention_*_resident.cu say."""
    shape, (N, C, T) = step.shape, (step.letters[name] for name in "NCT")

    def product(tile):
        """FLOPs of one of the products of T x T x D, in tiles of which those that causality hides are left out."""
        tiles = -(-T // tile)
        return 2 * N * C * (tiles * tile) * ((tiles + 1) / (2 * tiles) if shape.causal else 1.0)

    forward = "attention_forward_resident" if 128 < T <= 512 else "attention_forward_tensor"
    step.add(forward, "", shape.layers, "8 N C + N C / 16", 2 * product(32), "attention_forward")
    if T <= 512:
        step.add("attention_backward_resident", "", shape.layers, "16 N C + N C / 8", 5 * product(32), "attention_backward")
        return
    step.add("attention_backward_queries_tensor", "d_q", shape.layers, "12 N C + N C / 8", 3 * product(32),
             "attention_backward")
    step.add("attention_backward_keys_tensor", "d_k and d_v", shape.layers, "12 N C + N C / 8", 4 * product(64),
             "attention_backward")


def head(step):
    """From the gathered rows of the labels to their losses and back, a chunk at a time."""
    shape, (C, V) = step.shape, (step.letters[name] for name in "CV")
    for rows in head_chunks(shape):
        letters = {**step.letters, "M": rows}
        step.letters = letters
        step.add("gather_rows", "labelled rows", 1, "4 M C + 4 M")
        if not shape.causal:
            step.product("head transform", 1, rows, C, C)
            step.add("activation_forward", "head", 1, "4 M C")
            step.add("layernorm_forward", "head", 1, "4 M C + 8 M")
        step.product("vocabulary", 1, rows, V, C)
        step.add("cross_entropy", "", 1, "4 M V + 16 M")
        step.add("add_losses", "", 1, "8 M")
        step.linear_backward("vocabulary", 1, rows, C, V, bias=not shape.causal)
        if not shape.causal:
            step.norm_backward("head", 1, "6 M C + 8 M")
            step.add("activation_backward", "head", 1, "6 M C")
            step.linear_backward("head transform", 1, rows, C, C)
    step.letters = shape.letters
    step.add("scatter_rows", "labelled rows", 1, "2 N C + 2 M C + 4 M")


def launches(shape):
    """Every launch of a step, with products as launches too."""
    step = Step(shape)
    L, causal, (N, C, F, V) = shape.layers, shape.causal, (step.letters[name] for name in "NCFV")
    step.add("embedding_forward", "", 1, "4 N C + 8 N")
    step.add("layernorm_forward", "first", 1, "4 N C + 8 N")
    step.add("layernorm_forward", "with residual", 2 * L, "8 N C + 8 N")
    step.product("query, key, value", L, N, 3 * C, C)
    attention(step)
    step.product("attention's output", L, N, C, C)
    step.product("into the MLP", L, N, F, C)
    step.add("activation_forward", "MLP", L, "4 N F")
    step.product("out of the MLP", L, N, C, F)
    head(step)
    step.norm_backward("layers", 2 * L, "10 N C + 8 N" if causal else "8 N C + 8 N")
    step.linear_backward("out of the MLP", L, N, F, C)
    step.add("activation_backward", "MLP", L, "6 N F")
    step.linear_backward("into the MLP", L, N, C, F, accumulates=not causal)
    step.linear_backward("attention's output", L, N, C, C)
    step.linear_backward("query, key, value", L, N, C, 3 * C, accumulates=not causal)
    step.norm_backward("first", 1, "8 N C + 8 N" if causal else "6 N C + 8 N")
    if not causal and shape.dropout:
        step.add("dropout_add", "after the first norm", 2, "4 N C")
    passes = -(-max(1, (max(V, shape.positions) - 1).bit_length()) // 8)
    step.add("count_digits", "embedding's gradient", passes, "24 N")
    step.add("move_rows", "embedding's gradient", passes, "48 N")
    step.add("sum_chunks", "embedding's gradient", 1, "10 N C + 12 N")
    rest, levels = -(-N // 32), 0
    while rest > 1:
        rest, levels = -(-rest // 32), levels + 1
    step.add("sum_chunks", "embedding's gradient, what crosses chunks", levels, "N C / 8")
    step.add("square_sums", "global norm", 1, "4 P")
    step.add("add_square_sums", "global norm", 1, "")
    step.add("step_decision", "", 1, "")
    step.add("adamw_corrections", "", 1, "")
    step.add("adamw", "", 1, "30 P")
    return step.launches


def fills(shape):
    """What a step does on the device without a kernel: gradients are zeroed."""
    return [Launch("fill", "gradients", 1, 4 * shape.parameters)]


def utilisation(M, N, multiprocessors):
    """The share of a wave's multiprocessors that have a tile of 128 x 256, in the best of cuts of the sum into 1 to 16."""
    tiles = -(-M // 128) * -(-N // 256)
    return max(tiles * cuts / (multiprocessors * -(-tiles * cuts // multiprocessors)) for cuts in range(1, 17))


def seconds(launch, rates, shape):
    """Of one of its launches, without the gap."""
    moving = max(rates.least, launch.bytes / rates.memory)
    if launch.kind == "product":
        M, N, K = launch.shape
        rate = rates.product * K / (K + rates.product_ramp) * utilisation(M, N, rates.multiprocessors)
        return max(moving, launch.flops / rate)
    if launch.kind.startswith("attention"):
        dropout = rates.dropout if shape.attention_dropout else 1.0
        return max(moving, dropout * launch.flops / getattr(rates, launch.kind))
    return moving


def step_seconds(shape, rates=Rates()):
    return rates.host + sum(launch.count * (seconds(launch, rates, shape) + rates.gap)
                            for launch in launches(shape) + fills(shape))


def needed_flops(shape):
    """Of the task, as train/flops.cpp counts: only visible pairs, labels that are there, and nothing twice."""
    letters = shape.letters
    N, C, F, V, T = (letters[name] for name in "NCFVT")
    pairs = N * (T + 1) / 2 if shape.causal else N * T
    label = C * V + (0 if shape.causal else C * C)
    return 3 * (2 * (N * shape.layers * (4 * C * C + 2 * C * F) + shape.labels * label) + 4 * shape.layers * C * pairs)


# --- the page ---------------------------------------------------------------------------------------------------------

BERT = {"model": "bert", "vocabulary": 30522, "positions": 512, "types": 2}
OPT = {"model": "opt", "vocabulary": 50272, "positions": 2050, "attention_dropout": 0.0}
SHAPES = {
    "BERT-base, 128 x 128": Shape(B=128, T=128, labels=2458, **BERT),
    "BERT-base, 32 x 512": Shape(B=32, T=512, labels=2458, **BERT),
    "OPT-125m, 32 x 512": Shape(B=32, T=512, labels=32 * 511, **OPT),
    "OPT-125m, 16 x 1024": Shape(B=16, T=1024, labels=16 * 1023, **OPT),
}
REACH = {"BERT-base, 128 x 128": (400e3, 650e3), "OPT-125m, 16 x 1024": (475e3, 600e3)}
DATA_SHEET_PEAK = 989e12
SENSITIVE = {
    "memory": "memory bandwidth, 3.0 TB/s",
    "product": "large products, 700 TFLOP/s",
    "product_ramp": "products' prologue and epilogue, as 128 summands",
    "attention_forward": "attention forward, 280 TFLOP/s",
    "attention_backward": "attention backward, 200 TFLOP/s",
    "dropout": "time of attention with dropout, 1.25 of that without",
    "least": "smallest kernel, 2 us",
    "gap": "gap between launches, 1 us",
    "host": "waiting for the host, 0.1 ms a step",
}
GROUPS = (
    ("products of the body", lambda l: l.kind == "product" and not in_head(l)),
    ("products of the head", lambda l: l.kind == "product" and in_head(l)),
    ("attention forward", lambda l: l.kind == "attention_forward"),
    ("attention backward", lambda l: l.kernel.startswith("attention")),
    ("layer norms, residuals and dropout", lambda l: re.match("layernorm|dropout", l.kernel)),
    ("activations", lambda l: l.kernel.startswith("activation")),
    ("gradients of biases", lambda l: l.kernel.startswith("bias_gradient")),
    ("loss and labelled rows", lambda l: re.match("cross_entropy|add_losses|gather|scatter", l.kernel)),
    ("embeddings", lambda l: re.match("embedding|count_digits|move_rows|sum_chunks", l.kernel)),
    ("optimizer", lambda l: True),
)


def in_head(launch):
    return launch.role.startswith(("vocabulary", "head"))


def table(header, rows):
    lines = ["| " + " | ".join(header) + " |", "|---" + "|--:" * (len(header) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def milliseconds(launch_list, rates, shape):
    return 1e3 * sum(launch.count * seconds(launch, rates, shape) for launch in launch_list)


def summary():
    rates, rows = Rates(), []
    for name, shape in SHAPES.items():
        all_launches = launches(shape) + fills(shape)
        time, N = step_seconds(shape), shape.letters["N"]
        floor = sum(l.count * max(l.bytes / 3.0e12, l.flops / 798e12) for l in all_launches)
        reach = REACH.get(name)
        rows.append([name, str(sum(l.count for l in all_launches)),
                     f"{1e-9 * sum(l.count * l.bytes for l in all_launches):.1f}",
                     f"{1e-12 * needed_flops(shape):.2f}", f"{1e-12 * sum(l.count * l.flops for l in all_launches):.2f}",
                     f"{1e3 * floor:.1f}", f"{1e3 * time:.1f}", f"{1e-3 * N / time:.0f} k",
                     f"{100 * needed_flops(shape) / time / DATA_SHEET_PEAK:.0f} %",
                     f"{1e-3 * reach[0]:.0f} k, {1e-3 * reach[1]:.0f} k" if reach else ""])
    header = ["modelled step of 16,384 tokens", "launches", "GB moved", "TFLOP needed", "TFLOP done", "floor, ms",
              "time, ms", "tokens/s", "MFU", "reach: first, stretch"]
    return table(header, rows)


def where_time_goes():
    rates, rows = Rates(), []
    left = {name: launches(shape) + fills(shape) for name, shape in SHAPES.items()}
    total = {name: 1e3 * step_seconds(shape) for name, shape in SHAPES.items()}
    for group, belongs in GROUPS:
        cells = []
        for name, shape in SHAPES.items():
            mine = [launch for launch in left[name] if belongs(launch)]
            left[name] = [launch for launch in left[name] if not belongs(launch)]
            time = milliseconds(mine, rates, shape)
            cells.append(f"{time:.2f} ({100 * time / total[name]:.0f} %)")
        rows.append([group, *cells])
    waits = [1e3 * (rates.host + rates.gap * sum(l.count for l in launches(s) + fills(s))) for s in SHAPES.values()]
    rows.append(["gaps and host", *(f"{time:.2f} ({100 * time / total[name]:.0f} %)" for time, name in zip(waits, SHAPES))])
    rows.append(["together", *(f"{time:.2f}" for time in total.values())])
    return table(["modelled ms of a step", *SHAPES], rows)


def launch_table():
    """Roles of a kernel that all shapes have under one name; products by their role."""
    rates, cells = Rates(), collections.OrderedDict()
    for name, shape in SHAPES.items():
        for launch in launches(shape) + fills(shape):
            kernel = "product" if launch.kind == "product" else launch.kernel
            entry = cells.setdefault((kernel, launch.role), {}).setdefault(name, [0, 0.0])
            entry[0] += launch.count
            entry[1] += launch.count * seconds(launch, rates, shape)
    rows = []
    for (kernel, role), columns in cells.items():
        what = f"`{kernel}`" + (f", {role}" if role else "")
        counts = [columns.get(name, (0, 0.0)) for name in SHAPES]
        rows.append([what, *(f"{count} x {1e6 * time / count:.1f}" if count else "" for count, time in counts)])
    return table(["launches a step x modelled us each", *SHAPES], rows)


def sensitivity():
    rows = []
    for field, text in SENSITIVE.items():
        cells = []
        for shape in SHAPES.values():
            base = step_seconds(shape)
            changed = [step_seconds(shape, dataclasses.replace(Rates(), **{field: getattr(Rates(), field) * factor}))
                       for factor in (0.8, 1.2)]
            cells.append(", ".join(f"{100 * (base / time - 1):+.1f} %" for time in changed))
        rows.append([text, *cells])
    return table(["tokens/s with this 20 % lower, 20 % higher", *SHAPES], rows)


def memory_table():
    plans = json.loads((ROOT / "scripts/step_memory.json").read_text())
    parts = list(next(iter(plans.values())))
    rows = [[part, *(f"{1e-6 * plan[part]:,.0f}" for plan in plans.values())] for part in parts]
    rows.append(["together", *(f"{1e-6 * sum(plan.values()):,.0f}" for plan in plans.values())])
    return table(["MB of the GPU's memory, as planned", *plans], rows)


TABLES = {"summary": summary, "groups": where_time_goes, "launches": launch_table, "sensitivity": sensitivity,
          "memory": memory_table}


def written(page):
    """The page with every table anew."""
    for name, make in TABLES.items():
        marked = rf"(<!-- model: {name} -->\n).*?(<!-- end of model -->)"
        page, found = re.subn(marked, lambda m: f"{m[1]}{make()}\n{m[2]}", page, flags=re.DOTALL)
        assert found == 1, f"the page has the marker of \"{name}\" {found} times"
    return page


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", metavar="PAGE", type=pathlib.Path, help="write the tables into this page")
    arguments = parser.parse_args()
    if arguments.write:
        arguments.write.write_text(written(arguments.write.read_text()))
    else:
        print("\n\n".join(make() for make in TABLES.values()))


if __name__ == "__main__":
    main()
