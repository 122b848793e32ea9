"""What scripts/gpu_bench.py measures: ops with their floors, attention over many shapes, whole steps.

Floors are those of docs/kernels.md: the larger of bytes / 3.0 TB/s and FLOPs / 798 TFLOP/s, with the page's letters."""

from __future__ import annotations

import dataclasses
import math

from .shapes import MLM_PROBABILITY, Shape

BYTES_A_SECOND, FLOPS_A_SECOND = 3.0e12, 798e12
PEAK_FLOPS = {"H100": 989.4e12, "H200": 989.4e12, "A100": 312e12}  # dense bf16, as NVIDIA counts


@dataclasses.dataclass(frozen=True)
class Model:
    """The letters of docs/kernels.md."""

    name: str
    family: str
    B: int
    T: int
    C: int
    H: int
    F: int
    V: int
    M: int          # rows of the head
    P: int          # parameters
    types: int

    @property
    def N(self) -> int:
        return self.B * self.T


MODELS = (
    Model("BERT-base", "bert", B=128, T=128, C=768, H=12, F=3072, V=30522, M=2496, P=109_514_298, types=2),
    Model("OPT-125m", "opt", B=16, T=1024, C=768, H=12, F=3072, V=50272, M=16384, P=125_239_296, types=0),
)
TINY_MODEL = Model("tiny", "bert", B=2, T=16, C=32, H=2, F=64, V=211, M=16, P=4096, types=2)


@dataclasses.dataclass(frozen=True)
class Case:
    """One op, as tests/bench/bench_ops.cpp is asked for it."""

    key: str
    label: str
    op: dict
    file: str = ""      # of kernels/cuda
    bytes: float = 0.0
    flops: float = 0.0  # of matrix products on tensor cores

    @property
    def floor(self) -> float:
        """Seconds."""
        return max(self.bytes / BYTES_A_SECOND, self.flops / FLOPS_A_SECOND)


