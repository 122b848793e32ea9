#!/usr/bin/env python3
"""Writes tests/fixtures/probe/*: small random BERT and OPT models with the loss, logits and gradients that Hugging Face
transformers computes for them in float64. tests/train/probe_test.cpp compares `outeffhop probe` with them.

The fixtures are committed; this script runs only to change them. It needs PyTorch, which nothing else here does, so give it an
environment of its own, outside the repository:

    python3 -m venv ~/fixtures-env
    ~/fixtures-env/bin/pip install torch 'transformers>=5.23' safetensors numpy     # any build of torch will do
    ~/fixtures-env/bin/python scripts/make_fixtures.py

Each folder holds
    config.json           Hugging Face's fields and "attn_softmax"
    model.safetensors     fp32 weights by Hugging Face's names, tied weights once
    batch.safetensors     input_ids, attention_mask, labels (int64): Hugging Face's conventions, padding on the right
    expected.safetensors  loss (mean over the labelled tokens), logits (B, T, V), grad.NAME for every weight, and site.MODULE:
                          what some modules put out for the tokens of the first sequence that are not padding, (tokens,
                          channels), or (heads, tokens, tokens) for attention probabilities. Computed in float64 from the
                          fp32 weights with dropout off, stored as fp32

What is checked before anything is written: the attention function agrees with transformers' own for the ordinary softmax; a padded
token does not reach the logits of the others; no ReLU input lies within 1e-5 of its kink; an fp32 run by PyTorch itself stays
well inside the tolerance of the tests.
"""

import argparse
import json
import pathlib
import platform

import safetensors
import safetensors.torch
import torch
import transformers
from transformers import BertConfig, BertForMaskedLM, OPTConfig, OPTForCausalLM

import hf_attention

KINK_MARGIN = 1e-5

# Odd sizes on purpose: vector loops have tails, heads are not aligned.
FIXTURES = {
    "bert_vanilla": dict(model_type="bert", attn_softmax="vanilla", vocab_size=61, hidden_size=28, intermediate_size=60,
                         T=12, lengths=[12, 9, 5]),
    "bert_softmax1": dict(model_type="bert", attn_softmax="softmax1", vocab_size=67, hidden_size=24, intermediate_size=52,
                          T=17, lengths=[11, 17, 14]),
    "bert_softmax_n": dict(model_type="bert", attn_softmax="softmax_n(4)", vocab_size=61, hidden_size=20, intermediate_size=44,
                           hidden_act="gelu_new", T=13, lengths=[13, 1, 8]),
    "opt_vanilla": dict(model_type="opt", attn_softmax="vanilla", vocab_size=61, hidden_size=20, intermediate_size=44,
                        T=13, lengths=[8, 13, 10]),
    "opt_softmax1": dict(model_type="opt", attn_softmax="softmax1", vocab_size=67, hidden_size=28, intermediate_size=60,
                         T=16, lengths=[16, 13, 6]),
    "opt_projected_softmax1": dict(model_type="opt", attn_softmax="softmax1", vocab_size=73, hidden_size=24,
                                   word_embed_proj_dim=16, intermediate_size=48, T=14, lengths=[12, 14, 3]),
}


def make_config(spec):
    """The transformers config of a fixture and the fields of it that go into config.json."""
    shared = dict(vocab_size=spec["vocab_size"], hidden_size=spec["hidden_size"], num_hidden_layers=2, num_attention_heads=4,
                  max_position_embeddings=spec["T"] + 3)
    if spec["model_type"] == "bert":
        fields = dict(shared, intermediate_size=spec["intermediate_size"], hidden_act=spec.get("hidden_act", "gelu"),
                      hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1, type_vocab_size=2, initializer_range=0.02,
                      layer_norm_eps=1e-12, pad_token_id=0)
        config, architecture = BertConfig(**fields), "BertForMaskedLM"
    else:
        fields = dict(shared, ffn_dim=spec["intermediate_size"], activation_function="relu", dropout=0.1, attention_dropout=0.0,
                      word_embed_proj_dim=spec.get("word_embed_proj_dim", spec["hidden_size"]), init_std=0.02,
                      do_layer_norm_before=True, pad_token_id=1, bos_token_id=2, eos_token_id=2)
        config, architecture = OPTConfig(**fields), "OPTForCausalLM"
    config.attn_softmax = spec["attn_softmax"]
    return config, {"model_type": spec["model_type"], "architectures": [architecture], **fields,
                    "attn_softmax": spec["attn_softmax"]}


