#!/usr/bin/env python3
"""Turns text into token shards for outeffhop (and llm.c), with a metadata.json beside them.

Written to --output: NAME_train_000000.bin and so on, NAME_val_000000.bin, an .idx beside each (where its documents
start; see scripts/corpus/shards.py), tokenizer.json with the vocabulary files, and last of all metadata.json: ids of
special tokens, counts, hashes, settings, and the perplexity on the validation split of the training split's unigram
distribution (counts smoothed by one an id; once over all tokens, once with special tokens left out of both).
"""

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections import deque
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Iterator, Sequence

try:
    import numpy as np
    import tokenizers
    from tokenizers import Tokenizer
except ImportError as error:
    sys.exit(
        f"tokenize_corpus.py: error: {error.name} is not installed: run scripts/setup.sh --python, then use .venv/bin/python"
    )

sys.path.insert(0, str(Path(__file__).resolve().parent))
from corpus import CorpusError, documents, shards, vocabulary  # noqa: E402

METADATA_VERSION = 1
SPLITS = ("train", "val")

EXAMPLES = """
examples:
  # BERT: your text, documents separated by blank lines, and bert-base-uncased's vocab.txt
  tokenize_corpus.py --input corpus/*.txt --style bert --tokenizer vocab.txt --output corpora/bert --validation-fraction 0.01

  # BERT with a vocabulary of its own
  tokenize_corpus.py --input corpus/*.txt.gz --style bert --train-vocab wordpiece --vocab-size 8192 --output corpora/small

  # OPT from JSON lines {"text": ...}
  tokenize_corpus.py --input c4.*.jsonl.gz --style opt --tokenizer vocab.json merges.txt --output corpora/opt --workers 8
"""


class ProgressLine:
    """One line on a terminal, rewritten; elsewhere a line every ten seconds."""

    def __init__(self, progress: documents.Progress) -> None:
        self._progress = progress
        self._start = self._shown = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def show(self, document_count: int, token_count: int, last: bool = False) -> None:
        now = time.monotonic()
        if not last and now - self._shown < (0.2 if self._terminal else 10.0):
            return
        self._shown = now
        share = self._progress.read / max(self._progress.total, 1)
        rate = token_count / max(now - self._start, 1e-9)
        line = f"{share:4.0%} of input read, {document_count:,} documents, {token_count:,} tokens, {rate:,.0f} tokens/s"
        print(f"\r{line}\033[K" if self._terminal else line, end="\n" if last or not self._terminal else "", file=sys.stderr,
              flush=True)


# What one worker process holds: set once when it starts, since a tokenizer is slow to send along with every chunk.
_worker: dict[str, Any] = {}

Encoded = list[tuple[bool, np.ndarray]]  # one a document: whether it is in the validation split, and its tokens


