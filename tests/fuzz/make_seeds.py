#!/usr/bin/env python3
"""Writes the seeds of the fuzz targets into tests/fuzz/seeds/ and their dictionaries beside them.

A seed is a small input from which a fuzzer reaches most of a parser: sound files of each kind, and near misses. Inputs that
once were findings lie there too, as regression_*; this script leaves them alone.
"""

import json
import pathlib
import re
import struct

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def write(target: str, name: str, contents: bytes | str) -> None:
    path = HERE / "seeds" / target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(contents.encode() if isinstance(contents, str) else contents)


def dictionary(target: str, words: list[str]) -> None:
    """libFuzzer's format; a word stands with its quotes, as JSON has it."""
    lines = []
    for word in sorted(set(words)):
        escaped = "".join(c if c.isalnum() or c in "_ .-+()" else f"\\x{ord(c):02x}" for c in word)
        lines.append(f'"{escaped}"\n')
    (HERE / f"{target}.dict").write_text("".join(lines))


def quoted(words: list[str]) -> list[str]:
    return [f'"{word}"' for word in words]


def configuration_keys() -> list[str]:
    """The keys of the README's table, which a test compares with the program's."""
    return re.findall(r"^\| `([a-z][a-z_A-Z.0-9]*)` \|", (ROOT / "README.md").read_text(), re.MULTILINE)


JSON_WORDS = ["true", "false", "null", "1e999", "-1", "0", "1e5", "18446744073709551615", "9223372036854775807", "[]", "{}",
              "\\ud800", "\\u0000", "//", "/*", "*/"]


def config() -> None:
    tiny = {"model": {"hidden_size": 32, "num_attention_heads": 4}, "data": {"train": "a/*.bin"}, "output": "runs/a"}
    write("config", "tiny_bert.json", json.dumps(tiny))
    tiny["model"] = {"model_type": "opt", "ffn_dim": 64, "dropout": 0.0, "attn_softmax": "softmax_n(4)", "init_std": 6e-3,
                     "word_embed_proj_dim": 16, "pad_token_id": "none"}
    write("config", "tiny_opt.json", json.dumps(tiny))
    write("config", "comments.json", '{ // one\n "training": {"steps": 1e3, "seed": 7} /* two */ }')
    wsd = {"schedule": {"type": "wsd", "warmup_steps": 2, "decay_steps": 3}, "training": {"micro_batch_size": 8},
           "data": {"special_token_ids": [0, 5], "mask_token_id": 4, "vocab_size": 10}}
    write("config", "wrong_block.json", json.dumps(wsd))
    del wsd["data"]["vocab_size"]
    write("config", "wsd.json", json.dumps(wsd))
    write("config", "overrides", '{"training":{"steps":5}}\0training.steps=7\0model={"model_type":"opt"}\0output=runs/b\0a.b.c=1')
    write("config", "every_block_empty", '{"model":{},"data":{},"training":{},"optimizer":{},"schedule":{},"evaluation":{},'
          '"checkpoint":{},"logging":{}}')
    write("config", "twice.json", '{"training":{"steps":1,"steps":2}}')
    write("config", "regression_deep", '{"model":' + "[" * 3000)
    write("config", "regression_number_beyond_double", '{"training":{"steps":1e999}}')
    write("config", "regression_deep_key", "{}\0" + "a." * 1500 + "b=1")
    keys = configuration_keys()
    words = {part for key in keys for part in key.split(".")}
    values = ["auto", "none", "bert", "opt", "gelu", "gelu_new", "relu", "vanilla", "softmax1", "softmax_n(4)", "linear",
              "cosine", "constant", "wsd", "masked_lm", "causal_lm", "stream", "documents", "bf16", "fp32", "huggingface"]
    dictionary("config", quoted([*words, *values]) + [f"{key}=" for key in keys] + JSON_WORDS)