def make_model(config, implementation=hf_attention.NAME):
    config._attn_implementation = implementation
    model = (BertForMaskedLM if config.model_type == "bert" else OPTForCausalLM)(config)
    assert model.config._attn_implementation == implementation
    return model.eval()  # dropout off; gradients all the same


def fill_weights(model, generator):
    """Random weights far from the usual start, so that attention is far from uniform and every path matters. Every value is an
    fp32 number."""
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape, generator=generator) * 0.3
        if "norm" in name.lower() and name.endswith("weight"):
            values += 1.0
        parameter.data.copy_(values)


def make_batch(spec, config, generator):
    T, lengths = spec["T"], spec["lengths"]
    ids = torch.randint(0, config.vocab_size, (len(lengths), T), generator=generator)
    mask = (torch.arange(T)[None, :] < torch.tensor(lengths)[:, None]).long()
    # A visible padding token: its row of the embedding gets no gradient from the look-up, only from the tied head.
    ids[0, 1] = config.pad_token_id
    ids[mask == 0] = config.pad_token_id
    chosen = torch.rand(ids.shape, generator=generator)
    if spec["model_type"] == "bert":
        labels = torch.randint(0, config.vocab_size, ids.shape, generator=generator)
        labels[chosen > 0.35] = -100
        labels[0, 0] = int(ids[0, 0])
    else:
        labels = ids.clone()
        labels[chosen > 0.85] = -100
    labels[mask == 0] = -100
    return dict(input_ids=ids, attention_mask=mask, labels=labels)


def watch_sites(model, batch):
    """The hooks that record the outputs of some modules, and the dictionary they fill with those of the first sequence."""
    sites, visible = {}, int(batch["attention_mask"][0].sum())

    def record(name, value):
        value = value.detach().reshape(*batch["input_ids"].shape, -1)
        sites[f"site.{name}"] = value[0, :visible].clone()

    def record_probabilities(name, value):
        sites[f"site.{name}.probabilities"] = value.detach()[0, :, :visible, :visible].clone()

    if model.config.model_type == "bert":
        layer, plain = "bert.encoder.layer.1.", ["attention.output.dense", "attention.output.LayerNorm", "intermediate.dense",
                                                 "intermediate", "output.dense", "output.LayerNorm"]
        outer, attention = ["bert.embeddings.LayerNorm"], "attention.self"
    else:
        layer, plain = "model.decoder.layers.1.", ["self_attn_layer_norm", "self_attn.out_proj", "final_layer_norm", "fc1",
                                                   "activation_fn", "fc2"]
        outer, attention = ["model.decoder.layers.1", "model.decoder.final_layer_norm"], "self_attn"
    hooks = [model.get_submodule(name).register_forward_hook(
        lambda _m, _i, out, name=name: record(name, out if torch.is_tensor(out) else out[0]))
        for name in outer + [layer + name for name in plain]]
    hooks.append(model.get_submodule(layer + attention).register_forward_hook(
        lambda _m, _i, out: record_probabilities(layer + attention, out[1])))
    if model.config.model_type == "bert":  # there the module's own output is the context; OPT's is what out_proj makes of it
        hooks.append(model.get_submodule(layer + attention).register_forward_hook(
            lambda _m, _i, out: record(layer + attention, out[0])))
    return hooks, sites


def evaluate(model, batch):
    """Loss (mean over labelled tokens, in the model's dtype), logits and gradients by name. transformers' own causal loss is
    not used for the numbers because it rounds the logits to fp32; it is compared."""
    model.zero_grad(set_to_none=True)
    output = model(**batch)
    logits, labels = output.logits, batch["labels"]
    shown = logits
    if model.config.model_type == "opt":
        shown, labels = logits[:, :-1], labels[:, 1:]
    loss = torch.nn.functional.cross_entropy(shown.reshape(-1, logits.size(-1)), labels.reshape(-1), ignore_index=-100)
    loss.backward()
    loss = loss.detach()
    assert abs(float(output.loss.detach()) - float(loss)) < 1e-5 * float(loss)
    gradients = {name: p.grad.detach().clone() for name, p in model.named_parameters()}
    return loss, logits.detach(), gradients


