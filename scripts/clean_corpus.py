#!/usr/bin/env python3
"""Cleans the texts that Debian packages carry into plain prose: one paragraph a line, documents parted by blank lines.

    clean_corpus.py KIND ROOT OUTPUT     ROOT is where the package was unpacked

Markup, code, navigation, pronunciation keys, etymologies and source tags go; wrapped lines are joined. Needs nothing but
Python's own library. get_corpus.sh calls it; KIND is one of its sources.
"""

import gzip
import re
import struct
import subprocess
import sys
import unicodedata
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Callable, Iterable, Iterator

Document = list[str]  # its paragraphs, the first one a title or a headword's entry

PAGE_CHARACTERS = 3000  # dictionary entries are gathered into pages of about this size
PUNCTUATION = " .,;:!?'\"\u2018\u2019\u201c\u201d"  # what prose has between its words, dialogue most of all
LEAST_ENTRY_CHARACTERS = 40  # shorter ones are cross-references and bare headwords


class CleanError(Exception):
    """A package that does not hold what it should."""


# Prose in general -----------------------------------------------------------------------------------------------------


def joined(text: str) -> str:
    """The text on one line, without control characters and doubled spaces."""
    text = "".join(c if c.isprintable() else " " for c in unicodedata.normalize("NFC", text))
    text = re.sub(r"\s+", " ", text)
    return re.sub(r" ([,.;:!?)])(?= |$)", r"\1", text).strip()


def is_prose(paragraph: str) -> bool:
    """Whether a paragraph is mostly words: not a rule, a table row, a path or a command."""
    letters = sum(c.isalpha() for c in paragraph)
    wordlike = letters + sum(c in PUNCTUATION for c in paragraph)
    return letters > 0 and letters >= 0.5 * len(paragraph) and wordlike >= 0.8 * len(paragraph)


def pages(entries: Iterable[list[str]]) -> Iterator[Document]:
    """Short entries in documents of about a page, in their own order."""
    page: Document = []
    size = 0
    for entry in entries:
        page += entry
        size += sum(map(len, entry))
        if size >= PAGE_CHARACTERS:
            yield page
            page, size = [], 0
    if page:
        yield page


# HTML -----------------------------------------------------------------------------------------------------------------


class ProseParser(HTMLParser):
    """Collects paragraphs, and starts a new document at each section heading."""

    BLOCKS = {"p", "li", "dt", "dd", "blockquote", "div", "section", "article", "br", "hr", "ul", "ol", "dl"}
    HEADINGS = {"h1", "h2", "h3"}
    SKIPPED = {"head", "script", "style", "pre", "nav", "table", "footer", "form", "sup"}
    VOID = {"br", "hr", "img", "meta", "link", "input", "col", "wbr", "area", "base"}

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.documents: list[Document] = [[]]
        self._text: list[str] = []
        self._skipping: list[str] = []  # open tags since the outermost skipped one

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if self._skipping or tag in self.SKIPPED:
            if tag not in self.VOID:
                self._skipping.append(tag)
        elif tag in self.HEADINGS:
            self._end_paragraph()
            if self.documents[-1]:
                self.documents.append([])
        elif tag in self.BLOCKS or tag in ("h4", "h5", "h6"):
            self._end_paragraph()

    def handle_endtag(self, tag: str) -> None:
        if self._skipping:
            # Unclosed tags inside are closed with the one around them.
            if tag in self._skipping:
                while self._skipping.pop() != tag:
                    pass
        elif tag in self.BLOCKS or tag in self.HEADINGS or tag in ("h4", "h5", "h6"):
            self._end_paragraph()

    def handle_data(self, data: str) -> None:
        if not self._skipping:
            self._text.append(data)

    def close(self) -> None:
        super().close()
        self._end_paragraph()

    def _end_paragraph(self) -> None:
        paragraph = joined("".join(self._text))
        self._text = []
        if is_prose(paragraph):
            self.documents[-1].append(paragraph)


def html_documents(files: Iterable[Path]) -> Iterator[Document]:
    """Sections of HTML files that say more than their heading."""
    for file in files:
        parser = ProseParser()
        parser.feed(file.read_text(encoding="utf-8", errors="replace"))
        parser.close()
        yield from (document for document in parser.documents if sum(map(len, document)) >= 300)


# Dictionaries in dictd's format -----------------------------------------------------------------------------------------


def dictd_number(text: str) -> int:
    """A number as dictd's index writes it: base 64, most significant digit first."""
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    value = 0
    for digit in text:
        value = 64 * value + digits.index(digit)
    return value


