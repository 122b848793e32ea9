#!/usr/bin/env bash
# What only a GPU can show, in one command on a machine that has a GPU and little else: no network, none of the packages that
# scripts/setup.sh installs.
#
#   scripts/gpu_acceptance.sh --pack [DIR]   anywhere: puts what such a machine lacks into DIR (default gpu_pack), under 60 MB
#   scripts/gpu_acceptance.sh --run          there: builds for its GPU, tests, measures, trains; writes results.json, results.md
#   scripts/gpu_acceptance.sh --run --rehearse   here: the same on the CPU in miniature, so that it does not rot
#   scripts/gpu_acceptance.sh --help         every option
#
# docs/gpu/README.md has more. It needs Python 3.9, a C++20 compiler and, for a GPU, nvcc 12.4; PyTorch is compared with where
# it is. Exit status: 0 nothing failed (what was skipped is said), 1 something did, 2 wrong usage.
set -euo pipefail
scripts=$(cd "$(dirname "$0")" && pwd)
if ! command -v python3 >/dev/null; then
  echo "gpu_acceptance.sh: error: python3 was not found" >&2
  exit 2
fi
export PYTHONPATH="$scripts${PYTHONPATH:+:$PYTHONPATH}" PYTHONDONTWRITEBYTECODE=1
exec python3 -m acceptance "$@"
