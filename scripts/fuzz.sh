#!/usr/bin/env bash
# Gives the parsers inputs without end (libFuzzer, with address and undefined-behaviour sanitizers): builds the targets of
# tests/fuzz in build-fuzz/, runs them, two at a time where there are two processors, and prints what they did in a table.
#
#   scripts/fuzz.sh [--seconds N] [TARGET...]     N seconds each (default 60); without TARGET all of them
#
# Inputs that reached something new stay in .cache/fuzz/corpus/ for the next time. What was found stays in
# .cache/fuzz/findings/, with the command that runs it again. Exit status: 0 nothing found, 1 something found or not built,
# 2 a wrong argument, 77 no clang with libFuzzer.
set -euo pipefail
self=$(realpath "$0")
cd "$(dirname "$self")/.."

seconds=60 targets=()
while (($#)); do
  case "$1" in
    --seconds)
      if ! [[ "${2:-}" =~ ^[1-9][0-9]*$ ]]; then echo "fuzz.sh: --seconds needs a number of seconds" >&2; exit 2; fi
      seconds=$2
      shift 2 ;;
    -h | --help) sed -n '2,9s/^# \{0,1\}//p' "$self"; exit 0 ;;
    -*) echo "fuzz.sh: unknown option '$1' (see --help)" >&2; exit 2 ;;
    *) targets+=("$1"); shift ;;
  esac
done
known=()
for seeds in tests/fuzz/seeds/*/; do known+=("$(basename "$seeds")"); done
if ((${#targets[@]} == 0)); then targets=("${known[@]}"); fi
for target in "${targets[@]}"; do
  if [[ ! -d tests/fuzz/seeds/$target ]]; then echo "fuzz.sh: no target '$target' (there are: ${known[*]})" >&2; exit 2; fi
done

# A clang whose package brought libFuzzer along.
compiler=""
probe=$(mktemp -d)
trap 'rm -rf "$probe"' EXIT
echo 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }' >"$probe/probe.cpp"
for candidate in clang++ clang++-{20..14}; do
  if command -v "$candidate" >/dev/null && "$candidate" -fsanitize=fuzzer,address "$probe/probe.cpp" -o "$probe/probe" 2>/dev/null
  then compiler=$candidate; break; fi
done
if [[ -z "$compiler" ]]; then
  echo "fuzz.sh: no clang with libFuzzer here (scripts/setup.sh --fuzz installs it)" >&2
  exit 77
fi

if ! grep -qs "^CMAKE_CXX_COMPILER:.*/$compiler\$" build-fuzz/CMakeCache.txt; then
  rm -rf build-fuzz
  options=(-DCMAKE_CXX_COMPILER="$compiler" -DOUTEFFHOP_FUZZ=ON)
  if command -v ccache >/dev/null; then options+=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache); fi
  cmake -S . -B build-fuzz -G Ninja "${options[@]}" >/dev/null
fi
cmake --build build-fuzz --parallel --target "${targets[@]/#/fuzz_}" >"$probe/build.log" || { cat "$probe/build.log"; exit 1; }

cache=.cache/fuzz
mkdir -p "$cache/findings" "$cache/logs"
# fuzz TARGET: a finding ends the target, and its exit status is not 0.
fuzz() {
  local arguments=("$cache/corpus/$1" "tests/fuzz/seeds/$1" -max_total_time="$seconds" -timeout=5 -rss_limit_mb=512
    -malloc_limit_mb=256 -max_len=8192 -print_final_stats=1 -artifact_prefix="$cache/findings/$1-")
  if [[ -f tests/fuzz/$1.dict ]]; then arguments+=(-dict="tests/fuzz/$1.dict"); fi
  mkdir -p "$cache/corpus/$1"
  build-fuzz/fuzz_"$1" "${arguments[@]}" >"$cache/logs/$1.log" 2>&1
}
jobs=$(($(nproc) > 1 ? 2 : 1))
for target in "${targets[@]}"; do
  while (($(jobs -rp | wc -l) >= jobs)); do sleep 0.2; done
  # The status goes through a file: bash forgets that of a job that ended long before it is waited for.
  { code=0; fuzz "$target" || code=$?; echo "$code" >"$cache/logs/$target.status"; } &
done
wait

found=0
row='%-20s %12s %10s %8s %s\n'
printf "$row" target executions "a second" edges result
for target in "${targets[@]}"; do
  log=$cache/logs/$target.log
  executions=$(sed -nE 's/^stat::number_of_executed_units: *//p' "$log" | tail -1)
  rate=$(sed -nE 's/^stat::average_exec_per_sec: *//p' "$log" | tail -1)
  edges=$(sed -nE 's/.* cov: ([0-9]+) .*/\1/p' "$log" | tail -1)
  result="nothing found"
  if (($(<"$cache/logs/$target.status"))); then
    found=1
    result="FOUND $(grep -m1 -E '^SUMMARY|^finding' "$log" || tail -1 "$log")"
    input=$(sed -nE 's/.*Test unit written to ([^ ]+).*/\1/p' "$log" | tail -1)
    if [[ -n "$input" ]]; then result+=$'\n'"    again: build-fuzz/fuzz_$target $input    (the whole story: $log)"; fi
  fi
  printf "$row" "$target" "${executions:-?}" "${rate:-?}" "${edges:-?}" "$result"
done
exit $found
