#!/usr/bin/env bash
# Configures build/ (once) and builds. Options that start with -D go to CMake, everything else names targets:
#
#   scripts/build.sh
#   scripts/build.sh -DOUTEFFHOP_ONEDNN=OFF outeffhop
set -euo pipefail
self=$(realpath "$0")
cd "$(dirname "$0")/.."

options=() targets=()
for argument in "$@"; do
  case "$argument" in
    -D*) options+=("$argument") ;;
    -h | --help) sed -n '2,5s/^# \{0,1\}//p' "$self"; exit 0 ;;
    *) targets+=("$argument") ;;
  esac
done

if [[ ! -f build/build.ninja ]]; then
  options=(-G Ninja -DCMAKE_BUILD_TYPE=Release "${options[@]}")
  # As scripts/test.sh does in continuous integration, so that it need not compile this build anew.
  if [[ -n "${CI:-}" && "$CI" != false ]]; then options=(-DOUTEFFHOP_WERROR=ON "${options[@]}"); fi
  if command -v ccache >/dev/null; then options+=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache); fi
fi
if ((${#options[@]})); then cmake -S . -B build "${options[@]}"; fi
if ((${#targets[@]})); then
  cmake --build build --parallel --target "${targets[@]}"
else
  cmake --build build --parallel
fi