def huggingface_config() -> None:
    bert = {"architectures": ["BertForMaskedLM"], "model_type": "bert", "hidden_act": "gelu", "hidden_size": 32,
            "initializer_range": 0.02, "intermediate_size": 64, "layer_norm_eps": 1e-12, "max_position_embeddings": 64,
            "num_attention_heads": 4, "num_hidden_layers": 2, "pad_token_id": None, "position_embedding_type": "absolute",
            "type_vocab_size": 2, "vocab_size": 100, "tie_word_embeddings": True, "attn_softmax": "softmax1"}
    write("huggingface_config", "bert.json", json.dumps(bert))
    opt = {"model_type": "opt", "activation_function": "relu", "attention_dropout": 0.0, "do_layer_norm_before": True,
           "dropout": 0.1, "enable_bias": True, "ffn_dim": 64, "hidden_size": 32, "init_std": 0.02, "pad_token_id": 1,
           "max_position_embeddings": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 100,
           "word_embed_proj_dim": 16, "_remove_final_layer_norm": False, "layer_norm_elementwise_affine": True}
    write("huggingface_config", "opt.json", json.dumps(opt))
    write("huggingface_config", "bare_bert.json", '{"model_type":"bert"}')
    write("huggingface_config", "post_norm.json", '{"model_type":"opt","do_layer_norm_before":false}')
    write("huggingface_config", "auto.json", '{"model_type":"bert","vocab_size":"auto","pad_token_id":"auto"}')
    write("huggingface_config", "regression_null_char", '{"model_type":"bert","attn_softmax":"softmax_n(\\u0000)"}')
    values = ["gelu", "gelu_new", "relu", "vanilla", "softmax1", "softmax_n(4)", "auto", "none", "absolute", "linear",
              "attention_init", "is_decoder"]
    dictionary("huggingface_config", quoted([*bert, *opt, *values, "bert", "opt"]) + JSON_WORDS)


def checkpoint_files() -> None:
    manifest = {"format_version": 1, "files": {"config.json": {"size": 10, "xxh64": "00112233445566ff"},
                                              "model.safetensors": {"size": 2**40, "xxh64": "0" * 16}}}
    write("manifest", "sound.json", json.dumps(manifest))
    manifest["files"]["../../elsewhere"] = {"size": 1, "xxh64": ""}
    write("manifest", "elsewhere.json", json.dumps(manifest))
    write("manifest", "no_files.json", '{"format_version":1,"files":{}}')
    write("manifest", "version.json", '{"format_version":2,"files":{}}')
    dictionary("manifest", quoted(["format_version", "files", "size", "xxh64", "model.safetensors", "..", "."]) + JSON_WORDS)

    trainer = {"format_version": 1, "program": "outeffhop 0.1.0", "step": 10, "updates": 9, "samples": 320,
               "bad_steps_in_a_row": 1, "seconds": 1.5, "window_losses": [4.5, 4], "window_gradient_norms": [1, 1.25],
               "data_fingerprint": "00", "device": "cpu", "config": {"training": {"steps": 20}, "output": "runs/a"}}
    write("trainer", "sound.json", json.dumps(trainer))
    write("trainer", "old.json", json.dumps({k: v for k, v in trainer.items() if k != "device" and "window" not in k}))
    write("trainer", "regression_float_step.json", json.dumps(trainer | {"step": 1e300}))
    write("trainer", "regression_negative_step.json", json.dumps(trainer | {"step": -1}))
    write("trainer", "regression_deep_config.json", json.dumps(trainer)[:-1] + ', "x": ' + "[" * 3000)
    dictionary("trainer", quoted([*trainer, "training", "steps", "output", "model"]) + JSON_WORDS)


def metadata() -> None:
    sound = {"version": 1, "vocab_size": 100, "special_ids": [0, 1, 2], "mask_id": 2, "pad_id": 0, "cls_id": None,
             "sep_id": -1, "bos_id": 3, "eos_id": 4, "unigram_perplexity": {"all": 50.5, "non_special": 40}}
    write("metadata", "sound.json", json.dumps(sound))
    write("metadata", "empty.json", "{}")
    write("metadata", "beyond.json", json.dumps(sound | {"mask_id": 100}))
    write("metadata", "regression_number_beyond_double.json", '{"vocab_size":1e999}')
    dictionary("metadata", quoted([*sound, "all", "non_special"]) + JSON_WORDS)


