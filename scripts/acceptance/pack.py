"""The pack: what a machine without network and packages needs beside the checkout.

    prefix/     headers of the libraries that are compiled in, with CMake package files that find them: CMAKE_PREFIX_PATH
    licences/   of each
    tokens/     a few MB of text as token shards, with their metadata and where they come from
    tools/      wheels of CMake and Ninja, which are zip files with programs in them
    manifest.json   versions, sizes
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile

from . import ROOT

MOST_BYTES = 60_000_000
TOOLS = ("cmake==3.31.*", "ninja==1.*")
# Of the corpus of scripts/get_corpus.sh: texts in the public domain, about 10 MB.
TEXTS = ("austen", "bible", "devil", "jargon")
TEXT_PACKAGES = ("r-cran-janeaustenr", "bible-kjv", "bible-kjv-text", "dict-devil", "dict-jargon")
VOCABULARY = 8192


@dataclasses.dataclass(frozen=True)
class Library:
    """A library of which headers are enough."""

    name: str           # of its CMake package
    target: str         # of CMake
    files: tuple[str, ...]  # in an include folder: the first one has the version
    version: str        # a regular expression whose groups are its numbers; one group of digits is 90100 for 9.1.0
    debian: str
    definitions: str = ""   # what a user of the headers alone defines
    source: str = ""        # a file to compile, for a library that is not headers alone


LIBRARIES = (
    Library("CLI11", "CLI11::CLI11", ("CLI/Version.hpp", "CLI"), r'CLI11_VERSION "([\d.]+)"', "libcli11-dev"),
    Library("nlohmann_json", "nlohmann_json::nlohmann_json", ("nlohmann/json.hpp", "nlohmann"),
            r"version (\d+\.\d+\.\d+)", "nlohmann-json3-dev"),
    Library("fmt", "fmt::fmt", ("fmt/core.h", "fmt"), r"#define FMT_VERSION (\d+)", "libfmt-dev", "FMT_HEADER_ONLY=1"),
    Library("Catch2", "Catch2::Catch2", ("catch2/catch.hpp", "catch2"), r"Catch v([\d.]+)", "catch2"),
    Library("xxHash", "xxHash::xxhash", ("xxhash.h", "xxh3.h"),
            r"XXH_VERSION_MAJOR\s+(\d+)[\s\S]*?XXH_VERSION_MINOR\s+(\d+)[\s\S]*?XXH_VERSION_RELEASE\s+(\d+)", "libxxhash-dev",
            source="#define XXH_STATIC_LINKING_ONLY\n#define XXH_IMPLEMENTATION\n#include <xxhash.h>\n"),
)


def version_in(library: Library, text: str) -> str:
    """The version that a header says it is of."""
    found = re.search(library.version, text)
    if not found:
        raise ValueError(f"{library.files[0]} does not say which version of {library.name} it is")
    version = ".".join(found.groups())
    if version.isdigit():
        number = int(version)
        version = f"{number // 10000}.{number // 100 % 100}.{number % 100}"
    return version


def package_file(library: Library) -> str:
    """What CMake's find_package reads."""
    name = library.target.replace("::", "_").lower()
    lines = ["# Written by scripts/gpu_acceptance.sh --pack.", f"if(TARGET {library.target})", "  return()", "endif()",
             "get_filename_component(prefix ${CMAKE_CURRENT_LIST_DIR}/../../.. ABSOLUTE)"]
    if library.source:
        lines += [f"add_library(packed_{name} STATIC ${{prefix}}/src/{library.name}.cpp)",
                  f"target_include_directories(packed_{name} SYSTEM PUBLIC ${{prefix}}/include)",
                  f"add_library({library.target} ALIAS packed_{name})"]
    else:
        lines += [f"add_library({library.target} INTERFACE IMPORTED)",
                  f"set_target_properties({library.target} PROPERTIES INTERFACE_INCLUDE_DIRECTORIES ${{prefix}}/include)"]
        if library.definitions:
            lines.append(f"set_target_properties({library.target} PROPERTIES INTERFACE_COMPILE_DEFINITIONS {library.definitions})")
    return "\n".join(lines) + "\n"


