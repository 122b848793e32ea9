"""Text files to documents: plain text or JSON lines, plain or compressed, never a whole file at once."""

import glob
import gzip
import hashlib
import io
import json
import lzma
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Iterable, Iterator, Sequence

from corpus import CorpusError

EXTENSIONS = (".txt", ".txt.gz", ".txt.xz", ".jsonl", ".jsonl.gz", ".jsonl.xz")
SEPARATORS = ("blank", "line", "file")
CHUNK_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class Source:
    """Where documents come from and how they are told apart."""

    paths: tuple[Path, ...]
    separator: str = "blank"
    text_key: str = "text"


class Progress:
    """Bytes of the files (as they lie on disk) that have been read."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.total = sum(path.stat().st_size for path in paths)
        self.read = 0


def expand_inputs(patterns: Sequence[str]) -> tuple[Path, ...]:
    """The files of the patterns, each once, in the order given (those of one pattern by name)."""
    paths: dict[Path, None] = {}
    for pattern in patterns:
        expanded = os.path.expanduser(pattern)
        found = [expanded] if os.path.exists(expanded) else sorted(glob.glob(expanded, recursive=True))
        if not found:
            raise CorpusError(f"no input file matches {pattern}")
        for name in found:
            path = Path(name)
            if not path.is_file():
                raise CorpusError(f"input {name} is not a file: name its files, e.g. '{name}/*.txt'")
            if not name.endswith(EXTENSIONS):
                raise CorpusError(f"input {name} has an unknown extension, expected one of {', '.join(EXTENSIONS)}")
            paths[path] = None
    return tuple(paths)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def is_validation(document: str, fraction: float) -> bool:
    """Whether a document is in the validation split: decided by its own text, so that a copy cannot be in both splits and
    adding documents moves none."""
    digest = hashlib.blake2b(document.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") < fraction * 2.0**64


def iterate_documents(source: Source, progress: Progress | None = None) -> Iterator[str]:
    """The non-empty documents of all files, in order."""
    for path in source.paths:
        before = progress.read if progress else 0
        try:
            with open(path, "rb") as raw, io.TextIOWrapper(_decompressed(path, raw), encoding="utf-8-sig") as lines:
                for document in _documents_of(path, lines, source):
                    if progress:
                        progress.read = before + raw.tell()
                    yield document
            if progress:
                progress.read = before + path.stat().st_size
        except UnicodeDecodeError as error:
            raise CorpusError(f"{path} is not UTF-8 text: {error.reason} (convert it, e.g. with iconv)") from error
        except (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error) as error:
            raise CorpusError(f"{path} cannot be decompressed: {error}") from error
        except OSError as error:
            raise CorpusError(f"cannot read {path}: {error.strerror or error}") from error


def chunks(documents: Iterable[str], characters: int = CHUNK_CHARACTERS) -> Iterator[list[str]]:
    """Documents in lists of about a megabyte: what one worker takes at a time."""
    chunk: list[str] = []
    size = 0
    for document in documents:
        chunk.append(document)
        size += len(document)
        if size >= characters:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _documents_of(path: Path, lines: io.TextIOWrapper, source: Source) -> Iterator[str]:
    if ".jsonl" in path.suffixes:
        return _json_documents(path, lines, source.text_key)
    if source.separator == "line":
        return _line_documents(lines)
    if source.separator == "file":
        return _whole_document(lines)
    return _blank_line_documents(lines)


def _decompressed(path: Path, raw: BinaryIO) -> BinaryIO:
    if path.suffix == ".gz":
        return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]
    if path.suffix == ".xz":
        return lzma.LZMAFile(raw)  # type: ignore[return-value]
    return raw


def _json_documents(path: Path, lines: Iterable[str], text_key: str) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise CorpusError(f"{path}, line {number}, is not valid JSON: {error.msg}") from error
        if not isinstance(record, dict) or not isinstance(record.get(text_key), str):
            raise CorpusError(f'{path}, line {number}, is not an object with a text "{text_key}" (see --text-key)')
        # JSON can spell half a surrogate pair, which is no character and which no tokenizer takes.
        text = record[text_key].encode("utf-8", "replace").decode("utf-8")
        if text.strip():
            yield text


def _line_documents(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        if line.strip():
            yield line.rstrip("\n")


def _whole_document(lines: io.TextIOWrapper) -> Iterator[str]:
    text = lines.read()
    if text.strip():
        yield text


def _blank_line_documents(lines: Iterable[str]) -> Iterator[str]:
    paragraphs: list[str] = []
    for line in lines:
        if line.strip():
            paragraphs.append(line.rstrip("\n"))
        elif paragraphs:
            yield "\n".join(paragraphs)
            paragraphs = []
    if paragraphs:
        yield "\n".join(paragraphs)
