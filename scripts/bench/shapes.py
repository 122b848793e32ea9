"""The models of the benchmark, and the floating-point operations of their training steps."""

import dataclasses

MLM_PROBABILITY = 0.15


@dataclasses.dataclass(frozen=True)
class Shape:
    """A model, its sequence length T and batch B. Weights, activations and moments of a step of theirs stay within 8 GiB."""

    name: str
    family: str  # "bert" or "opt"
    hidden: int
    layers: int
    heads: int
    ffn: int
    vocabulary: int
    T: int
    B: int
    target: float  # ours over theirs

    @property
    def tokens(self):
        return self.B * self.T

    @property
    def dropout(self):
        """Of (residual branches and embeddings, attention probabilities), as in the published configurations."""
        return (0.1, 0.1) if self.family == "bert" else (0.1, 0.0)

    @property
    def head_rows(self):
        """Positions that the head needs: the labelled ones for BERT, all but the last of a sequence for OPT."""
        return round(self.tokens * MLM_PROBABILITY) if self.family == "bert" else self.B * (self.T - 1)


SHAPES = {shape.name: shape for shape in (
    Shape("bert-mini", "bert", 256, 4, 4, 1024, 30522, T=128, B=32, target=2.0),
    Shape("bert-base", "bert", 768, 12, 12, 3072, 30522, T=128, B=16, target=2.0),
    Shape("opt-mini", "opt", 256, 4, 4, 1024, 50272, T=512, B=8, target=1.3),
    Shape("opt-125m", "opt", 768, 12, 12, 3072, 50272, T=512, B=4, target=1.3),
)}


def linear_layers(shape):
    """(how many, rows, in, out) of the linear layers of a step. Query, key and value are one product, as in ours."""
    layers = [
        (shape.layers, shape.tokens, shape.hidden, 3 * shape.hidden),
        (shape.layers, shape.tokens, shape.hidden, shape.hidden),
        (shape.layers, shape.tokens, shape.hidden, shape.ffn),
        (shape.layers, shape.tokens, shape.ffn, shape.hidden),
    ]
    if shape.family == "bert":
        layers.append((1, shape.head_rows, shape.hidden, shape.hidden))
    layers.append((1, shape.head_rows, shape.hidden, shape.vocabulary))
    return layers


def step_flops(shape):
    """Multiplications and additions that a step needs: the matrix products forward (one) and backward (two), the head where
    there are labels, half of the attention matrix where it is causal. What a backward computes again is not counted."""
    linear = sum(3 * 2 * count * rows * inputs * outputs for count, rows, inputs, outputs in linear_layers(shape))
    visible = shape.T * shape.T if shape.family == "bert" else shape.T * (shape.T + 1) / 2
    attention = 3 * shape.layers * shape.B * 2 * 2 * visible * shape.hidden  # q k^T and p v
    return linear + attention


def products_input(shape):
    """What tests/bench/bench_products.cpp reads: one layer a line."""
    return "".join(f"{count} {rows} {inputs} {outputs}\n" for count, rows, inputs, outputs in linear_layers(shape))
