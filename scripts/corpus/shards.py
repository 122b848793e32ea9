"""Token shards (data/shards.h says what is in them), the index of their documents, and unigram statistics.

A shard NAME_000000.bin has a sidecar NAME_000000.idx: 256 little-endian int32 of header {20240521, 1, document count low
word, high word, 0, ...}, then one little-endian uint64 a document: the position of its first token in the shard. The
positions ascend from 0; a document ends where the next one starts, the last one with the shard. No document crosses two
shards.
"""

import math
from pathlib import Path
from typing import Sequence

import numpy as np

from corpus import CorpusError

SHARD_MAGIC = 20240520
INDEX_MAGIC = 20240521
HEADER_WORDS = 256
LARGEST_VERSION_1_COUNT = 2**31 - 1


def token_type(vocab_size: int) -> np.dtype:
    """uint16 where every id fits, as in llm.c; uint32 otherwise."""
    return np.dtype("<u2") if vocab_size <= 65536 else np.dtype("<u4")


def shard_header(token_count: int, dtype: np.dtype) -> bytes:
    """Version 1 wherever it can hold the shard, so that llm.c reads it; version 2 otherwise."""
    words = np.zeros(HEADER_WORDS, "<u4")
    if dtype.itemsize == 2 and token_count <= LARGEST_VERSION_1_COUNT:
        words[:3] = (SHARD_MAGIC, 1, token_count)
    else:
        words[:5] = (SHARD_MAGIC, 2, dtype.itemsize, token_count & 0xFFFFFFFF, token_count >> 32)
    return words.tobytes()


class SplitWriter:
    """Writes the documents of one split into shards of at most `shard_tokens` tokens; a longer document gets its own."""

    def __init__(self, directory: Path, name: str, dtype: np.dtype, shard_tokens: int, vocab_size: int) -> None:
        self.shards: list[dict[str, int | str]] = []
        self.counts = np.zeros(vocab_size, np.int64)
        self.documents = 0
        self._directory, self._name, self._dtype, self._shard_tokens = directory, name, dtype, shard_tokens
        self._file = None
        self._starts: list[int] = []
        self._tokens = 0

    def add(self, tokens: np.ndarray) -> None:
        """Appends one document."""
        if self._file and self._tokens + len(tokens) > self._shard_tokens:
            self.close()
        if not self._file:
            self._file = open(self._path(".bin"), "wb")
            self._file.write(bytes(4 * HEADER_WORDS))
        self._starts.append(self._tokens)
        self._file.write(tokens.astype(self._dtype, copy=False).tobytes())
        self._tokens += len(tokens)
        self.documents += 1
        np.add.at(self.counts, tokens, 1)

    def close(self) -> None:
        """Ends the shard in hand, if there is one."""
        if not self._file:
            return
        self._file.seek(0)
        self._file.write(shard_header(self._tokens, self._dtype))
        self._file.close()
        self._write_index()
        self.shards.append({"file": self._path(".bin").name, "tokens": self._tokens, "documents": len(self._starts)})
        self._file, self._starts, self._tokens = None, [], 0

    def _write_index(self) -> None:
        words = np.zeros(HEADER_WORDS, "<u4")
        words[:4] = (INDEX_MAGIC, 1, len(self._starts) & 0xFFFFFFFF, len(self._starts) >> 32)
        with open(self._path(".idx"), "wb") as file:
            file.write(words.tobytes())
            file.write(np.array(self._starts, "<u8").tobytes())

    def _path(self, extension: str) -> Path:
        return self._directory / f"{self._name}_{len(self.shards):06d}{extension}"


def read_shard(path: Path) -> np.ndarray:
    """The tokens of a shard of either version."""
    content = path.read_bytes()
    words = np.frombuffer(content[: 4 * HEADER_WORDS], "<u4")
    if len(words) < HEADER_WORDS or words[0] != SHARD_MAGIC or words[1] not in (1, 2):
        raise CorpusError(f"{path} is not a token shard")
    dtype = np.dtype("<u2") if words[1] == 1 else np.dtype(f"<u{words[2]}")
    count = int(words[2]) if words[1] == 1 else int(words[3]) | int(words[4]) << 32
    tokens = np.frombuffer(content, dtype, offset=4 * HEADER_WORDS)
    if len(tokens) != count:
        raise CorpusError(f"{path} holds {len(tokens)} tokens but promises {count}")
    return tokens


def read_index(path: Path) -> np.ndarray:
    """The document starts in a shard's sidecar."""
    content = path.read_bytes()
    words = np.frombuffer(content[: 4 * HEADER_WORDS], "<u4")
    starts = np.frombuffer(content, "<u8", offset=4 * HEADER_WORDS)
    if words[0] != INDEX_MAGIC or words[1] != 1 or len(starts) != int(words[2]) | int(words[3]) << 32:
        raise CorpusError(f"{path} is not an index of documents")
    return starts


def unigram_perplexity(train: np.ndarray, validation: np.ndarray, excluded: Sequence[int] = ()) -> float | None:
    """exp of the mean over validation tokens of -log p, where p is the training frequency smoothed by one count an id; ids
    in `excluded` are in neither. None when no validation token is left."""
    kept = np.ones(len(train), bool)
    kept[list(excluded)] = False
    smoothed = train[kept].astype(np.float64) + 1.0
    seen = validation[kept].astype(np.float64)
    if seen.sum() == 0:
        return None
    return math.exp(float(seen @ (math.log(smoothed.sum()) - np.log(smoothed))) / seen.sum())