def op_cases(model: Model) -> list[Case]:
    """Every op of a training step in bf16, at the shapes of the model."""
    m = model
    N, C, F, V, M, P, T = m.N, m.C, m.F, m.V, m.M, m.P, m.T
    batch = {"B": m.B, "T": T, "C": C}
    mlp = {"activation": "gelu_erf" if m.family == "bert" else "relu", "count": N * F}
    causal = int(m.family == "opt")
    attention = {"B": m.B, "H": m.H, "T": T, "D": C // m.H, "n": 1, "causal": causal}
    visible = 1 if not causal else 2
    embedding = {"B": m.B, "T": T, "C": C, "V": V, "types": m.types}
    layers = [("query, key and value in one", 3 * C, C, N, {}), ("output of attention", C, C, N, {}),
              ("into the MLP, pre-activation kept", F, C, N, {"activation": mlp["activation"], "pre": 1}),
              ("out of the MLP", C, F, N, {}), ("vocabulary", V, C, M, {})]
    cases: list[tuple] = []
    logits = {"row_stride": (V + 63) // 64 * 64}  # as model/head.cpp lays them
    for label, out, inputs, rows, extra in layers:
        linear = {"rows": rows, "in": inputs, "out": out, **(logits if out == V else {})}
        moved = 2 * (rows * inputs + inputs * out + rows * out * (2 if extra else 1))
        cases.append((f"linear: {label}", {"op": "linear_forward", **linear, **extra}, "linear.cpp", moved, 2 * rows * inputs * out))
        cases.append((f"linear backward: {label}", {"op": "linear_backward", **linear}, "",
                      2 * (3 * rows * out + 2 * rows * inputs + inputs * out) + 8 * inputs * out + 8 * out, 4 * rows * inputs * out))
    cases += [
        ("attention forward", {"op": "attention_forward", **attention}, "attention_forward_tensor.cu", 8 * N * C + N * C / 16,
         4 * N * C * T / visible),
        ("attention backward", {"op": "attention_backward", **attention}, "attention_backward_tensor.cu", 16 * N * C + N * C / 8,
         10 * N * C * T / visible),
        ("activation forward", {"op": "activation_forward", **mlp}, "activation.cu", 4 * N * F, 0),
        ("activation backward", {"op": "activation_backward", **mlp}, "activation.cu", 6 * N * F, 0),
        ("layer norm forward, with residual and dropout", {"op": "layernorm_forward", **batch, "dropout": 0.1},
         "layernorm_forward.cu", 8 * N * C + 8 * N, 0),
        ("layer norm backward, with d_sum_in and d_x", {"op": "layernorm_backward", **batch, "dropout": 0.1},
         "layernorm_backward.cu", 10 * N * C + 8 * N, 0),
        ("dropout with residual", {"op": "dropout_add", **batch, "dropout": 0.1}, "dropout.cu", 6 * N * C, 0),
        ("embedding forward", {"op": "embedding_forward", **embedding}, "embedding.cu", 4 * N * C + 8 * N, 0),
        ("embedding backward", {"op": "embedding_backward", **embedding}, "embedding_backward.cu",
         10 * N * C + 12 * N, 0),
        ("rows gathered for the head", {"op": "gather_rows", "count": M, "rows": N, "C": C}, "gather.cu", 4 * M * C + 4 * M, 0),
        ("rows scattered from the head", {"op": "scatter_rows", "count": M, "rows": N, "C": C}, "gather.cu",
         2 * M * C + 2 * N * C + 4 * M, 0),
        ("cross-entropy with its gradient", {"op": "cross_entropy", "rows": M, "V": V, **logits, "gradient": 1}, "cross_entropy.cu",
         4 * M * V + 16 * M, 0),
        ("global norm", {"op": "global_norm", "count": P}, "global_norm.cu", 4 * P, 0),
        ("AdamW", {"op": "adamw", "count": P}, "adamw.cu", 30 * P, 0),
        ("row moments", {"op": "row_moments", "rows": N, "C": C}, "statistics.cu", 2 * N * C + 32 * N, 0),
        ("cast of the parameters", {"op": "cast", "count": P}, "cast.cu", 6 * P, 0),
    ]
    return [Case(f"op/{m.name}/{label}", label, {"dtype": "bf16", **op}, file, moved, flops)
            for label, op, file, moved, flops in cases]


LENGTHS, HEAD_SIZES, TOKENS, CHANNELS = (128, 256, 512, 1024, 2048, 4096), (64, 128), 16384, 1536


@dataclasses.dataclass(frozen=True)
class AttentionShape:
    """16 k tokens in sequences of T; 1536 channels in heads of D."""

    B: int
    H: int
    T: int
    D: int
    causal: bool

    @property
    def name(self) -> str:
        return f"D {self.D}, T {self.T}{', causal' if self.causal else ''}"

    def flops(self, direction: str) -> float:
        """As flash attention counts: two products forward, five backward; half where it is causal."""
        forward = 4 * self.B * self.H * self.T * self.T * self.D / (2 if self.causal else 1)
        return forward * (2.5 if direction == "backward" else 1)


DIRECTIONS = ("forward", "backward")


def attention_shapes(tiny: bool = False) -> list[AttentionShape]:
    if tiny:
        return [AttentionShape(2, 2, 16, 32, causal) for causal in (False, True)]
    return [AttentionShape(TOKENS // T, CHANNELS // D, T, D, causal) for D in HEAD_SIZES for T in LENGTHS for causal in (False, True)]


# Our ways of one shape: the softmax's constant and dropout.
OUR_WAYS = {"softmax1": (1, 0.0), "vanilla": (0, 0.0), "softmax1, dropout": (1, 0.1)}
# PyTorch's: backend, n, dropout, deterministic (of the backward alone).
THEIR_WAYS = {"flash": ("flash", 0, 0.0, False), "flash, deterministic": ("flash", 0, 0.0, True), "cuDNN": ("cudnn", 0, 0.0, False),
              "efficient": ("efficient", 0, 0.0, False), "flash, dropout": ("flash", 0, 0.1, False),
              "Flex, softmax1": ("flex", 1, 0.0, False)}
FLEX_LENGTHS = (128, 512, 1024)  # each shape is compiled, for several seconds


def attention_case(shape: AttentionShape, direction: str, way: str) -> Case:
    n, dropout = OUR_WAYS[way]
    op = {"op": f"attention_{direction}", "dtype": "bf16", "B": shape.B, "H": shape.H, "T": shape.T, "D": shape.D,
          "causal": int(shape.causal), "n": n, "dropout": dropout}
    return Case(f"attention/{shape.name}/{direction}/ours, {way}", way, op, flops=shape.flops(direction))


def their_ways(shape: AttentionShape, direction: str, tiny: bool = False) -> list[str]:
    if tiny:
        return ["math"]
    compiled = shape.T in FLEX_LENGTHS and shape.D == 64
    return [way for way, (backend, _, _, deterministic) in THEIR_WAYS.items()
            if not (deterministic and direction == "forward") and (compiled or backend != "flex")]


# Sequences at a time as the published recipes; target: tokens a second to reach and to hope for (docs of the design).
STEPS = (
    Shape("BERT-base", "bert", 768, 12, 12, 3072, 30522, T=128, B=128, target=400e3),
    Shape("BERT-base", "bert", 768, 12, 12, 3072, 30522, T=512, B=32, target=0),
    Shape("OPT-125m", "opt", 768, 12, 12, 3072, 50272, T=512, B=32, target=0),
    Shape("OPT-125m", "opt", 768, 12, 12, 3072, 50272, T=1024, B=16, target=475e3),
)
TINY_STEPS = (Shape("tiny", "bert", 32, 1, 2, 64, 1500, T=16, B=4, target=0),)


def step_key(shape: Shape, way: str) -> str:
    return f"step/{shape.name}, {shape.B} x {shape.T}/{way}"


def head_rows(tokens: int, multiple: int = 64) -> int:
    """Rows of BERT's head: the labelled tokens, to the next multiple."""
    return math.ceil(tokens * MLM_PROBABILITY / multiple) * multiple


def spread(seconds: list[float]) -> tuple[float, float, float]:
    """Median, and the quartiles about it."""
    ordered = sorted(seconds)

    def quantile(share: float) -> float:
        at = share * (len(ordered) - 1)
        low = int(at)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (at - low) * (ordered[high] - ordered[low])
    return quantile(0.5), quantile(0.25), quantile(0.75)