def dictd_entries(root: Path, name: str) -> Iterator[str]:
    """The entries of a dictionary in the order of its text, without those that describe the dictionary itself."""
    directory = root / "usr/share/dictd"
    data = gzip.decompress((directory / f"{name}.dict.dz").read_bytes())
    spans: dict[int, int] = {}
    described: set[int] = set()
    for line in (directory / f"{name}.index").read_text(encoding="utf-8").splitlines():
        word, start, length = line.split("\t")[:3]
        begin = dictd_number(start)
        spans[begin] = max(spans.get(begin, 0), dictd_number(length))
        if word.lower().startswith(("00-database", "00database")):
            described.add(begin)
    end = 0
    for begin, length in sorted(spans.items()):
        if begin >= end and begin not in described:
            yield data[begin : begin + length].decode("utf-8", "replace")
            end = begin + length


ACCENTS = {"'": "\u0301", "`": "\u0300", "^": "\u0302", '"': "\u0308", "~": "\u0303", "=": "\u0304", ",": "\u0327"}
LIGATURES = {"[ae]": "æ", "[AE]": "Æ", "[oe]": "œ", "[OE]": "Œ", "[deg]": "°", "[pounds]": "£", "[sec]": "″", "[min]": "′",
             "[frac12]": "½", "[frac14]": "¼", "[times]": "×", "[root]": ""}


def gcide_text(text: str) -> str:
    """GCIDE's spellings of characters as the characters themselves."""
    for spelled, character in LIGATURES.items():
        text = text.replace(spelled, character)
    return re.sub(r"\[(['`^\"~=,])([A-Za-z])\]", lambda m: unicodedata.normalize("NFC", m[2] + ACCENTS[m[1]]), text)


def without_brackets(text: str) -> str:
    """The text without [...], nested or not: etymologies, usage labels, sources."""
    while True:
        shorter = re.sub(r"\[[^\[\]]*\]", " ", text)
        if shorter == text:
            return text
        text = shorter


def gcide_entry(entry: str) -> list[str]:
    """`Headword: definitions, quotations`, from Webster's layout of head, numbered senses and indented quotations."""
    lines = gcide_text(entry).strip().split("\n")
    head = lines[0]
    count = 1
    # The head goes on until its brackets close: pronunciation, inflected forms, etymology.
    while count < len(lines) and lines[count].strip() and (
        head.count("[") > head.count("]") or head.count("\\") % 2 or not re.search(r"[.)\]]$", head.rstrip())
    ):
        head += " " + lines[count]
        count += 1
    headword = joined(head.split("\\")[0])
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", "\n".join(lines[count:])):
        text = without_brackets(re.sub(r"[{}]", "", paragraph))
        if re.match(r"\s*Syn:", text):
            continue
        text = joined(re.sub(r"^\s*(\d+\.|\([a-z]\)|Note:)\s", " ", text))
        text = re.sub(r"^\([A-Z][\w. &]*\)\s*", "", text)  # the field of knowledge
        paragraphs.append(re.sub(r"\s*--\s?(?=[A-Z(])", " \N{EM DASH} ", text))
    body = " ".join(paragraph for paragraph in paragraphs if paragraph)
    return [f"{headword}: {body}"] if headword and len(body) >= LEAST_ENTRY_CHARACTERS and is_prose(body) else []


def paragraph_entry(entry: str) -> list[str]:
    """An entry of FOLDOC or the Jargon File: headword, perhaps a word class, then indented paragraphs."""
    head, _, rest = entry.strip().partition("\n")
    rest = re.sub(r"^ /.*|^ \w{1,6}\.,?( \w{1,6}\.)*$", "", rest, count=2, flags=re.MULTILINE)
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", rest):
        text = without_brackets(re.sub(r"[{}]", "", paragraph))
        text = re.sub(r"<[a-z ,]+>", "", text)  # FOLDOC's subjects
        text = joined(re.sub(r"\(\d{4}-\d\d-\d\d\)|\(https?:[^)]*\)|https?:\S+", "", text))
        if is_prose(text) and len(text) >= LEAST_ENTRY_CHARACTERS:
            paragraphs.append(text)
    headword = joined(re.sub(r"[{}]", "", head))
    if not paragraphs or not headword:
        return []
    return [f"{headword}: {paragraphs[0]}", *paragraphs[1:]]


def devil_entry(entry: str) -> list[str]:
    """An entry of The Devil's Dictionary: its verses run on like prose."""
    paragraphs = [joined(re.sub(r"[{}]", "", paragraph)) for paragraph in re.split(r"\n\s*\n", entry)]
    return [paragraph for paragraph in paragraphs if is_prose(paragraph)]


# Sources --------------------------------------------------------------------------------------------------------------


