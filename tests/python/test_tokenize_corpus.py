"""scripts/tokenize_corpus.py, run as users run it, on inputs small enough to check by hand."""

import contextlib
import gzip
import io
import json
import lzma
import math
import os
import struct
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import numpy as np
from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer, Tokenizer

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import tokenize_corpus  # noqa: E402
from corpus import documents, shards, vocabulary  # noqa: E402

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", "!", "the", "cat", "cafe", "sat", "on", "mat", "##s",
              "##ting", "dog", "world", "hello", "世", "界", "a", "b", "##a", "##b"]

DOCUMENTS = [
    "The cat sat on the mat.",
    "Cafés, cats!\nThe dog sat\ton the cat.",
    "Hello 世界 world\x00\x07, hello.",
    "abba [MASK] zebra\u200b dog",
] + [f"The dog sat on {'cat ' * (i % 5 + 1)}the mat{'s' * (i % 2)}." for i in range(60)]


def run(*arguments: object) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of the program."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = tokenize_corpus.main([str(argument) for argument in arguments])
        except SystemExit as exit_:
            status = exit_.code if isinstance(exit_.code, int) else 1
    return status, out.getvalue(), err.getvalue()


class CorpusTest(unittest.TestCase):
    """Gives each test a directory with a small corpus and a BERT vocabulary."""

    def setUp(self) -> None:
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.directory = Path(temporary.name)
        self.output = self.directory / "out"
        self.vocabulary = self.directory / "vocab.txt"
        self.vocabulary.write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
        self.text = self.directory / "text.txt"
        self.text.write_text("\n\n".join(DOCUMENTS) + "\n", encoding="utf-8")

    def tokenize(self, *extra: object, style: str = "bert", source: Path | None = None) -> dict:
        """Runs the program with a vocabulary unless `extra` names one; returns the metadata."""
        arguments = ["--input", source or self.text, "--style", style, "--output", self.output, "--workers", 1, *extra]
        if "--tokenizer" not in extra and "--train-vocab" not in extra:
            arguments += ["--tokenizer", self.vocabulary]
        if "--validation-fraction" not in extra:
            arguments += ["--validation-fraction", 0.2]
        status, _, err = run(*arguments)
        self.assertEqual(status, 0, err)
        return json.loads((self.output / "metadata.json").read_text(encoding="utf-8"))

    def split(self, split: str) -> list[list[int]]:
        """The documents of a split, cut by the sidecar index."""
        result = []
        for shard in sorted(self.output.glob(f"*_{split}_*.bin")):
            tokens = shards.read_shard(shard)
            starts = [int(start) for start in shards.read_index(shard.with_suffix(".idx"))]
            self.assertEqual(starts[0], 0)
            for begin, end in zip(starts, starts[1:] + [len(tokens)]):
                self.assertLess(begin, end)
                result.append(tokens[begin:end].tolist())
        return result

    def all_documents(self) -> list[list[int]]:
        """Both splits, put back in the order of DOCUMENTS."""
        splits = {False: iter(self.split("train")), True: iter(self.split("val"))}
        fraction = json.loads((self.output / "metadata.json").read_text())["settings"]["validation_fraction"]
        ordered = [next(splits[documents.is_validation(text, fraction)]) for text in DOCUMENTS]
        self.assertEqual([list(rest) for rest in splits.values()], [[], []])
        return ordered

    def encoded_by_saved_tokenizer(self) -> list[list[int]]:
        """DOCUMENTS as a user of tokenizer.json encodes them."""
        tokenizer = Tokenizer.from_file(str(self.output / "tokenizer.json"))
        return [tokenizer.encode(text).ids for text in DOCUMENTS]

    def assert_refused(self, *arguments: object, parts: list[str]) -> None:
        status, _, err = run(*arguments)
        self.assertEqual(status, 1, err)
        lines = [line for line in err.splitlines() if "of input read" not in line and not line.startswith("training a ")]
        self.assertEqual(len(lines), 1, err)
        for part in parts:
            self.assertIn(part, err)


