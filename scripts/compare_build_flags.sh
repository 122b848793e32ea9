#!/usr/bin/env bash
# What softmax1 changes, and what it costs: trains the two programs of one build on the same configuration, data and seed,
# build/outeffhop with softmax1 and build/outeffhop_vanilla (attention compiled for the ordinary softmax), one after the
# other, evaluates both and prints loss, validation perplexity, outlier figures and tokens per second side by side.
#
#   --steps N           steps of each run (default 200; the schedule's warm-up is scaled with them)
#   --config FILE       default configs/bert_mini.json, on the corpus of scripts/quickstart.sh
#   --train GLOB, --validation GLOB   other token shards; with --config the configuration's own are the default
#   --out DIR           default runs/compare_build_flags; runs in DIR/CONFIG_N_HASH/, which a second call with the same
#                       configuration, shards and steps reuses
set -euo pipefail
self=$(realpath "$0") caller=$(pwd -P)
cd "$(dirname "$self")/.."
# from_caller PATH: a path as the user gave it, seen from here.
from_caller() { if [[ $1 == /* || $caller == "$(pwd -P)" ]]; then echo "$1"; else echo "$caller/$1"; fi; }

steps=200 config="" train="" validation="" out=runs/compare_build_flags
while (($#)); do
  case "$1" in
    --steps | --config | --train | --validation | --out)
      if (($# < 2)); then echo "compare_build_flags.sh: $1 needs a value" >&2; exit 2; fi
      case "$1" in
        --steps) steps=$2 ;;
        --config) config=$(from_caller "$2") ;;
        --train) train=$(from_caller "$2") ;;
        --validation) validation=$(from_caller "$2") ;;
        --out) out=$(from_caller "$2") ;;
      esac
      shift 2 ;;
    -h | --help) sed -n '2,11s/^# \{0,1\}//p' "$self"; exit 0 ;;
    *) echo "compare_build_flags.sh: unknown option '$1' (see --help)" >&2; exit 2 ;;
  esac
done
if [[ -z "$config" ]]; then
  config=configs/bert_mini.json
  scripts/quickstart.sh --prepare
  train=${train:-.cache/quickstart/tokens/corpus_train_*.bin}
  validation=${validation:-.cache/quickstart/tokens/corpus_val_*.bin}
else
  scripts/setup.sh --python
  scripts/build.sh outeffhop outeffhop_vanilla
fi

lengths=$(.venv/bin/python scripts/run_length.py "$config" --steps "$steps")
read -r steps warmup <<<"$lengths"
mapfile -t own_shards < <(PYTHONPATH=scripts .venv/bin/python -c 'import run_length, sys
data = run_length.read_config(sys.argv[1]).get("data", {})
print(data.get("train", ""), data.get("validation", ""), sep="\n")' "$config")
train=${train:-${own_shards[0]}} validation=${validation:-${own_shards[1]}}
if [[ -z "$validation" ]]; then echo "compare_build_flags.sh: no validation shards: give --validation GLOB" >&2; exit 2; fi
changes=(--set "training.steps=$steps" --set "schedule.warmup_steps=$warmup" --set "data.train=$train"
  --set "data.validation=$validation")

# The directory is named after what decides the result, lest figures of another configuration or corpus pass for these.
hash=$({
  cat "$config"
  printf '%s\n' "$train" "$validation"
  cat "$(dirname "$train")/metadata.json" "$(dirname "$validation")/metadata.json" 2>/dev/null || true
} | sha256sum | cut -c1-8)
name=$(basename "$config")
runs=$out/${name%.json}_${steps}_$hash

# one PROGRAM ATTN_SOFTMAX: trains and evaluates in $runs/ATTN_SOFTMAX.
one() {
  local run=$runs/$2
  printf '\n== %s, attn_softmax %s\n' "$1" "$2"
  if [[ -f "$run/evaluation.json" ]]; then
    echo "done already: $run"
    return
  fi
  "build/$1" train --config "$config" "${changes[@]}" --set "model.attn_softmax=$2" --out "$run" --resume auto
  "build/$1" eval --checkpoint "$run" --data "$validation" --outliers --json "$run/evaluation.json"
}
one outeffhop softmax1
one outeffhop_vanilla vanilla

echo
.venv/bin/python scripts/print_comparison.py "$runs/softmax1" "$runs/vanilla"