def start_worker(tokenizer_json: str, style: str, validation_fraction: float) -> None:
    """Prepares a process to encode chunks."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = Tokenizer.from_str(tokenizer_json)
    before, after = vocabulary.frame(tokenizer, style)
    _worker.update(tokenizer=tokenizer, before=before, after=after, fraction=validation_fraction)


def encode_chunk(chunk: list[str]) -> Encoded:
    """The tokens of each document, framed as the style wants."""
    encodings = _worker["tokenizer"].encode_batch(chunk, add_special_tokens=False)
    return [
        (
            documents.is_validation(text, _worker["fraction"]),
            np.array(_worker["before"] + encoding.ids + _worker["after"], np.uint32),
        )
        for text, encoding in zip(chunk, encodings)
    ]


def encode_all(chunks: Iterator[list[str]], initial: tuple[str, str, float], workers: int) -> Iterator[Encoded]:
    """encode_chunk of every chunk, in order, with a bounded number of chunks in memory."""
    if workers == 1:
        start_worker(*initial)
        yield from map(encode_chunk, chunks)
        return
    with ProcessPoolExecutor(workers, initializer=start_worker, initargs=initial) as pool:
        pending: deque[Future[Encoded]] = deque()
        try:
            for chunk in chunks:
                pending.append(pool.submit(encode_chunk, chunk))
                if len(pending) >= 2 * workers + 2:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            raise CorpusError("a worker process ended early, perhaps out of memory: try fewer --workers") from error
        finally:
            for future in pending:
                future.cancel()


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    value = int(text.replace("_", ""))
    if value < 1:
        raise ValueError
    return value


def fraction(text: str) -> float:
    """A number in [0, 1), for argparse."""
    value = float(text)
    if not 0.0 <= value < 1.0:
        raise ValueError
    return value


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", nargs="+", required=True, metavar="FILE",
                        help=f"files or globs: {', '.join(documents.EXTENSIONS)}")
    parser.add_argument("--text-key", default="text", metavar="KEY",
                        help="which value of a JSON line is the text (default: text)")
    parser.add_argument("--document-separator", choices=documents.SEPARATORS, default="blank",
                        help="how .txt files part documents: by blank lines (default), one a line, or one a file")
    parser.add_argument("--style", choices=sorted(vocabulary.STYLES), required=True,
                        help="bert: [CLS] document [SEP]; gpt2: <|endoftext|> document; opt: </s> document")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--tokenizer", nargs="+", type=Path, metavar="PATH",
                        help="a directory, a vocab.txt (WordPiece), a tokenizer.json, or a vocab.json and its merges.txt")
    source.add_argument("--train-vocab", choices=("wordpiece", "bpe"), help="make a vocabulary from the training documents")
    parser.add_argument("--vocab-size", type=positive, metavar="N", help="tokens of the vocabulary --train-vocab makes")
    parser.add_argument("--cased", action="store_true",
                        help="WordPiece: keep case and accents (default: lowercase, no accents)")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="one corpus a directory; made if missing")
    parser.add_argument("--prefix", default="corpus", metavar="NAME", help="how shard names begin (default: corpus)")
    parser.add_argument("--validation-fraction", type=fraction, default=0.01, metavar="F",
                        help="share of the documents held out, chosen by a hash of their text (default: 0.01)")
    parser.add_argument("--shard-tokens", type=positive, default=100_000_000, metavar="N",
                        help="tokens a shard (default: 100,000,000)")
    parser.add_argument("--workers", type=positive, default=os.cpu_count() or 1, metavar="N",
                        help="processes (default: one a CPU)")
    parser.add_argument("--skip-if-done", action="store_true",
                        help="do nothing when --output holds this very corpus already: same settings and inputs, intact files")
    options = parser.parse_args(arguments)
    if options.train_vocab and not options.vocab_size:
        parser.error("--train-vocab needs --vocab-size N, e.g. 8192")
    if options.vocab_size and not options.train_vocab:
        parser.error("--vocab-size goes with --train-vocab only: a given tokenizer has its own size")
    if not re.fullmatch(r"[A-Za-z0-9._-]+", options.prefix):
        parser.error(f"--prefix {options.prefix!r} may hold letters, digits, dots, dashes and underscores only")
    return options


def hashed(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Name, size and SHA-256 of files."""
    return [{"file": path.name, "bytes": path.stat().st_size, "sha256": documents.sha256(path)} for path in paths]


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """Every option that changes what is written."""
    settings = {
        "style": options.style,
        "document_separator": options.document_separator,
        "text_key": options.text_key,
        "lowercase": not options.cased,
        "prefix": options.prefix,
        "validation_fraction": options.validation_fraction,
        "shard_tokens": options.shard_tokens,
        "train_vocab": options.train_vocab,
        "vocab_size": options.vocab_size,
        "tokenizer": None,
    }
    if options.tokenizer:
        settings["tokenizer"] = hashed(vocabulary.tokenizer_files(options.tokenizer))
    return settings


def is_done(directory: Path, settings: dict[str, Any], inputs: list[dict[str, Any]]) -> bool:
    """Whether the directory holds what these settings and inputs give, with every file intact."""
    try:
        metadata = json.loads((directory / "metadata.json").read_text(encoding="utf-8"))
        if (metadata["version"], metadata["settings"], metadata["inputs"]) != (METADATA_VERSION, settings, inputs):
            return False
        recorded = metadata["files"]
        return bool(recorded) and recorded == hashed([directory / entry["file"] for entry in recorded])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def make_tokenizer(options: argparse.Namespace, source: documents.Source) -> Tokenizer:
    """The tokenizer the options name, read or trained."""
    if options.tokenizer:
        return vocabulary.load_tokenizer(options.tokenizer, options.style, not options.cased)
    print(f"training a {options.train_vocab} vocabulary of {options.vocab_size:,} tokens", file=sys.stderr, flush=True)
    held_out = options.validation_fraction
    texts = (text for text in documents.iterate_documents(source) if not documents.is_validation(text, held_out))
    tokenizer = vocabulary.train_tokenizer(options.train_vocab, options.vocab_size, texts, options.style, not options.cased)
    size = vocabulary.vocabulary_size(tokenizer)
    if size < options.vocab_size:
        print(f"note: the text is enough for {size:,} tokens only, fewer than the {options.vocab_size:,} of --vocab-size",
              file=sys.stderr)
    return tokenizer


