#!/usr/bin/env bash
# An English corpus of over 40 MB for real training runs, out of Debian or Ubuntu packages alone: nothing is installed, no
# root is needed, and no web site is visited but the package mirror the machine already uses.
#
#   scripts/get_corpus.sh [--allow-missing] DIR
#   scripts/tokenize_corpus.py --input 'DIR/*.txt' --style bert --train-vocab wordpiece --vocab-size 8192 --output DIR/bert
#
# DIR gets one text file a source, the sources' licences, and SOURCES, which says where each comes from. A finished DIR is
# left as it is. Packages stay in DIR/packages, so that a second run needs no network; copy them there to work offline.
# A source whose packages cannot be had is an error, so that a network failure does not pass for a smaller corpus:
# --allow-missing does without it, as long as 20 MB of text are left.
set -euo pipefail
scripts=$(cd "$(dirname "$0")" && pwd)

least_bytes=20000000

# kind | packages | what it is | licence
sources=(
  "anarchism|anarchism|An Anarchist FAQ, political prose, 1995-2017|GPL-2 or later, The Anarchist FAQ Editorial Collective"
  "austen|r-cran-janeaustenr|Jane Austen's six novels (Project Gutenberg's texts), 1811-1818|public domain; the package MIT"
  "bible|bible-kjv bible-kjv-text|The King James Bible, 1611/1769|public domain"
  "gcide|dict-gcide|The Collaborative International Dictionary of English (Webster 1913)|GPL-2 or later; Webster's text public domain"
  "foldoc|dict-foldoc|The Free On-line Dictionary of Computing, Denis Howe|GFDL 1.1 or later"
  "jargon|dict-jargon|The Jargon File, Eric Raymond and others|public domain"
  "devil|dict-devil|The Devil's Dictionary, Ambrose Bierce, 1911|public domain"
)

fail() {
  echo "get_corpus.sh: error: $*" >&2
  exit 1
}

usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; }
allow_missing=0 directory=""
for argument in "$@"; do
  case "$argument" in
    --allow-missing) allow_missing=1 ;;
    -h | --help) usage; exit 0 ;;
    *)
      if [[ $argument == -* || -n $directory ]]; then usage >&2; exit 2; fi
      directory=$argument ;;
  esac
done
if [[ -z $directory ]]; then usage >&2; exit 2; fi
offline="where packages cannot be had, put your own .txt files in a directory and give them to scripts/tokenize_corpus.py"
for program in python3 dpkg-deb; do
  command -v "$program" >/dev/null || fail "$program was not found: this needs Debian or Ubuntu with python3; $offline"
done

mkdir -p "$directory" || fail "cannot make the directory $directory"
corpus=$(cd "$directory" && pwd)
work=$(mktemp -d "$corpus/.work-XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$corpus/packages" "$corpus/licences"

# finished: SOURCES is written last and holds the hash of every text.
finished() {
  [[ -f $corpus/SOURCES ]] &&
    (cd "$corpus" && sed -n 's/^sha256: //p' SOURCES | sha256sum --check --status 2>/dev/null)
}
if finished; then
  echo "$corpus already holds the corpus"
  exit 0
fi

# apt with the system's lists, or, where they are empty (containers), with lists of our own: that needs no root either.
apt_options=(-o Acquire::Retries=3)
if ((EUID == 0)); then apt_options+=(-o APT::Sandbox::User=root); fi
own_lists() {
  mkdir -p "$work/apt/lists/partial" "$work/apt/cache/archives/partial"
  apt_options+=(-o "Dir::State::Lists=$work/apt/lists" -o "Dir::Cache=$work/apt/cache")
  apt-get "${apt_options[@]}" -qq update >/dev/null 2>"$work/apt.log"
}

# fetch PACKAGE: leaves the package in DIR/packages, or returns 1.
lists_tried=0
fetch() {
  compgen -G "$corpus/packages/$1_*.deb" >/dev/null && return 0
  command -v apt-get >/dev/null || return 1
  if (cd "$corpus/packages" && apt-get "${apt_options[@]}" -qq download "$1" >/dev/null 2>"$work/apt.log"); then return 0; fi
  if ((lists_tried == 0)); then
    lists_tried=1
    if own_lists; then
      fetch "$1"
      return
    fi
  fi
  return 1
}

# obtain KIND PACKAGES: the cleaned text of one source, or returns 1 after a line saying why it is missing.
obtain() {
  local kind=$1 package file
  mkdir -p "$work/$kind"
  for package in $2; do
    if ! fetch "$package"; then
      echo "note: package $package cannot be had, $kind is left out: $(tail -1 "$work/apt.log" 2>/dev/null)" >&2
      return 1
    fi
    file=$(compgen -G "$corpus/packages/${package}_*.deb" | tail -1)
    if ! dpkg-deb -x "$file" "$work/$kind"; then
      echo "note: $file is damaged, $kind is left out: remove it and run this again" >&2
      return 1
    fi
    cp "$work/$kind/usr/share/doc/$package/copyright" "$corpus/licences/$package.copyright"
  done
  python3 "$scripts/clean_corpus.py" "$kind" "$work/$kind" "$corpus/$kind.txt"
}

echo "Sources of this corpus. Each was cleaned by scripts/clean_corpus.py; full licences are in licences/." >"$work/SOURCES"
total=0
missing=()
for source in "${sources[@]}"; do
  IFS='|' read -r kind packages title licence <<<"$source"
  if ! obtain "$kind" "$packages"; then
    missing+=("$kind")
    rm -f "$corpus/$kind.txt" # of an earlier run: it would be read, but SOURCES would not name it
    continue
  fi
  rm -rf "${work:?}/$kind"
  total=$((total + $(stat -c %s "$corpus/$kind.txt")))
  {
    echo
    echo "$kind.txt: $title"
    for package in $packages; do
      file=$(compgen -G "$corpus/packages/${package}_*.deb" | tail -1)
      echo "package: $package $(dpkg-deb -f "$file" Version) $(dpkg-deb -f "$file" Homepage)"
    done
    echo "licence: $licence"
    echo "sha256: $(cd "$corpus" && sha256sum "$kind.txt")"
  } >>"$work/SOURCES"
done

if ((${#missing[@]} && !allow_missing)); then
  fail "${#missing[@]} of ${#sources[@]} sources are missing (${missing[*]}): check the network and /etc/apt/sources.list" \
    "(Ubuntu: enable universe) and run this again, or do without them by scripts/get_corpus.sh --allow-missing $directory;" \
    "$offline"
fi
if ((total < least_bytes)); then
  fail "only $total bytes of text were obtained, expected at least $least_bytes: check the network and" \
    "/etc/apt/sources.list (Ubuntu: enable universe); $offline"
fi
mv "$work/SOURCES" "$corpus/SOURCES"
echo "$((total / 1000000)) MB of text in $corpus; SOURCES says where it comes from"
