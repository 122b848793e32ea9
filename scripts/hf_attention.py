"""Attention with softmax_n in Hugging Face transformers: the same models, another normaliser.

    p_i = exp(s_i) / (n + sum_j exp(s_j))        n = 0: softmax; n = 1: softmax1 (OutEffHop); any n >= 0: "softmax_n(N)"

`register()` adds an attention function named "outeffhop" to transformers; a model whose config has
`_attn_implementation = "outeffhop"` and a field `attn_softmax` then computes it, in the dtype of its activations (the "eager"
function of OPT would round the probabilities to fp32). Needs PyTorch and transformers 5.0 or newer: BERT has taken attention
functions by name since then.
"""

import re

import torch
import transformers

LEAST_TRANSFORMERS = 5  # major version
if int(transformers.__version__.split(".")[0]) < LEAST_TRANSFORMERS:
    raise ImportError(f"transformers {transformers.__version__} is too old for hf_attention.py, which needs "
                      f"{LEAST_TRANSFORMERS}.0 or newer: pip install --upgrade transformers")

from transformers import AttentionInterface, AttentionMaskInterface  # noqa: E402
from transformers.masking_utils import eager_mask  # noqa: E402

NAME = "outeffhop"


def softmax_constant(attn_softmax):
    """The n that a value of the config's attn_softmax names."""
    if attn_softmax in (None, "vanilla"):
        return 0.0
    if attn_softmax == "softmax1":
        return 1.0
    match = re.fullmatch(r"softmax_n\((.+)\)", attn_softmax)
    if not match:
        raise ValueError(f"attn_softmax is {attn_softmax!r}: expected vanilla, softmax1 or softmax_n(N)")
    return float(match.group(1))


def softmax_n(scores, n):
    """exp(s) / (n + sum exp(s)) over the last dimension; scores of masked keys are the dtype's minimum."""
    if n == 0:
        return torch.softmax(scores, dim=-1)
    # softmax_n is softmax with one more key of score log n whose value is 0.
    extra = scores.new_full((*scores.shape[:-1], 1), float(n)).log()
    return torch.softmax(torch.cat([scores, extra], dim=-1), dim=-1)[..., :-1]


def attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **_):
    scaling = query.size(-1) ** -0.5 if scaling is None else scaling
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = softmax_n(scores, softmax_constant(getattr(module.config, "attn_softmax", "vanilla")))
    probabilities = torch.nn.functional.dropout(probabilities, p=dropout, training=module.training)
    return (probabilities @ value).transpose(1, 2).contiguous(), probabilities


def register():
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, eager_mask)