def anarchism(root: Path) -> Iterator[Document]:
    """An Anarchist FAQ: sections and appendices, not the lists of links."""
    directory = root / "usr/share/doc/anarchism/html"
    wanted = re.compile(r"sec|append|intro|vol|10years")
    yield from html_documents(sorted(file for file in directory.glob("*.html") if wanted.match(file.name)))


def austen(root: Path) -> Iterator[Document]:
    """Jane Austen's six novels, by chapter: one R character vector a novel, one line of print a string."""
    data = (root / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb").read_bytes()
    while data:
        decompressor = zlib.decompressobj()
        lines = r_strings(decompressor.decompress(data[4:]))  # four bytes of length, then a zlib stream
        data = decompressor.unused_data
        paragraphs = [joined(p.replace("_", "")) for p in re.split(r"\n\s*\n", "\n".join(lines))]
        chapter: Document = []
        for paragraph in filter(is_prose, paragraphs):
            if re.match(r"(CHAPTER|Chapter|VOLUME|Volume) [IVXLC\d]+", paragraph) and len(chapter) > 1:
                yield chapter
                chapter = []
            chapter.append(paragraph)
        yield chapter


def r_strings(data: bytes) -> list[str]:
    """A character vector in R's serialisation (XDR, version 3)."""
    if data[:2] != b"X\n" or struct.unpack(">i", data[2:6])[0] != 3:
        raise CleanError("the novels of r-cran-janeaustenr are not in R's serialisation version 3")
    position = 18 + struct.unpack(">i", data[14:18])[0]  # after versions and the name of the encoding
    kind, count = struct.unpack(">2i", data[position : position + 8])
    if kind & 0xFF != 16:
        raise CleanError(f"the novels of r-cran-janeaustenr are R objects of type {kind & 0xFF}, expected 16 (strings)")
    position += 8
    strings = []
    for _ in range(count):
        length = struct.unpack(">i", data[position + 4 : position + 8])[0]
        position += 8
        strings.append(data[position : position + max(length, 0)].decode("utf-8"))
        position += max(length, 0)
    return strings


def bible(root: Path) -> Iterator[Document]:
    """The King James Bible, by chapter, printed by the package's own program."""
    command = [root / "usr/bin/bible", "-l10000", "-p", root / "usr/lib", "gen1:1-rev22:21"]
    printed = subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL).stdout
    chapter: Document = []
    for line in printed.decode("utf-8", "replace").splitlines():
        verse = re.match(r"\s+\d+ (.*)", line)
        if verse:
            chapter.append(joined(verse[1]))
        elif line.strip():
            if len(chapter) > 1:
                yield [chapter[0], " ".join(chapter[1:])]
            chapter = [joined(line)]
    if len(chapter) > 1:
        yield [chapter[0], " ".join(chapter[1:])]


def gcide(root: Path) -> Iterator[Document]:
    """The Collaborative International Dictionary of English, most of it Webster's of 1913."""
    yield from pages(map(gcide_entry, dictd_entries(root, "gcide")))


def foldoc(root: Path) -> Iterator[Document]:
    """The Free On-line Dictionary of Computing."""
    yield from pages(map(paragraph_entry, dictd_entries(root, "foldoc")))


def jargon(root: Path) -> Iterator[Document]:
    """The Jargon File."""
    yield from pages(map(paragraph_entry, dictd_entries(root, "jargon")))


def devil(root: Path) -> Iterator[Document]:
    """The Devil's Dictionary."""
    yield from pages(map(devil_entry, dictd_entries(root, "devil")))


SOURCES: dict[str, Callable[[Path], Iterator[Document]]] = {
    source.__name__: source for source in (anarchism, austen, bible, gcide, foldoc, jargon, devil)
}


def main(arguments: list[str]) -> int:
    """The program: 0, or 1 after one line saying what went wrong."""
    if len(arguments) != 3 or arguments[0] not in SOURCES:
        print(f"usage: clean_corpus.py {'|'.join(SOURCES)} ROOT OUTPUT", file=sys.stderr)
        return 2
    kind, root, output = arguments[0], Path(arguments[1]), Path(arguments[2])
    partial = output.with_name(output.name + ".partial")
    count = 0
    try:
        with open(partial, "w", encoding="utf-8") as file:
            for document in SOURCES[kind](root):
                if document:
                    file.write("\n".join(document) + "\n\n")
                    count += 1
        if count == 0:
            raise CleanError(f"{root} holds no text of {kind}")
    except (CleanError, OSError, ValueError, zlib.error, struct.error, subprocess.CalledProcessError) as error:
        partial.unlink(missing_ok=True)
        print(f"clean_corpus.py: error: cannot clean {kind}: {error}", file=sys.stderr)
        return 1
    partial.replace(output)
    print(f"{kind}: {count:,} documents, {output.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
