#!/usr/bin/env bash
# Builds in build/, like scripts/quickstart.sh, and runs every test: the C++ ones by ctest, the Python ones, and a syntax
# check of the scripts. Then the C++ tests again in build-sanitize/, with the address, leak and undefined-behaviour
# sanitizers, each fuzz target for three seconds where there is clang, and what nvcc makes of the CUDA kernels against its
# budget where there is nvcc. Last, the GPU acceptance is packed and rehearsed on the CPU. Options go to ctest:
# scripts/test.sh -R train/
#
# In continuous integration (CI is set, as .ci/run and the usual services do) warnings are errors. Elsewhere they are not:
# that flag is in the command line of every file, so that all that quickstart.sh has built would be compiled anew.
#
# The last line says how many passed and failed; the exit status is 0 only if none failed.
set -euo pipefail
cd "$(dirname "$0")/.."

passed=0 failed=0 skipped=0
# one NAME COMMAND...: a check that counts as one test.
one() {
  local name=$1
  shift
  if "$@"; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
    echo "FAILED: $name"
  fi
}
finish() {
  local line="$passed passed, $failed failed"
  if ((skipped)); then line+=", $skipped skipped"; fi
  echo "$line"
  ((failed == 0))
}

setup=(--python --spectator --fuzz)
if command -v nvcc >/dev/null || [[ -x /usr/local/cuda/bin/nvcc ]]; then setup+=(--cuda-checks); fi
scripts/setup.sh "${setup[@]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT

options=(-DOUTEFFHOP_TESTS=ON)
if [[ -n "${CI:-}" && "$CI" != false ]]; then options+=(-DOUTEFFHOP_WERROR=ON); fi
one "build" scripts/build.sh "${options[@]}"
if ((failed)); then finish; exit; fi

# c_tests FOLDER OPTIONS...: ctest's own summary is read rather than its exit status alone, so that a run without tests is
# not taken for a good one.
c_tests() {
  local folder=$1
  shift
  ctest --test-dir "$folder" -j2 --output-on-failure "$@" 2>&1 | tee "$log" || true
  if [[ $(grep -E 'tests? failed out of [0-9]+' "$log" | tail -1) =~ ([0-9]+)\ tests?\ failed\ out\ of\ ([0-9]+) ]]; then
    failed=$((failed + BASH_REMATCH[1]))
    passed=$((passed + BASH_REMATCH[2] - BASH_REMATCH[1]))
  else
    echo "FAILED: ctest ran no test in $folder"
    failed=$((failed + 1))
  fi
}
c_tests build "$@"

built=$failed
# CUDA is left out there: the kernels run on the CPU in tests/simt, with the sanitizers.
one "build with sanitizers" scripts/build.sh --in build-sanitize -DOUTEFFHOP_SANITIZE=address,undefined \
  -DOUTEFFHOP_CUDA=OFF "${options[@]}"
if ((failed == built)); then c_tests build-sanitize "$@"; fi

status=0
scripts/fuzz.sh --seconds 3 || status=$?
if ((status == 77)); then skipped=$((skipped + 1)); else one "fuzzing" test "$status" -eq 0; fi

status=0
.venv/bin/python scripts/check_kernels.py || status=$?
if ((status == 77)); then skipped=$((skipped + 1)); else one "what nvcc makes of the CUDA kernels" test "$status" -eq 0; fi

if [[ -d tests/python ]]; then
  .venv/bin/python -m unittest discover -s tests/python 2>&1 | tee "$log" || true
  ran=$(sed -nE 's/^Ran ([0-9]+) tests?.*/\1/p' "$log" | tail -1)
  if [[ -z "$ran" || "$ran" == 0 ]]; then
    echo "FAILED: unittest ran no test"
    failed=$((failed + 1))
  else
    bad=0
    while read -r count; do bad=$((bad + count)); done < <(grep -E '^FAILED \(' "$log" |
      grep -oE '(failures|errors|unexpected successes)=[0-9]+' | grep -oE '[0-9]+')
    # A run that neither says OK nor counts its failures broke off.
    if ! grep -qE '^OK' "$log" && ((bad == 0)); then bad=1; fi
    left_out=$(grep -E '^(OK|FAILED) \(' "$log" | grep -oE 'skipped=[0-9]+' | grep -oE '[0-9]+' | tail -1 || true)
    skipped=$((skipped + ${left_out:-0}))
    failed=$((failed + bad))
    passed=$((passed + (ran > bad + ${left_out:-0} ? ran - bad - ${left_out:-0} : 0)))
  fi
fi

# What a machine with a GPU and nothing else would do, with the packed headers alone and in miniature.
rehearsal=build-gpu-rehearsal
one "packing for a GPU" scripts/gpu_acceptance.sh --pack $rehearsal/pack --offline
one "GPU acceptance, rehearsed" scripts/gpu_acceptance.sh --run --rehearse --with-pack $rehearsal/pack --out $rehearsal/results

while IFS= read -r script; do one "python syntax of $script" .venv/bin/python -m py_compile "$script"; done \
  < <(find scripts tests -name '*.py' | sort)
while IFS= read -r script; do one "shell syntax of $script" bash -n "$script"; done < <(find scripts .ci -name '*.sh' -o -path .ci/run | sort)

finish