def include_folder(library: Library, folders: list[pathlib.Path]) -> pathlib.Path:
    for folder in folders:
        if (folder / library.files[0]).exists():
            return folder
    raise ValueError(f"{library.files[0]} of {library.name} is in none of {', '.join(map(str, folders))}: "
                     f"install it (Debian: {library.debian}; scripts/setup.sh)")


def leading_comment(text: str) -> str:
    """The comment at the top of a header, where libraries of headers have their licence."""
    found = re.match(r"\s*((?:/\*[\s\S]*?\*/\s*)|(?://[^\n]*\n\s*)+)", text)
    return found.group(1) if found else ""


def copy_library(library: Library, pack: pathlib.Path, folders: list[pathlib.Path],
                 documents: pathlib.Path = pathlib.Path("/usr/share/doc")) -> dict[str, str]:
    """Headers, package file and licence of one library; what the manifest says of it."""
    folder = include_folder(library, folders)
    include = pack / "prefix/include"
    for file in library.files:
        source = folder / file
        if source.is_dir():
            shutil.copytree(source, include / file, dirs_exist_ok=True)
        elif source.exists():
            (include / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, include / file)
    header = (folder / library.files[0]).read_text(errors="replace")
    cmake = pack / "prefix/lib/cmake" / library.name
    cmake.mkdir(parents=True, exist_ok=True)
    (cmake / f"{library.name}Config.cmake").write_text(package_file(library))
    if library.source:
        (pack / "prefix/src").mkdir(exist_ok=True)
        (pack / f"prefix/src/{library.name}.cpp").write_text(library.source)
    copyright_file = documents / library.debian / "copyright"
    licence = copyright_file.read_text(errors="replace") if copyright_file.exists() else leading_comment(header)
    if not licence:
        raise ValueError(f"no licence of {library.name}: neither {copyright_file} nor a comment on top of {library.files[0]}")
    (pack / "licences").mkdir(exist_ok=True)
    (pack / f"licences/{library.name}.txt").write_text(licence)
    return {"name": library.name, "version": version_in(library, header), "licence": f"licences/{library.name}.txt"}


def fetch_tools(pack: pathlib.Path, python: pathlib.Path) -> list[dict[str, str]]:
    """Wheels of CMake and Ninja, for machines that have none or too old ones."""
    tools = pack / "tools"
    subprocess.run([python, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--only-binary=:all:", "--no-deps",
                    "--dest", tools, *TOOLS], check=True)
    entries = []
    for wheel in sorted(tools.glob("*.whl")):
        name, version = wheel.name.split("-")[:2]
        with zipfile.ZipFile(wheel) as archive:
            texts = [archive.read(file).decode(errors="replace") for file in sorted(archive.namelist())
                     if re.match(r"(licen[sc]e|copying|copyright)", pathlib.PurePath(file).name, re.IGNORECASE)
                     and not file.endswith("/")]
        (pack / f"licences/{name}.txt").write_text("\n\n".join(texts))
        entries.append({"name": name, "version": version, "licence": f"licences/{name}.txt"})
    return entries


def tokenise(python: pathlib.Path, texts: list[pathlib.Path], output: pathlib.Path) -> None:
    subprocess.run([python, ROOT / "scripts/tokenize_corpus.py", "--input", *texts, "--style", "bert", "--train-vocab", "wordpiece",
                    "--vocab-size", str(VOCABULARY), "--output", output, "--validation-fraction", "0.03"],
                   check=True, stdout=subprocess.DEVNULL)


