"""Tokenizers in the three forms Hugging Face models come with, or trained here; and what each model style needs of them."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Iterable, Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from corpus import CorpusError

# Characters that a trained WordPiece vocabulary knows: at most so many, and none rarer than one in a million, each of which
# would take two of its places. Words with others become [UNK].
WORDPIECE_ALPHABET = 1000
RAREST_CHARACTER = 1e-6


@dataclass(frozen=True)
class Style:
    """How a model family frames a text, and by which names it knows its special tokens."""

    before: tuple[str, ...]  # tokens put before each text
    after: tuple[str, ...]  # and after it
    specials: tuple[str, ...]  # in the order a trained vocabulary numbers them
    required: tuple[str, ...]
    roles: dict[str, str]  # metadata key -> token


STYLES = {
    "bert": Style(
        before=("[CLS]",),
        after=("[SEP]",),
        specials=("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
        required=("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
        roles={"mask_id": "[MASK]", "pad_id": "[PAD]", "cls_id": "[CLS]", "sep_id": "[SEP]"},
    ),
    "gpt2": Style(
        before=("<|endoftext|>",),
        after=(),
        specials=("<|endoftext|>",),
        required=("<|endoftext|>",),
        roles={"bos_id": "<|endoftext|>", "eos_id": "<|endoftext|>"},
    ),
    # OPT begins every text with </s>: its bos and eos are one token. The order below gives OPT's own numbers: </s> is 2.
    "opt": Style(
        before=("</s>",),
        after=(),
        specials=("<s>", "<pad>", "</s>", "<unk>"),
        required=("</s>", "<pad>"),
        roles={"bos_id": "</s>", "eos_id": "</s>", "pad_id": "<pad>"},
    ),
}


def load_tokenizer(paths: Sequence[Path], style_name: str, lowercase: bool) -> Tokenizer:
    """The tokenizer in a directory, a vocab.txt, a vocab.json with its merges.txt, or a tokenizer.json."""
    files = tokenizer_files(paths)
    try:
        if len(files) == 2:
            tokenizer = _byte_level_bpe(models.BPE.from_file(str(files[0]), str(files[1])))
        elif files[0].suffix == ".txt":
            tokenizer = _wordpiece(_read_vocabulary(files[0]), lowercase)
        else:
            tokenizer = Tokenizer.from_file(str(files[0]))
            tokenizer.no_truncation()
            tokenizer.no_padding()
    except CorpusError:
        raise
    except Exception as error:  # the library raises plain Exception for anything malformed
        raise CorpusError(f"cannot read the tokenizer in {', '.join(map(str, files))}: {error}") from error
    check_style(tokenizer, style_name, ", ".join(map(str, files)))
    _declare_specials(tokenizer, style_name)
    return tokenizer


def train_tokenizer(kind: str, vocab_size: int, texts: Iterable[str], style_name: str, lowercase: bool) -> Tokenizer:
    """A WordPiece or byte-level BPE vocabulary of at most `vocab_size` tokens, special ones included and numbered first."""
    specials = list(STYLES[style_name].specials)
    if kind == "wordpiece":
        if style_name != "bert":
            raise CorpusError(f"--train-vocab wordpiece goes with --style bert, not {style_name} (use --train-vocab bpe)")
        tokenizer = _wordpiece(_train_wordpiece(vocab_size, texts, specials, lowercase), lowercase)
    else:
        tokenizer = _byte_level_bpe(models.BPE())
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        _check_room(vocab_size, specials, len(alphabet))
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator(texts, trainer=trainer)
    _declare_specials(tokenizer, style_name)
    return tokenizer


def _train_wordpiece(vocab_size: int, texts: Iterable[str], specials: list[str], lowercase: bool) -> dict[str, int]:
    """A WordPiece vocabulary that depends on nothing but the texts.

    The library numbers the continuation pieces "##c" of single characters in the order of a randomly seeded hash table, and
    breaks ties by these numbers, so that two runs differ. Naming them beforehand, as if they were special, fixes both.
    """
    tokenizer = _wordpiece({}, lowercase)
    words: Counter[str] = Counter()
    for text in texts:
        pieces = tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))
        words.update(word for word, _ in pieces)
    frequencies: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            frequencies[character] += count
    rarest = RAREST_CHARACTER * frequencies.total()
    common = [c for c in frequencies if frequencies[c] >= rarest]
    alphabet = set(sorted(common, key=lambda c: (-frequencies[c], c))[:WORDPIECE_ALPHABET])
    kept: Counter[str] = Counter()
    for word, count in words.items():
        kept["".join(c for c in word if c in alphabet)] += count
    continuations = sorted({f"##{c}" for word in kept for c in word[1:]})
    _check_room(vocab_size, specials, len(alphabet) + len(continuations))
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=specials + continuations,
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator((" ".join([word] * count) for word, count in sorted(kept.items())), trainer=trainer)
    return tokenizer.get_vocab(with_added_tokens=False)


def _check_room(vocab_size: int, specials: Sequence[str], alphabet: int) -> None:
    if vocab_size < len(specials) + alphabet:
        raise CorpusError(
            f"--vocab-size {vocab_size} has no room for {len(specials)} special tokens and {alphabet} single characters: "
            f"take at least {len(specials) + alphabet}"
        )


def check_style(tokenizer: Tokenizer, style_name: str, where: str) -> None:
    """Raises CorpusError when the vocabulary lacks a token that the style needs."""
    missing = [token for token in STYLES[style_name].required if tokenizer.token_to_id(token) is None]
    if missing:
        raise CorpusError(f"the vocabulary of {where} lacks {', '.join(missing)}, which --style {style_name} needs")


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """One more than the largest id: what an embedding table needs."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def special_ids(tokenizer: Tokenizer, style_name: str) -> list[int]:
    """The ids that masking never chooses, ascending."""
    ids = {tokenizer.token_to_id(token) for token in STYLES[style_name].specials}
    ids |= {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    return sorted(number for number in ids if number is not None)


def frame(tokenizer: Tokenizer, style_name: str) -> tuple[list[int], list[int]]:
    """The ids put before and after each text."""
    style = STYLES[style_name]
    return [tokenizer.token_to_id(t) for t in style.before], [tokenizer.token_to_id(t) for t in style.after]


def _framing(tokenizer: Tokenizer, style_name: str) -> processors.TemplateProcessing:
    """The style's frame as a post-processor; of a pair each text is framed, but [CLS] comes once (Devlin et al. 2019)."""
    style = STYLES[style_name]
    between = style.after or style.before
    tokens = dict.fromkeys((*style.before, *style.after))
    return processors.TemplateProcessing(
        single=[*style.before, "$A", *style.after],
        pair=[*style.before, "$A", *between, "$B:1", *(f"{token}:1" for token in style.after)],
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in tokens],
    )


