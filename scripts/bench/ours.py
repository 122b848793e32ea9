"""A training run of ours that goes on and rests on demand."""

import json
import os
import pathlib
import random
import signal
import struct
import subprocess
import time
from array import array

from .shapes import MLM_PROBABILITY

START_SECONDS = 300  # the longest that one step may take


def write_shard(folder, vocabulary, tokens=1 << 20):
    """A shard (llm.c's format) of random tokens with its metadata; the same at every call."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    special = [0, 100, 101, 102, 103]
    draw = random.Random(1)
    body = array("H", (draw.randrange(1000, vocabulary) for _ in range(tokens)))
    header = struct.pack("<256i", 20240520, 1, tokens, *[0] * 253)
    if struct.pack("=H", 1) != struct.pack("<H", 1):
        body.byteswap()
    (folder / "random_train_000.bin").write_bytes(header + body.tobytes())
    (folder / "metadata.json").write_text(json.dumps(
        {"vocab_size": vocabulary, "special_ids": special, "mask_id": 103, "pad_id": 0, "bos_id": 101, "eos_id": 102}))
    return folder / "random_train_*.bin"


def configuration(shape, dtype, threads, shards, attn_softmax, logging_interval=1):
    residual, attention = shape.dropout
    return {
        "model": {"model_type": shape.family, "vocab_size": shape.vocabulary, "hidden_size": shape.hidden,
                  "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads, "intermediate_size": shape.ffn,
                  "hidden_dropout_prob": residual, "attention_probs_dropout_prob": attention,
                  "max_position_embeddings": max(512, shape.T), "attn_softmax": attn_softmax},
        "data": {"train": str(shards), "sequence_length": shape.T} |
                ({"mlm_probability": MLM_PROBABILITY} if shape.family == "bert" else {}),
        "training": {"steps": 1000000, "global_batch_size": shape.B, "dtype": dtype, "threads": threads},
        "optimizer": {"learning_rate": 1e-4, "max_gradient_norm": 1.0},
        "evaluation": {"interval": 0},
        "checkpoint": {"interval": 0},
        "logging": {"interval": logging_interval},
    }


class OurRun:
    """`outeffhop train` in `folder`, stopped by SIGSTOP but for the blocks of steps asked of it; killed without saving."""

    def __init__(self, program, config, folder, environment, device="cpu"):
        self._folder = pathlib.Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        config_file = self._folder / "bench.json"
        config_file.write_text(json.dumps(config))
        self._metrics = self._folder / "run" / "metrics.jsonl"
        self._log = open(self._folder / "log", "w+")
        self._tokens = config["training"]["global_batch_size"] * config["data"]["sequence_length"]
        self._process = subprocess.Popen(
            [program, "train", "--config", config_file, "--out", self._folder / "run", "--device", device],
            env=environment,
            stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log)

    def _logged(self):
        """The seconds of a step, of each logged line so far."""
        text = self._metrics.read_text() if self._metrics.exists() else ""
        complete = text[: text.rfind("\n") + 1].splitlines()
        return [self._tokens / json.loads(line)["tokens_per_second"] for line in complete]

    def block(self, steps, seconds, warm_up=1):
        """Goes on for `warm_up` steps, which hold the rest before or cold caches, and then for `steps` and `seconds`, whichever
        is more; returns the seconds of each of these."""
        before = len(self._logged())
        os.kill(self._process.pid, signal.SIGCONT)
        limit = time.monotonic() + START_SECONDS
        while True:
            times = self._logged()[before + warm_up:]
            if len(times) >= steps and sum(times) >= seconds:
                break
            if self._process.poll() is not None or time.monotonic() > limit:
                self._log.seek(0)
                raise RuntimeError(f"our run in {self._folder} did not go on: {self._log.read()[-1000:]}")
            time.sleep(0.02)
        os.kill(self._process.pid, signal.SIGSTOP)
        return times

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()
        self._log.close()
