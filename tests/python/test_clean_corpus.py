"""scripts/clean_corpus.py on small pieces in the layouts of the real packages; get_corpus.sh where nothing can be had."""

import base64
import contextlib
import gzip
import io
import os
import struct
import subprocess
import sys
import tempfile
import unittest
import zlib
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import clean_corpus  # noqa: E402

RARE = """Rare \\Rare\\, a. [Compar. {Rarer} (r[^a]r"[~e]r); superl.
   {Rarest}.] [F., fr. L. rarus thin, rare.]
   1. Not frequent; seldom met with or occurring; unusual; as, a
      rare event. [Obs.]
      [1913 Webster]

   2. (Phys.) Of an uncommon nature; see {Caf['e]}.
      [1913 Webster]

            Rare work, all filled with terror and delight.
                                                  --Cowley.
      [1913 Webster]

   Syn: Scarce; infrequent. See {Scarce}.
        [1913 Webster]
"""

FOLDOC = """lenient evaluation

   <reduction> An {evaluation strategy}, described in [Traub,
   FPCA 89], under which all {redex}es are evaluated in parallel
   except inside conditionals.

   (2004-01-22)
"""

JARGON = """jupiter
 vt.

    [IRC] To kill an {IRC} {bot} or user and then take its place by adopting
    its {nick} so that it cannot reconnect.
"""


class DirectoryTest(unittest.TestCase):
    def setUp(self) -> None:
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.root = Path(temporary.name)


class TextTest(unittest.TestCase):
    def test_joined(self) -> None:
        self.assertEqual(clean_corpus.joined("  a \n\tb\u200b c\x07 , d .5 cafe\u0301 "), "a b c, d .5 caf\u00e9")

    def test_is_prose(self) -> None:
        self.assertTrue(clean_corpus.is_prose("The cat sat on the mat, and 3 dogs slept."))
        for noise in ("", "1234 5678", "+-----+-----+", "/usr/lib/x86_64/lib_7.so.6", "* * *"):
            self.assertFalse(clean_corpus.is_prose(noise), noise)

    def test_pages_keep_entries_whole_and_in_order(self) -> None:
        entries = [[f"entry {i} " + "x" * 700] for i in range(20)]
        found = list(clean_corpus.pages(entries))
        self.assertEqual([line for page in found for line in page], [line for entry in entries for line in entry])
        self.assertTrue(all(sum(map(len, page)) >= clean_corpus.PAGE_CHARACTERS for page in found[:-1]))
        self.assertGreater(len(found), 2)


class EntryTest(unittest.TestCase):
    def test_gcide(self) -> None:
        self.assertEqual(
            clean_corpus.gcide_entry(RARE),
            [
                "Rare: Not frequent; seldom met with or occurring; unusual; as, a rare event. Of an uncommon nature; see "
                "Caf\u00e9. Rare work, all filled with terror and delight. \u2014 Cowley."
            ],
        )
        self.assertEqual(clean_corpus.gcide_entry("Lapidific \\Lap`i*dif\"ic\\, a. [L. lapis.]\n   Of stone.\n"), [])

    def test_foldoc_and_jargon(self) -> None:
        self.assertEqual(
            clean_corpus.paragraph_entry(FOLDOC),
            [
                "lenient evaluation: An evaluation strategy, described in, under which all redexes are evaluated in "
                "parallel except inside conditionals."
            ],
        )
        self.assertEqual(
            clean_corpus.paragraph_entry(JARGON),
            [
                "jupiter: To kill an IRC bot or user and then take its place by adopting its nick so that it cannot "
                "reconnect."
            ],
        )


