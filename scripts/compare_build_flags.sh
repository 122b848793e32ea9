#!/usr/bin/env bash
# What softmax1 changes, and what it costs: trains the two programs of one build on the same configuration, data and seed,
# build/outeffhop with softmax1 and build/outeffhop_vanilla (attention compiled for the ordinary softmax), one after the
# other, evaluates both and prints loss, validation perplexity, outlier figures and tokens per second side by side.
#
#   --steps N           steps of each run (default 200; the schedule's warm-up is scaled with them)
#   --config FILE       default configs/bert_mini.json, on the corpus of scripts/quickstart.sh
#   --train GLOB, --validation GLOB   other token shards; with --config the configuration's own are the default
#   --out DIR           default runs/compare_build_flags; runs in DIR/steps_N/, which a second call reuses
set -euo pipefail
cd "$(dirname "$0")/.."

steps=200 config="" train="" validation="" out=runs/compare_build_flags
while (($#)); do
  case "$1" in
    --steps | --config | --train | --validation | --out)
      if (($# < 2)); then echo "compare_build_flags.sh: $1 needs a value" >&2; exit 2; fi
      case "$1" in --steps) steps=$2 ;; --config) config=$2 ;; --train) train=$2 ;; --validation) validation=$2 ;; --out) out=$2 ;; esac
      shift 2 ;;
    -h | --help) sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 0 ;;
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
changes=(--set "training.steps=$steps" --set "schedule.warmup_steps=$warmup")
if [[ -n "$train" ]]; then changes+=(--set "data.train=$train"); fi
if [[ -n "$validation" ]]; then changes+=(--set "data.validation=$validation"); fi

# one PROGRAM ATTN_SOFTMAX: trains and evaluates in DIR/steps_N/ATTN_SOFTMAX.
one() {
  local run=$out/steps_$steps/$2
  printf '\n== %s, attn_softmax %s\n' "$1" "$2"
  if [[ -f "$run/evaluation.json" ]]; then
    echo "done already: $run"
    return
  fi
  "build/$1" train --config "$config" "${changes[@]}" --set "model.attn_softmax=$2" --out "$run" --resume auto
  local shards=${validation:-$(.venv/bin/python -c \
    'import json, sys; print(json.load(open(sys.argv[1]))["data"]["validation"])' "$run/config.json")}
  if [[ -z "$shards" ]]; then echo "compare_build_flags.sh: no validation shards: give --validation GLOB" >&2; exit 2; fi
  "build/$1" eval --checkpoint "$run" --data "$shards" --outliers --json "$run/evaluation.json"
}
one outeffhop softmax1
one outeffhop_vanilla vanilla

echo
.venv/bin/python scripts/print_comparison.py "$out/steps_$steps/softmax1" "$out/steps_$steps/vanilla"