def kink_distance(model, batch):
    """The smallest distance of a visible ReLU input from 0."""
    if model.config.model_type != "opt":
        return float("inf")
    distances, visible = [], batch["attention_mask"].bool()
    hooks = [layer.fc1.register_forward_hook(
        lambda _m, _i, out: distances.append(float(out.reshape(*visible.shape, -1)[visible].abs().min())))
        for layer in model.model.decoder.layers]
    with torch.no_grad():
        model(**batch)
    for hook in hooks:
        hook.remove()
    assert len(distances) == model.config.num_hidden_layers
    return min(distances)


def check_mask(model, batch):
    """A padded token changed must not change the logits of the others, a visible one must."""
    with torch.no_grad():
        before, visible = model(**batch).logits, batch["attention_mask"].bool()
        changed = dict(batch, input_ids=torch.where(visible, batch["input_ids"], 5))
        assert torch.equal(before[visible], model(**changed).logits[visible]), "the padding reaches the logits"
        row = int(batch["attention_mask"].sum(1).argmin())
        other = batch["input_ids"].clone()
        other[row, 0] = (other[row, 0] + 1) % model.config.vocab_size
        assert not torch.equal(before[row], model(**dict(batch, input_ids=other)).logits[row])


def check_vanilla(config, model, batch):
    """For the ordinary softmax transformers' own attention (scaled_dot_product_attention, which keeps float64) must agree."""
    own = make_model(type(config).from_dict(config.to_dict()), "sdpa").double()
    own.load_state_dict(model.state_dict())
    visible = batch["attention_mask"].bool()
    with torch.no_grad():
        difference = (own(**batch).logits - model(**batch).logits)[visible].abs().max()
    assert difference < 1e-12, f"attention differs from transformers' own by {difference}"


def relative_error(got, expected):
    return float((got.double() - expected).abs().max() / expected.abs().max())


def make_fixture(name, spec, directory):
    for seed in range(1000):
        generator = torch.Generator().manual_seed(1000 * list(FIXTURES).index(name) + seed)
        config, fields = make_config(spec)
        model = make_model(config)
        fill_weights(model, generator)
        batch = make_batch(spec, config, generator)
        weights = {n: p.detach().clone() for n, p in model.named_parameters()}
        model = model.double()
        distance = kink_distance(model, batch)
        if distance > KINK_MARGIN:
            break
    else:
        raise SystemExit(f"{name}: no seed keeps clear of the kinks")
    check_mask(model, batch)
    if spec["attn_softmax"] == "vanilla":
        check_vanilla(config, model, batch)
    hooks, sites = watch_sites(model, batch)
    loss, logits, gradients = evaluate(model, batch)
    for hook in hooks:
        hook.remove()
    assert len(sites) == len(hooks)
    _, _, single = evaluate(model.float(), batch)
    worst = max((relative_error(single[n], g), n) for n, g in gradients.items() if not n.endswith(("key.bias", "k_proj.bias")))

    folder = directory / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    safetensors.torch.save_file(batch, folder / "batch.safetensors")
    expected = {"loss": loss.reshape(()), "logits": logits, **{f"grad.{n}": g for n, g in gradients.items()}, **sites}
    safetensors.torch.save_file({n: t.float().contiguous() for n, t in expected.items()}, folder / "expected.safetensors")
    print(f"{name}: seed {seed}, loss {float(loss):.6f}, {sum(w.numel() for w in weights.values())} weights, nearest ReLU kink "
          f"{distance:.1e}, PyTorch's own fp32 gradients off by {worst[0]:.1e} at most ({worst[1]})")
    assert worst[0] < 5e-6


def main():
    root = pathlib.Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, default=root / "tests/fixtures/probe")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    hf_attention.register()
    for name, spec in FIXTURES.items():
        make_fixture(name, spec, arguments.output)
    versions = {"Python": platform.python_version(), "PyTorch": torch.__version__,
                "transformers": transformers.__version__, "safetensors": safetensors.__version__}
    (arguments.output / "README.md").write_text(
        "# What Hugging Face transformers computes\n\n"
        "Small random models with the loss, logits and gradients that transformers' own modules compute for them in float64.\n"
        "Made by scripts/make_fixtures.py (which says what each file holds), with\n\n"
        + "".join(f"- {name} {version}\n" for name, version in versions.items()) +
        "\n`bert_*`: BertForMaskedLM, `opt_*`: OPTForCausalLM; the rest of the name is the attention's normaliser.\n"
        "`opt_projected_*` has token embeddings narrower than the model. tests/train/probe_test.cpp reads them.\n")


if __name__ == "__main__":
    main()
