#!/usr/bin/env bash
# Configures build/ (once) and builds. Options that start with -D go to CMake, everything else names targets:
#
#   scripts/build.sh
#   scripts/build.sh -DOUTEFFHOP_ONEDNN=OFF outeffhop
#   scripts/build.sh --in build-sanitize -DOUTEFFHOP_SANITIZE=address,undefined     in a folder of its own
set -euo pipefail
self=$(realpath "$0")
cd "$(dirname "$0")/.."

folder=build options=() targets=()
while (($#)); do
  case "$1" in
    --in)
      if (($# < 2)); then echo "build.sh: --in needs a folder" >&2; exit 2; fi
      folder=$2
      shift ;;
    -D*) options+=("$1") ;;
    -h | --help) sed -n '2,6s/^# \{0,1\}//p' "$self"; exit 0 ;;
    *) targets+=("$1") ;;
  esac
  shift
done

if [[ ! -f $folder/build.ninja ]]; then
  options=(-G Ninja -DCMAKE_BUILD_TYPE=Release "${options[@]}")
  # As scripts/test.sh does in continuous integration, so that it need not compile this build anew.
  if [[ -n "${CI:-}" && "$CI" != false ]]; then options=(-DOUTEFFHOP_WERROR=ON "${options[@]}"); fi
  if command -v ccache >/dev/null; then options+=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache); fi
fi
if ((${#options[@]})); then cmake -S . -B "$folder" "${options[@]}"; fi
if ((${#targets[@]})); then
  cmake --build "$folder" --parallel --target "${targets[@]}"
else
  cmake --build "$folder" --parallel
fi