def role_ids(tokenizer: Tokenizer, style_name: str) -> dict[str, int | None]:
    """mask_id, pad_id, ... of metadata.json; None for those the style does not have."""
    names = ("mask_id", "pad_id", "cls_id", "sep_id", "bos_id", "eos_id")
    roles = STYLES[style_name].roles
    return {name: tokenizer.token_to_id(roles[name]) if name in roles else None for name in names}


# Every name that save_tokenizer can write: those of one tokenizer must not stay beside another's.
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt")


def save_tokenizer(tokenizer: Tokenizer, style_name: str, directory: Path) -> list[Path]:
    """Writes tokenizer.json, which frames a text as the style does (so that encode() gives what a model of these shards has
    seen), and, for WordPiece and BPE, the vocabulary files older programs read."""
    framing = Tokenizer.from_str(tokenizer.to_str())
    framing.post_processor = _framing(tokenizer, style_name)
    framing.save(str(directory / "tokenizer.json"))
    written = [directory / "tokenizer.json"]
    if isinstance(tokenizer.model, (models.WordPiece, models.BPE)):
        written += [Path(name) for name in tokenizer.model.save(str(directory))]
    return written


def tokenizer_files(paths: Sequence[Path]) -> tuple[Path, ...]:
    """The one or two files that --tokenizer means."""
    for path in paths:
        if not path.exists():
            raise CorpusError(f"tokenizer file {path} does not exist")
    if len(paths) == 1 and paths[0].is_dir():
        return _files_in_directory(paths[0])
    if len(paths) == 2 and sorted(path.suffix for path in paths) == [".json", ".txt"]:
        return tuple(sorted(paths, key=lambda path: path.suffix))
    if len(paths) != 1 or paths[0].suffix not in (".json", ".txt"):
        raise CorpusError(
            f"--tokenizer got {' '.join(map(str, paths))}, expected a directory, a vocab.txt, a tokenizer.json, or a "
            "vocab.json and its merges.txt"
        )
    if paths[0].suffix == ".json" and not _is_tokenizer_json(paths[0]):
        raise CorpusError(f"{paths[0]} is not a tokenizer.json: if it is a vocab.json, name its merges.txt too")
    return (paths[0],)


def _files_in_directory(directory: Path) -> tuple[Path, ...]:
    for names in (("tokenizer.json",), ("vocab.json", "merges.txt"), ("vocab.txt",)):
        files = tuple(directory / name for name in names)
        if all(file.is_file() for file in files):
            return files
    raise CorpusError(f"directory {directory} holds no tokenizer.json, no vocab.txt and no vocab.json with merges.txt")


def _is_tokenizer_json(path: Path) -> bool:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CorpusError(f"{path} is not valid JSON: {error}") from error
    return isinstance(content, dict) and isinstance(content.get("model"), dict)


def _read_vocabulary(path: Path) -> dict[str, int]:
    vocabulary: dict[str, int] = {}
    with open(path, encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file):
            token = line.rstrip("\r\n")
            if token in vocabulary:
                first = vocabulary[token] + 1
                raise CorpusError(f"vocabulary {path} has {token!r} twice, on lines {first} and {number + 1}")
            vocabulary[token] = number
    return vocabulary


def _wordpiece(vocabulary: dict[str, int], lowercase: bool) -> Tokenizer:
    """BERT's tokenizer (Devlin et al. 2019): clean text, spaces around CJK characters, accents stripped with lowercasing."""
    model = models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=lowercase
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer


def _byte_level_bpe(model: models.BPE) -> Tokenizer:
    """GPT-2's tokenizer (Radford et al. 2019), which OPT shares but for the numbering."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _declare_specials(tokenizer: Tokenizer, style_name: str) -> None:
    """As transformers does: a special token written out in a text becomes that token."""
    present = [token for token in STYLES[style_name].specials if tokenizer.token_to_id(token) is not None]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in present])
