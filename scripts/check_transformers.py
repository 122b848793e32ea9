#!/usr/bin/env python3
"""Loads a checkpoint of ours in Hugging Face transformers and compares its logits with `outeffhop probe`'s.

    python scripts/check_transformers.py --checkpoint runs/my_run/checkpoints/step_00001000

Makes a random batch with padding, runs probe on it, loads the checkpoint with BertForMaskedLM or OPTForCausalLM
.from_pretrained() in fp32 and compares the logits of the tokens that are not padding, the loss and the gradients. Checkpoints
with attn_softmax "vanilla" are computed by transformers' own attention, "softmax1" and "softmax_n(N)" by the function that
scripts/hf_attention.py registers. Exits with 1 if the logits differ by more than --tolerance (largest absolute difference).

Needs PyTorch, transformers 5.0 or newer, safetensors: see scripts/make_fixtures.py for an environment that has them.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

try:
    import safetensors.torch
    import torch

    import hf_attention  # first: it says when transformers is too old
    from transformers import BertForMaskedLM, OPTForCausalLM
    from transformers.utils import logging
except ImportError as error:
    sys.exit(f"check_transformers.py: error: {error}")

ROOT = pathlib.Path(__file__).resolve().parent.parent


def random_batch(config, rows, length, seed):
    """Ids of the whole vocabulary, right padding of a different length in each row, labels at about a third of the rest."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, config["vocab_size"], (rows, length), generator=generator)
    lengths = torch.tensor([max(2, length - 3 * row) for row in range(rows)])
    mask = (torch.arange(length)[None, :] < lengths[:, None]).long()
    padding = config.get("pad_token_id")  # null for vocabularies without one: then any token will do
    ids[mask == 0] = 0 if padding is None else padding
    labels = ids.clone()
    if config["model_type"] == "bert":
        labels[torch.rand(ids.shape, generator=generator) > 0.35] = -100
        labels[0, 0] = ids[0, 0]
    labels[mask == 0] = -100
    return dict(input_ids=ids, attention_mask=mask, labels=labels)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=pathlib.Path, required=True, help="a folder with config.json and model.safetensors")
    parser.add_argument("--program", type=pathlib.Path, default=ROOT / "build/outeffhop")
    parser.add_argument("--rows", type=int, default=3)
    parser.add_argument("--length", type=int, help="tokens a row; default: as long as the model allows, at most 64")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    arguments = parser.parse_args()

    config = json.loads((arguments.checkpoint / "config.json").read_text())
    attn_softmax = config.get("attn_softmax", "vanilla")
    length = arguments.length or min(64, config["max_position_embeddings"])
    batch = random_batch(config, arguments.rows, length, arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        batch_file, out_file = pathlib.Path(folder, "batch.safetensors"), pathlib.Path(folder, "out.safetensors")
        safetensors.torch.save_file(batch, batch_file)
        subprocess.run([arguments.program, "probe", "--checkpoint", arguments.checkpoint, "--batch", batch_file, "--out",
                        out_file], check=True, stdout=subprocess.DEVNULL)
        ours = safetensors.torch.load_file(out_file)

    options = {}
    if attn_softmax != "vanilla":
        hf_attention.register()
        options["attn_implementation"] = hf_attention.NAME
    family = BertForMaskedLM if config["model_type"] == "bert" else OPTForCausalLM
    logging.disable_progress_bar()
    model, report = family.from_pretrained(arguments.checkpoint, dtype=torch.float32, output_loading_info=True, **options)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report.get(what):
            sys.exit(f"{arguments.checkpoint}: transformers reports {what}: {sorted(map(str, report[what]))}")
    if getattr(model.config, "attn_softmax", "vanilla") != attn_softmax:
        sys.exit(f"{arguments.checkpoint}: transformers lost attn_softmax {attn_softmax!r}")
    model.eval()  # dropout off; gradients all the same
    output = model(**batch)
    output.loss.backward()

    visible = batch["attention_mask"].bool()
    theirs = output.logits.detach()[visible]
    logits_difference = float((ours["logits"][visible] - theirs).abs().max())
    loss, own_loss = float(output.loss.detach()), float(ours["loss"])
    worst, worst_name = max(
        (float((ours[f"grad.{name}"] - p.grad).norm() / p.grad.norm().clamp_min(1e-12)), name)
        for name, p in model.named_parameters() if not name.endswith(("key.bias", "k_proj.bias")))
    print(f"checkpoint          {arguments.checkpoint} ({config['model_type']}, attn_softmax {attn_softmax})")
    print(f"batch               {arguments.rows} x {length}, {int(visible.sum())} tokens that are not padding")
    print(f"logits              largest difference {logits_difference:.2e}, largest magnitude {float(theirs.abs().max()):.2e}")
    print(f"loss                ours {own_loss:.7f}, transformers {loss:.7f}")
    print(f"gradients           largest relative difference {worst:.2e} ({worst_name})")
    if not logits_difference <= arguments.tolerance:
        sys.exit(f"the logits differ by more than {arguments.tolerance:g}")
    print(f"agrees within {arguments.tolerance:g}")


if __name__ == "__main__":
    main()
