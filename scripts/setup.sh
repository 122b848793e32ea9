#!/usr/bin/env bash
# Installs what the build needs, from the distribution's packages. Quick when everything is there.
#
#   scripts/setup.sh             the packages of the C++ side
#   scripts/setup.sh --python    and .venv/ with what the Python scripts need (scripts/requirements.txt)
#   scripts/setup.sh --spectator and in .venv/ matplotlib and TensorBoard (scripts/requirements_spectator.txt)
#   scripts/setup.sh --fuzz      and clang with libFuzzer, for scripts/fuzz.sh
#   scripts/setup.sh --cuda-checks and in .venv/ disassemblers for scripts/check_kernels.py (scripts/requirements_cuda.txt)
#
# The CUDA Toolkit, for the CUDA backend, is not installed by this: it comes from NVIDIA's packages, or the distribution's.
#
# Debian 12, Ubuntu 22.04 and 24.04. It needs root or sudo, whose password is asked for at a terminal only; without them it
# prints the command to run and exits with 1.
set -euo pipefail
self=$(realpath "$0")
cd "$(dirname "$0")/.."

requirements=() fuzz=()
for argument in "$@"; do
  case "$argument" in
    --python | --spectator)
      list=requirements; if [[ $argument == --spectator ]]; then list=requirements_spectator; fi
      requirements+=("$list") ;;
    --cuda-checks) requirements+=(requirements_cuda) ;;
    --fuzz) fuzz=(clang libclang-rt-dev) ;;
    -h | --help) sed -n '2,13s/^# \{0,1\}//p' "$self"; exit 0 ;;
    *) echo "setup.sh: unknown option '$argument' (known: --python, --spectator, --fuzz, --cuda-checks)" >&2; exit 2 ;;
  esac
done

packages=(g++ cmake ninja-build python3-venv catch2 libboost-context-dev libcli11-dev nlohmann-json3-dev libfmt-dev libxxhash-dev)
# Faster when there, but the build does without: oneDNN for matrix products, ccache for the second build.
optional=(libdnnl-dev ccache "${fuzz[@]}")

installed() { [[ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" == installed ]]; }

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  cat >&2 <<'TEXT'
setup.sh: this system has no apt. Please install by its own means: a C++20 compiler (g++ 11 or newer), CMake 3.22, Ninja,
Python 3 with venv, and the development files of Boost.Context, Catch2, CLI11, nlohmann/json, fmt and xxHash; oneDNN (dnnl)
makes matrix products several times faster, ccache helps repeated builds. Then run scripts/build.sh.
TEXT
  exit 1
fi

missing=()
for package in "${packages[@]}"; do installed "$package" || missing+=("$package"); done
# Optional packages that could not be installed are not asked for at every run.
unavailable=.cache/setup/unavailable_packages
missing_optional=()
for package in "${optional[@]}"; do
  if ! installed "$package" && ! grep -qsxF "$package" "$unavailable"; then missing_optional+=("$package"); fi
done

if ((${#missing[@]} + ${#missing_optional[@]})); then
  if [[ $EUID -eq 0 ]]; then
    as_root=(env DEBIAN_FRONTEND=noninteractive)
  elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    as_root=(sudo -n env DEBIAN_FRONTEND=noninteractive)
  elif command -v sudo >/dev/null && [[ -t 0 ]]; then
    echo "setup.sh: sudo may ask for your password, to install ${missing[*]} ${missing_optional[*]}"
    as_root=(sudo env DEBIAN_FRONTEND=noninteractive)
  elif ((${#missing[@]})); then
    echo "setup.sh: packages are missing, and this user may not install them. Please run:" >&2
    echo "  sudo apt-get update && sudo apt-get install -y ${missing[*]} ${missing_optional[*]}" >&2
    exit 1
  else
    echo "setup.sh: optional packages that would help: sudo apt-get install -y ${missing_optional[*]}" >&2
    as_root=()
  fi
  if ((${#as_root[@]})); then
    # An outdated list is the usual reason for a failed install; one that cannot be refreshed may still be good enough.
    "${as_root[@]}" apt-get update -qq || echo "setup.sh: the package lists could not be refreshed; going on with the old ones" >&2
    if ((${#missing[@]})); then
      echo "setup.sh: installing ${missing[*]}"
      "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    fi
    for package in "${missing_optional[@]}"; do
      echo "setup.sh: installing $package"
      if ! "${as_root[@]}" apt-get install -y -qq --no-install-recommends "$package" >/dev/null; then
        echo "setup.sh: $package could not be installed; the build does without it (to try again, remove $unavailable)" >&2
        mkdir -p "${unavailable%/*}"
        echo "$package" >>"$unavailable"
      fi
    done
  fi
fi

for list in "${requirements[@]}"; do
  # The stamp holds the requirements it was made from: a changed list installs again.
  stamp=.venv/$list.installed
  if ! cmp -s "scripts/$list.txt" "$stamp"; then
    [[ -x .venv/bin/python ]] || python3 -m venv .venv
    echo "setup.sh: installing the Python packages of scripts/$list.txt into .venv/"
    if .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "scripts/$list.txt"; then
      cp "scripts/$list.txt" "$stamp"
    elif [[ $list == requirements_cuda ]]; then
      echo "setup.sh: they could not be installed; scripts/check_kernels.py does without, and reads no machine code" >&2
    else
      exit 1
    fi
  fi
done