class BertTest(CorpusTest):
    def test_ids_are_those_of_bert_word_piece_tokenizer(self) -> None:
        for lowercase in (True, False):
            with self.subTest(lowercase=lowercase):
                self.tokenize(*([] if lowercase else ["--cased"]))
                reference = BertWordPieceTokenizer(str(self.vocabulary), lowercase=lowercase)
                expected = [reference.encode(text).ids for text in DOCUMENTS]  # adds [CLS] and [SEP] itself
                self.assertEqual(self.all_documents(), expected)
                self.assertEqual(self.encoded_by_saved_tokenizer(), expected)

    def test_a_pair_is_framed_as_bert_frames_it(self) -> None:
        self.tokenize()
        pair = Tokenizer.from_file(str(self.output / "tokenizer.json")).encode("the cat", "sat")
        self.assertEqual(pair.tokens, ["[CLS]", "the", "cat", "[SEP]", "sat", "[SEP]"])
        self.assertEqual(pair.type_ids, [0, 0, 0, 0, 1, 1])

    def test_a_document_by_hand(self) -> None:
        self.tokenize()
        ids = {token: number for number, token in enumerate(VOCABULARY)}
        expected = ["[CLS]", "cafe", "##s", ",", "cat", "##s", "!", "the", "dog", "sat", "on", "the", "cat", ".", "[SEP]"]
        self.assertEqual(self.all_documents()[1], [ids[token] for token in expected])

    def test_header_is_llm_c_s(self) -> None:
        metadata = self.tokenize("--prefix", "tiny")
        content = (self.output / "tiny_train_000000.bin").read_bytes()
        count = metadata["splits"]["train"]["tokens"]
        self.assertEqual(struct.unpack("<256i", content[:1024]), (20240520, 1, count) + (0,) * 253)
        self.assertEqual(len(content), 1024 + 2 * count)

    def test_metadata(self) -> None:
        metadata = self.tokenize()
        self.assertEqual(metadata["vocab_size"], len(VOCABULARY))
        self.assertEqual(metadata["special_ids"], [0, 1, 2, 3, 4])
        roles = [metadata[name] for name in ("pad_id", "cls_id", "sep_id", "mask_id", "bos_id", "eos_id")]
        self.assertEqual(roles, [0, 2, 3, 4, None, None])
        train, validation = self.split("train"), self.split("val")
        self.assertEqual(metadata["splits"]["train"]["documents"], len(train))
        self.assertEqual(metadata["splits"]["val"]["tokens"], sum(map(len, validation)))
        self.assertEqual(metadata["splits"]["val"]["special_tokens"], sum(t < 5 for d in validation for t in d))
        for entry in metadata["files"]:
            self.assertEqual(documents.sha256(self.output / entry["file"]), entry["sha256"])
        self.assertIn("corpus_train_000000.bin", [entry["file"] for entry in metadata["files"]])

    def test_unigram_perplexity(self) -> None:
        metadata = self.tokenize()
        train = [t for d in self.split("train") for t in d]
        validation = [t for d in self.split("val") for t in d]
        for key, least in (("all", 0), ("non_special", 5)):
            kept = [t for t in train if t >= least]
            logs = [math.log((kept.count(t) + 1) / (len(kept) + len(VOCABULARY) - least)) for t in validation if t >= least]
            self.assertAlmostEqual(metadata["unigram_perplexity"][key], math.exp(-sum(logs) / len(logs)), places=9)

    def test_trained_vocabulary_is_the_same_in_every_process(self) -> None:
        contents = set()
        for seed in ("1", "2", "3"):
            output = self.directory / f"trained{seed}"
            arguments = ["--input", self.text, "--style", "bert", "--train-vocab", "wordpiece", "--vocab-size", 90,
                         "--output", output, "--validation-fraction", 0.2, "--workers", 1]
            subprocess.run([sys.executable, SCRIPTS / "tokenize_corpus.py", *map(str, arguments)], check=True,
                           capture_output=True, env={**os.environ, "PYTHONHASHSEED": seed})
            contents.add((output / "vocab.txt").read_text(encoding="utf-8"))
        self.assertEqual(len(contents), 1)
        tokens = contents.pop().splitlines()
        self.assertEqual(tokens[:5], ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
        self.assertIn("cat", tokens)
        self.assertLessEqual(len(tokens), 90)

    def test_trained_vocabulary_reads_back_as_the_same_tokenizer(self) -> None:
        metadata = self.tokenize("--train-vocab", "wordpiece", "--vocab-size", 90)
        first = self.all_documents()
        trained = self.output
        for given in (trained, trained / "vocab.txt", trained / "tokenizer.json"):
            self.output = self.directory / "again"
            again = self.tokenize("--tokenizer", given)
            self.assertEqual(again["special_ids"], metadata["special_ids"])
            self.assertEqual(again["vocab_size"], metadata["vocab_size"])
            self.assertEqual(self.all_documents(), first)
            self.assertEqual(self.encoded_by_saved_tokenizer(), first)


class BpeTest(CorpusTest):
    def test_opt_begins_each_document_with_id_2(self) -> None:
        metadata = self.tokenize("--train-vocab", "bpe", "--vocab-size", 300, style="opt")
        self.assertEqual(metadata["special_ids"], [0, 1, 2, 3])
        self.assertEqual((metadata["bos_id"], metadata["eos_id"], metadata["pad_id"], metadata["mask_id"]), (2, 2, 1, None))
        reference = ByteLevelBPETokenizer(str(self.output / "vocab.json"), str(self.output / "merges.txt"))
        encoded = self.all_documents()
        self.assertEqual(encoded, [[2] + reference.encode(text).ids for text in DOCUMENTS])
        self.assertEqual([reference.decode(ids[1:]) for ids in encoded], DOCUMENTS)
        self.assertEqual(self.encoded_by_saved_tokenizer(), encoded)

    def test_gpt2_and_every_way_to_name_a_tokenizer(self) -> None:
        metadata = self.tokenize("--train-vocab", "bpe", "--vocab-size", 300, style="gpt2")
        self.assertEqual((metadata["bos_id"], metadata["eos_id"], metadata["pad_id"]), (0, 0, None))
        first = self.all_documents()
        self.assertTrue(all(ids[0] == 0 for ids in first))
        trained = self.output
        vocab, merges = trained / "vocab.json", trained / "merges.txt"
        for given in ([trained], [trained / "tokenizer.json"], [vocab, merges], [merges, vocab]):
            self.output = self.directory / "again"
            self.tokenize("--tokenizer", *given, style="gpt2")
            self.assertEqual(self.all_documents(), first)
            self.assertEqual(self.encoded_by_saved_tokenizer(), first)

    def test_no_file_of_an_earlier_tokenizer_stays(self) -> None:
        def tokenizer_files() -> set[str]:
            return {path.name for path in self.output.iterdir()} & set(vocabulary.TOKENIZER_FILES)

        self.tokenize()
        self.assertEqual(tokenizer_files(), {"tokenizer.json", "vocab.txt"})
        self.tokenize("--train-vocab", "bpe", "--vocab-size", 300, style="gpt2")
        self.assertEqual(tokenizer_files(), {"tokenizer.json", "vocab.json", "merges.txt"})
        self.tokenize()
        self.assertEqual(tokenizer_files(), {"tokenizer.json", "vocab.txt"})


class ShardTest(CorpusTest):
    def test_large_vocabularies_take_version_2(self) -> None:
        words = VOCABULARY + [f"word{i}" for i in range(70000)]
        self.vocabulary.write_text("\n".join(words) + "\n", encoding="utf-8")
        self.text.write_text("word69999 the\n\ncat word0\n", encoding="utf-8")
        self.tokenize("--validation-fraction", 0)
        content = (self.output / "corpus_train_000000.bin").read_bytes()
        self.assertEqual(struct.unpack("<5i", content[:20]), (20240520, 2, 4, 8, 0))
        expected = (2, len(VOCABULARY) + 69999, 8, 3, 2, 9, len(VOCABULARY), 3)
        self.assertEqual(struct.unpack("<8I", content[1024:]), expected)
        self.assertEqual(list(self.output.glob("*_val_*")), [])

    def test_header_counts_beyond_32_bits(self) -> None:
        large = struct.unpack("<5I", shards.shard_header(2**33 + 5, np.dtype("<u2"))[:20])
        self.assertEqual(large, (20240520, 2, 2, 5, 2))
        most = struct.unpack("<3I", shards.shard_header(2**31 - 1, np.dtype("<u2"))[:12])
        self.assertEqual(most, (20240520, 1, 2**31 - 1))

    def test_shards_end_between_documents(self) -> None:
        self.tokenize()
        whole = self.all_documents()
        metadata = self.tokenize("--shard-tokens", 40)
        self.assertEqual(self.all_documents(), whole)
        listed = metadata["splits"]["train"]["shards"]
        self.assertGreater(len(listed), 5)
        self.assertTrue(all(shard["tokens"] <= 40 for shard in listed))
        # Fewer, larger shards the next time: the old ones may not stay behind.
        self.tokenize()
        self.assertEqual(len(list(self.output.glob("*_train_*.bin"))), 1)
        # A document longer than a shard has one to itself.
        metadata = self.tokenize("--shard-tokens", 3)
        self.assertTrue(all(shard["documents"] == 1 for shard in metadata["splits"]["train"]["shards"]))
        self.assertEqual(self.all_documents(), whole)

    def test_workers_change_nothing(self) -> None:
        self.text.write_text("\n\n".join(f"{d} {i}" for i in range(600) for d in DOCUMENTS), encoding="utf-8")
        alone = self.tokenize()
        self.assertEqual(self.tokenize("--workers", 2)["files"], alone["files"])

    def test_splits_do_not_depend_on_order_and_do_not_overlap(self) -> None:
        self.tokenize("--validation-fraction", 0.3)
        train, validation = sorted(self.split("train")), sorted(self.split("val"))
        self.text.write_text("\n\n".join(reversed(DOCUMENTS)), encoding="utf-8")
        self.tokenize("--validation-fraction", 0.3)
        self.assertEqual((sorted(self.split("train")), sorted(self.split("val"))), (train, validation))
        copies = [text for text in DOCUMENTS if documents.is_validation(text, 0.3)]
        self.assertEqual(len(copies), len(validation))
        share = sum(documents.is_validation(str(i), 0.3) for i in range(10000)) / 10000
        self.assertLess(abs(share - 0.3), 5 * math.sqrt(0.3 * 0.7 / 10000))


class InputTest(CorpusTest):
    def test_every_kind_of_file_holds_the_same_documents(self) -> None:
        self.tokenize()
        expected = self.all_documents()
        text = self.text.read_bytes()
        records = "".join(json.dumps({"body": d, "id": i}) + "\n" for i, d in enumerate(DOCUMENTS)).encode()
        files = {
            "a.txt.gz": gzip.compress(text),
            "b.txt.xz": lzma.compress(text),
            "c.txt": b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"),
            "d.txt": b"\n\n" + text.replace(b"\n\n", b"\n \t\n\n\n"),
            "e.jsonl": records,
            "f.jsonl.gz": gzip.compress(records),
            "g.jsonl.xz": lzma.compress(records.replace(b"\n", b"\n\n")),
        }
        for name, content in files.items():
            with self.subTest(name):
                path = self.directory / name
                path.write_bytes(content)
                self.tokenize("--text-key", "body", source=path)
                self.assertEqual(self.all_documents(), expected)

    def test_separators(self) -> None:
        source = documents.Source((self.text,), "line")
        lines = [line for text in DOCUMENTS for line in text.split("\n")]
        self.assertEqual(list(documents.iterate_documents(source)), lines)
        source = documents.Source((self.text, self.text), "file")
        self.assertEqual(list(documents.iterate_documents(source)), [self.text.read_text(encoding="utf-8")] * 2)

    def test_globs_take_each_file_once_in_order(self) -> None:
        for name in ("y2.txt", "y1.txt", "x.jsonl"):
            (self.directory / name).write_text("a")
        base = str(self.directory)
        found = documents.expand_inputs([base + "/y?.txt", base + "/x.jsonl", base + "/y1.txt"])
        self.assertEqual([path.name for path in found], ["y1.txt", "y2.txt", "x.jsonl"])

    def test_half_a_surrogate_pair_is_no_error(self) -> None:
        path = self.directory / "s.jsonl"
        path.write_text('{"text": "the \\ud800 cat"}\n')
        self.tokenize("--validation-fraction", 0, source=path)
        self.assertEqual(len(self.split("train")), 1)


class ErrorTest(CorpusTest):
    def common(self, **changes: object) -> list[object]:
        options = {"--input": self.text, "--style": "bert", "--tokenizer": self.vocabulary, "--output": self.output,
                   "--workers": 1}
        options.update({"--" + name.replace("_", "-"): value for name, value in changes.items()})
        return [word for name, value in options.items() if value is not None for word in (name, value)]

    def test_inputs(self) -> None:
        missing = self.directory / "missing*.txt"
        self.assert_refused(*self.common(input=missing), parts=["no input file matches", str(missing)])
        self.assert_refused(*self.common(input=self.directory), parts=["not a file"])
        odd = self.directory / "book.pdf"
        odd.write_bytes(b"%PDF")
        self.assert_refused(*self.common(input=odd), parts=["book.pdf", "unknown extension", ".jsonl.xz"])
        for name, content, parts in (
            ("empty.txt", b"", ["no documents"]),
            ("blank.txt", b"\n \n\n", ["no documents"]),
            ("latin.txt", b"caf\xe9 \n", ["latin.txt", "UTF-8"]),
            ("cut.txt.gz", gzip.compress(b"the cat " * 1000)[:-12], ["cut.txt.gz", "decompressed"]),
            ("damaged.txt.gz", gzip.compress(b"the cat ")[:10] + b"\xff" * 40, ["damaged.txt.gz", "decompressed"]),
            ("cut.txt.xz", lzma.compress(b"the cat " * 1000)[:-12], ["cut.txt.xz", "decompressed"]),
            ("not.txt.gz", b"plain", ["not.txt.gz", "decompressed"]),
            ("bad.jsonl", b'{"text": "a"}\n{"text": \n', ["bad.jsonl, line 2", "JSON"]),
            ("key.jsonl", b'{"txt": "a"}\n', ["key.jsonl, line 1", '"text"', "--text-key"]),
        ):
            with self.subTest(name):
                (self.directory / name).write_bytes(content)
                self.assert_refused(*self.common(input=self.directory / name), parts=parts)

    def test_vocabularies(self) -> None:
        self.assert_refused(*self.common(tokenizer=self.directory / "no.txt"), parts=["no.txt", "does not exist"])
        self.assert_refused(*self.common(style="opt"), parts=["vocab.txt", "</s>, <pad>", "--style opt"])
        self.vocabulary.write_text("\n".join(VOCABULARY[:3]) + "\n")
        self.assert_refused(*self.common(), parts=["lacks [SEP], [MASK]", "--style bert"])
        self.vocabulary.write_text("\n".join(VOCABULARY + ["cat"]) + "\n", encoding="utf-8")
        self.assert_refused(*self.common(), parts=["'cat' twice", "lines 10 and 26"])
        alone = self.directory / "vocab.json"
        alone.write_text('{"a": 0}')
        self.assert_refused(*self.common(tokenizer=alone), parts=["vocab.json", "merges.txt"])
        empty = self.directory / "empty"
        empty.mkdir()
        self.assert_refused(*self.common(tokenizer=empty), parts=["holds no tokenizer.json"])
        train = {"tokenizer": None, "train_vocab": "wordpiece"}
        self.assert_refused(*self.common(**train, vocab_size=10), parts=["--vocab-size 10 has no room", "take at least"])
        self.assert_refused(*self.common(**train, vocab_size=500, style="gpt2"), parts=["--style bert", "bpe"])

    def test_options(self) -> None:
        for changes in ({"validation_fraction": 1}, {"workers": 0}, {"style": "t5"}, {"vocab_size": 5}, {"prefix": "a/b"},
                        {"tokenizer": None}, {"tokenizer": None, "train_vocab": "bpe"}):
            with self.subTest(changes):
                self.assertEqual(run(*self.common(**changes))[0], 2)

    def test_an_empty_split(self) -> None:
        self.text.write_text("the cat", encoding="utf-8")
        fraction = 0.5
        part = "training" if documents.is_validation("the cat", fraction) else "validation"
        expected = f"the {part} split got none of the 1 documents"
        self.assert_refused(*self.common(validation_fraction=fraction), parts=[expected])

    def test_a_failed_run_leaves_the_last_corpus_as_it_was(self) -> None:
        self.tokenize()
        before = {path.name: path.read_bytes() for path in self.output.iterdir()}
        broken = self.directory / "broken.txt"
        broken.write_bytes(b"fine\n\n" * 10 + b"\xff")
        self.assert_refused(*self.common(input=broken), parts=["UTF-8"])
        self.assertEqual({path.name: path.read_bytes() for path in self.output.iterdir()}, before)


class SkipTest(CorpusTest):
    def test_skip_if_done(self) -> None:
        def stamp() -> int:
            return (self.output / "metadata.json").stat().st_mtime_ns

        self.tokenize("--skip-if-done")
        first = stamp()
        self.tokenize("--skip-if-done")
        self.assertEqual(stamp(), first)
        self.tokenize("--skip-if-done", "--workers", 2)  # changes no output
        self.assertEqual(stamp(), first)

        self.tokenize("--skip-if-done", "--shard-tokens", 50)
        second = stamp()
        self.assertNotEqual(second, first)
        self.tokenize("--skip-if-done", "--shard-tokens", 50)
        self.assertEqual(stamp(), second)

        shard = self.output / "corpus_train_000000.bin"
        shard.write_bytes(shard.read_bytes()[:-1])
        self.tokenize("--skip-if-done", "--shard-tokens", 50)
        third = stamp()
        self.assertNotEqual(third, second)
        self.text.write_text("\n\n".join(DOCUMENTS[:-1]), encoding="utf-8")
        self.tokenize("--skip-if-done", "--shard-tokens", 50)
        self.assertNotEqual(stamp(), third)


class MetricTest(unittest.TestCase):
    def test_perplexity_of_a_uniform_corpus_is_the_vocabulary(self) -> None:
        counts = np.full(8, 1000)
        self.assertAlmostEqual(shards.unigram_perplexity(counts, counts), 8.0)
        self.assertAlmostEqual(shards.unigram_perplexity(counts, counts, [0, 1]), 6.0)
        self.assertIsNone(shards.unigram_perplexity(counts, np.zeros(8, int)))

    def test_styles_name_only_their_own_tokens(self) -> None:
        for style in vocabulary.STYLES.values():
            named = {*style.before, *style.after, *style.required, *style.roles.values()}
            self.assertLessEqual(named, set(style.specials))


if __name__ == "__main__":
    unittest.main()