class SourceTest(DirectoryTest):
    def write(self, name: str, content: bytes) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def test_html_keeps_paragraphs_and_drops_the_rest(self) -> None:
        body = "It is a long established fact that readers like prose. " * 8
        page = (
            "<html><head><title>Not this</title><style>p {}</style></head><body><nav><p>nor this</p></nav>"
            f"<h2>First &amp; foremost</h2><p>{body}<b>Bold</b>\nend.</p><pre>code = 1</pre><p>{body}</p>"
            f"<h2>Short</h2><p>Too short a section.</p><h2>Third</h2><ul><li>{body}<li>{body}</ul><p>* * *</p>"
        )
        body = body.strip()
        documents = list(clean_corpus.html_documents([self.write("a.html", page.encode())]))
        self.assertEqual(documents, [["First & foremost", body + " Bold end.", body], ["Third", body, body]])

    def test_dictd_index(self) -> None:
        entries = [("00-database-info", "about"), ("apple", "apple\n   A fruit.\n"), ("pear", "pear\n   Another.\n")]
        data, index = b"", ""
        for word, text in entries:
            numbers = []
            for number in (len(data), len(text)):
                digits = base64.b64encode(number.to_bytes(3, "big")).decode().lstrip("A") or "A"
                numbers.append(digits)
            index = f"{word}\t{numbers[0]}\t{numbers[1]}\n" + index  # an index is not in the order of the text
            data += text.encode()
        index += index.splitlines()[0].replace("pear", "pears") + "\n"  # two headwords, one entry
        self.write("usr/share/dictd/fruit.dict.dz", gzip.compress(data))
        self.write("usr/share/dictd/fruit.index", index.encode())
        self.assertEqual(list(clean_corpus.dictd_entries(self.root, "fruit")), [text for _, text in entries[1:]])

    def test_novels_are_read_from_r_s_own_format(self) -> None:
        def vector(lines: list[str]) -> bytes:
            content = b"X\n" + struct.pack(">4i", 3, 0x40201, 0x30500, 5) + b"UTF-8" + struct.pack(">2i", 16, len(lines))
            for line in lines:
                content += struct.pack(">2i", 0x40009, len(line.encode())) + line.encode()
            return struct.pack(">i", len(content)) + zlib.compress(content)

        said = "\u201cYes,\u201d she said."
        first = ["TITLE", "", "CHAPTER 1", "", "One _fine_ day", "in May.", "", "CHAPTER 2", "", said]
        name = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
        self.write(name, vector(first) + vector(["Another", "", "CHAPTER I", "", "Text."]))
        self.assertEqual(
            list(clean_corpus.austen(self.root)),
            [
                ["TITLE", "CHAPTER 1", "One fine day in May."],
                ["CHAPTER 2", said],
                ["Another", "CHAPTER I", "Text."],
            ],
        )

    def test_bible_chapters(self) -> None:
        program = self.write("usr/bin/bible", b"#!/bin/sh\nprintf '\\nGenesis 1\\n\\n  1 In the beginning.\\n  2 And.\\n"
                                             b"\\nGenesis 2\\n\\n  1 Thus.\\n'\n")
        program.chmod(0o755)
        expected = [["Genesis 1", "In the beginning. And."], ["Genesis 2", "Thus."]]
        self.assertEqual(list(clean_corpus.bible(self.root)), expected)

    def test_a_package_without_its_text_is_one_clear_line(self) -> None:
        for kind in clean_corpus.SOURCES:
            with self.subTest(kind):
                output, err = self.root / "out.txt", io.StringIO()
                with contextlib.redirect_stderr(err):
                    self.assertEqual(clean_corpus.main([kind, str(self.root), str(output)]), 1)
                self.assertRegex(err.getvalue(), f"^clean_corpus.py: error: cannot clean {kind}: [^\n]+\n$")
                self.assertEqual(list(self.root.glob("out*")), [])


class GetCorpusTest(DirectoryTest):
    def test_without_packages_it_says_what_to_do(self) -> None:
        stubs = self.root / "stubs"
        stubs.mkdir()
        for name in ("apt-get", "dpkg-deb"):
            (stubs / name).write_text("#!/bin/sh\necho \"E: Unable to locate package\" >&2\nexit 100\n")
            (stubs / name).chmod(0o755)
        environment = {**os.environ, "PATH": f"{stubs}:{os.environ['PATH']}"}
        for options, part in (([], "7 of 7 sources are missing"), (["--allow-missing"], "only 0 bytes of text")):
            with self.subTest(options):
                command = [SCRIPTS / "get_corpus.sh", *options, self.root / "corpus"]
                result = subprocess.run(command, capture_output=True, text=True, env=environment)
                self.assertEqual(result.returncode, 1, result.stderr)
                last = result.stderr.strip().splitlines()[-1]
                self.assertIn(f"error: {part}", last)
                self.assertIn("your own .txt files", last)
                # No SOURCES, which a finished corpus has.
                self.assertEqual(sorted(path.name for path in (self.root / "corpus").iterdir()), ["licences", "packages"])


if __name__ == "__main__":
    unittest.main()