def write_shards(
    options: argparse.Namespace, source: documents.Source, tokenizer: Tokenizer, directory: Path
) -> dict[str, shards.SplitWriter]:
    """Encodes everything into shards in `directory`."""
    size = vocabulary.vocabulary_size(tokenizer)
    dtype = shards.token_type(size)
    writers = {
        split: shards.SplitWriter(directory, f"{options.prefix}_{split}", dtype, options.shard_tokens, size)
        for split in SPLITS
    }
    progress = documents.Progress(source.paths)
    line = ProgressLine(progress)
    chunks = documents.chunks(documents.iterate_documents(source, progress))
    document_count = token_count = 0
    for encoded in encode_all(chunks, (tokenizer.to_str(), options.style, options.validation_fraction), options.workers):
        for is_validation, tokens in encoded:
            writers["val" if is_validation else "train"].add(tokens)
            document_count += 1
            token_count += len(tokens)
        line.show(document_count, token_count)
    for writer in writers.values():
        writer.close()
    if document_count == 0:
        raise CorpusError(f"the input holds no documents: {', '.join(map(str, source.paths[:3]))} has no text")
    line.show(document_count, token_count, last=True)
    check_splits(writers, options.validation_fraction, document_count)
    return writers


def check_splits(writers: dict[str, shards.SplitWriter], validation_fraction: float, document_count: int) -> None:
    """Refuses an empty split: a run would find out much later."""
    if writers["train"].documents == 0 or (validation_fraction > 0.0 and writers["val"].documents == 0):
        empty = "training" if writers["train"].documents == 0 else "validation"
        raise CorpusError(
            f"the {empty} split got none of the {document_count} documents: change --validation-fraction "
            f"{validation_fraction:g}, or part documents more finely with --document-separator"
        )


def metadata_of(
    options: argparse.Namespace, tokenizer: Tokenizer, writers: dict[str, shards.SplitWriter]
) -> dict[str, Any]:
    """What the trainer and people want to know of the corpus; data/metadata.cpp reads the first keys."""
    specials = vocabulary.special_ids(tokenizer, options.style)
    train, validation = writers["train"].counts, writers["val"].counts
    return {
        "version": METADATA_VERSION,
        "vocab_size": vocabulary.vocabulary_size(tokenizer),
        "special_ids": specials,
        **vocabulary.role_ids(tokenizer, options.style),
        "unigram_perplexity": {
            "all": shards.unigram_perplexity(train, validation),
            "non_special": shards.unigram_perplexity(train, validation, specials),
        },
        "style": options.style,
        "tokenizer": {"model": type(tokenizer.model).__name__, "library": f"tokenizers {tokenizers.__version__}"},
        "splits": {
            split: {
                "documents": writer.documents,
                "tokens": int(writer.counts.sum()),
                "special_tokens": int(writer.counts[specials].sum()),
                "shards": writer.shards,
            }
            for split, writer in writers.items()
        },
    }


def install(staging: Path, directory: Path, prefix: str, metadata: dict[str, Any]) -> None:
    """Moves finished files into place, metadata.json last: a directory without one was not finished."""
    names = sorted(path.name for path in staging.iterdir())
    (directory / "metadata.json").unlink(missing_ok=True)
    pattern = re.compile(re.escape(prefix) + r"_(train|val)_\d{6}\.(bin|idx)")
    for old in directory.iterdir():
        if pattern.fullmatch(old.name) or (old.name in vocabulary.TOKENIZER_FILES and old.name not in names):
            old.unlink()
    for name in names:
        os.replace(staging / name, directory / name)
    temporary = staging / "metadata.json"
    temporary.write_text(json.dumps(metadata, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, directory / "metadata.json")


def run(options: argparse.Namespace) -> None:
    """Does what the command line asks for."""
    paths = documents.expand_inputs(options.input)
    source = documents.Source(paths, options.document_separator, options.text_key)
    settings, inputs = settings_of(options), hashed(paths)
    if options.skip_if_done and is_done(options.output, settings, inputs):
        print(f"{options.output} already holds this corpus")
        return
    tokenizer = make_tokenizer(options, source)
    options.output.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".tokenize-", dir=options.output))
    try:
        writers = write_shards(options, source, tokenizer, staging)
        vocabulary.save_tokenizer(tokenizer, options.style, staging)
        metadata = metadata_of(options, tokenizer, writers)
        metadata.update(settings=settings, inputs=inputs, files=hashed(sorted(staging.iterdir())))
        install(staging, options.output, options.prefix, metadata)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    report(options.output, metadata)


def report(directory: Path, metadata: dict[str, Any]) -> None:
    """A short summary on standard output."""
    for split, content in metadata["splits"].items():
        count = len(content["shards"])
        print(f"{split}: {content['documents']:,} documents, {content['tokens']:,} tokens, {count} shard(s)")
    perplexity = metadata["unigram_perplexity"]
    if perplexity["all"]:
        print(f"vocabulary {metadata['vocab_size']:,}; unigram perplexity of the validation split: {perplexity['all']:.2f} "
              f"over all tokens, {perplexity['non_special'] or float('nan'):.2f} over those that are not special")
    print(f"written to {directory}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The program: 0, or 1 after one line saying what went wrong."""
    options = parse_arguments(arguments)
    try:
        run(options)
    except CorpusError as error:
        print(f"tokenize_corpus.py: error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"tokenize_corpus.py: error: {error.strerror or error}: {error.filename}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ntokenize_corpus.py: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