def shard() -> None:
    tokens = struct.pack("<6H", 1, 2, 3, 65535, 5, 6)
    write("shard", "version_1", struct.pack("<5i", 20240520, 1, 6, 0, 0) + tokens)
    write("shard", "version_2_narrow", struct.pack("<5i", 20240520, 2, 2, 6, 0) + tokens)
    write("shard", "version_2_wide", struct.pack("<5i", 20240520, 2, 4, 3, 0) + tokens)
    write("shard", "version_2_huge", struct.pack("<5i", 20240520, 2, 4, 0, -1) + tokens)
    write("shard", "whole_file", struct.pack("<256i", 20240520, 1, 6, *[0] * 253) + tokens)
    (HERE / "shard.dict").write_text('"\\x88\\xd8\\x34\\x01"\n"\\x01\\x00\\x00\\x00"\n"\\x02\\x00\\x00\\x00"\n'
                                     '"\\x04\\x00\\x00\\x00"\n"\\xff\\xff\\xff\\xff"\n')


def document_index() -> None:
    def index(count: int, starts: list[int], tokens: int, words: int = 4) -> bytes:
        head = struct.pack("<4I", 20240521, 1, count & 0xFFFFFFFF, count >> 32) + bytes(4 * (words - 4))
        return struct.pack("<Q", tokens) + head + struct.pack(f"<{len(starts)}Q", *starts)

    write("document_index", "three", index(3, [0, 4, 9], 12))
    write("document_index", "empty_documents", index(5, [0, 0, 4, 4, 12], 12))
    write("document_index", "backwards", index(3, [0, 9, 4], 12))
    write("document_index", "huge_count", index(2**61, [0], 12))
    write("document_index", "whole_file", index(2, [0, 5], 12, words=256))
    (HERE / "document_index.dict").write_text('"\\x89\\xd8\\x34\\x01"\n"\\x01\\x00\\x00\\x00"\n'
                                              '"\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xff"\n')


def safetensors() -> None:
    def tensor(dtype: str, shape: list[int], begin: int, end: int) -> dict:
        return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}

    def file(header: dict, data: bytes, framed: bool) -> bytes:
        text = json.dumps(header).encode()
        return (struct.pack("<Q", len(text)) + text if framed else text + b"\0") + data

    two = {"__metadata__": {"format": "pt"}, "a": tensor("F32", [2], 0, 8), "b.weight": tensor("F16", [2, 1], 8, 12)}
    data = struct.pack("<2f2e", 1.5, float("nan"), -2.0, 6e-8)
    write("safetensors", "floats", file(two, data, False))
    write("safetensors", "floats_whole_file", file(two, data, True))
    write("safetensors", "integers", file({"i": tensor("I64", [2], 0, 16), "j": tensor("I32", [], 16, 20)},
                                          struct.pack("<2qi", -100, 2**40, 7), False))
    write("safetensors", "bf16_and_empty", file({"e": tensor("F32", [0, 5], 0, 0), "h": tensor("BF16", [1], 0, 2)},
                                                b"\x80\x3f", False))
    write("safetensors", "gap", file({"a": tensor("F32", [1], 4, 8)}, bytes(8), False))
    write("safetensors", "no_tensors", "{}\0")
    write("safetensors", "overflowing_shape", file({"a": tensor("F32", [2**62, 2**62], 0, 8)}, bytes(8), False))
    write("safetensors", "length_lies", struct.pack("<Q", 2**63) + b"{}")
    write("safetensors", "regression_twice", b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
          b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}\0\1\2\3\4')
    dictionary("safetensors", quoted(["dtype", "shape", "data_offsets", "__metadata__", "F32", "F16", "BF16", "I64", "I32"])
               + JSON_WORDS)


for make in (config, huggingface_config, checkpoint_files, metadata, shard, document_index, safetensors):
    make()