def pack_tokens(pack: pathlib.Path, python: pathlib.Path, offline: bool) -> dict[str, str]:
    corpus = ROOT / ".cache/quickstart/corpus"
    tokens = pack / "tokens"
    if not offline:
        subprocess.run([ROOT / "scripts/get_corpus.sh", corpus], check=True, stdout=subprocess.DEVNULL)
    with tempfile.TemporaryDirectory() as folder:
        if all((corpus / f"{name}.txt").exists() for name in TEXTS):
            texts = [corpus / f"{name}.txt" for name in TEXTS]
            licence = (corpus / "SOURCES").read_text()
            for package in TEXT_PACKAGES:
                shutil.copy2(corpus / f"licences/{package}.copyright", pack / f"licences/tokens_{package}.txt")
            what = f"the texts {', '.join(TEXTS)} of scripts/get_corpus.sh"
        else:  # of this checkout: a megabyte of English and C++
            text = pathlib.Path(folder, "checkout.txt")
            files = sorted(file for suffix in ("md", "h", "cpp", "cu", "py") for file in ROOT.glob(f"*/**/*.{suffix}")
                           if file.relative_to(ROOT).parts[0] in ("data", "docs", "kernels", "model", "scripts", "tests", "train"))
            text.write_text("\n\n".join(file.read_text(errors="replace") for file in files))
            texts, licence, what = [text], (ROOT / "LICENSE").read_text(), "the text files of this checkout"
        tokenise(python, texts, tokens)
    for index in (*tokens.glob("*.idx"), tokens / "tokenizer.json"):
        index.unlink(missing_ok=True)
    (pack / "licences/tokens.txt").write_text(licence)
    return {"name": f"tokens of {what}", "version": f"WordPiece, {VOCABULARY} tokens", "licence": "licences/tokens.txt"}


def size_of(folder: pathlib.Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def make_pack(pack: pathlib.Path, offline: bool) -> None:
    """Writes the pack anew. Nothing of a former one stays."""
    if pack.exists() and not (pack / "manifest.json").exists() and any(pack.iterdir()):
        raise ValueError(f"{pack} holds other files: name a folder that --pack may replace")
    shutil.rmtree(pack, ignore_errors=True)
    pack.mkdir(parents=True)
    (pack / "manifest.json").write_text("{}\n")  # from here on the folder is ours
    entries = [copy_library(library, pack, [pathlib.Path("/usr/include"), pathlib.Path("/usr/local/include")])
               for library in LIBRARIES]
    if not offline:
        subprocess.run([ROOT / "scripts/setup.sh", "--python"], check=True)
    venv = ROOT / ".venv/bin/python"
    python = venv if venv.exists() else pathlib.Path(sys.executable)
    if not offline:
        entries += fetch_tools(pack, python)
    entries.append(pack_tokens(pack, python, offline))
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    total = size_of(pack)
    manifest = {"commit": commit, "offline": offline, "bytes": total, "contents": entries,
                "files": {str(file.relative_to(pack)): file.stat().st_size for file in sorted(pack.rglob("*"))
                          if file.is_file() and file.name != "manifest.json"}}
    if total > MOST_BYTES:
        raise ValueError(f"{pack} has {total / 1e6:.1f} MB, but may have {MOST_BYTES / 1e6:.0f}")
    (pack / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    print(f"{pack}: {total / 1e6:.1f} MB")
    for entry in entries:
        print(f"  {entry['name']}, {entry['version']}")


class Pack:
    """A pack that --pack made."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder.absolute()
        try:
            self.manifest = json.loads((self.folder / "manifest.json").read_text())
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder} is no pack ({error}): make one by scripts/gpu_acceptance.sh --pack") from None
        if not self.manifest.get("contents"):
            raise ValueError(f"{folder} is not complete: make it anew by scripts/gpu_acceptance.sh --pack")

    @property
    def prefix(self) -> pathlib.Path:
        return self.folder / "prefix"

    @property
    def tokens(self) -> pathlib.Path:
        return self.folder / "tokens"

    def tool(self, name: str, into: pathlib.Path) -> pathlib.Path | None:
        """The program `name` ("cmake", "ninja") out of its wheel, unpacked in `into`; None where the pack has none."""
        wheels = sorted((self.folder / "tools").glob(f"{name}-*.whl"))
        if not wheels:
            return None
        target = into / wheels[-1].stem
        if not target.exists():
            target.mkdir(parents=True)
            with zipfile.ZipFile(wheels[-1]) as archive:
                archive.extractall(target)
        for program in sorted(target.rglob(name)):
            if program.is_file() and program.parent.name in ("bin", "scripts"):
                for file in program.parent.iterdir():  # ctest and cpack lie beside cmake; zip files know no modes
                    file.chmod(file.stat().st_mode | stat.S_IXUSR)
                return program
        return None
