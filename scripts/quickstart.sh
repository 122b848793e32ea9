#!/usr/bin/env bash
# From a fresh checkout to a pretrained model: installs what is missing, builds, gets and tokenises a small corpus, pretrains
# configs/bert_mini.json on it with live progress (about five minutes on two cores) and evaluates the result with its outlier
# figures. What is done already is not done again: a second call only evaluates, an interrupted one goes on where it was.
#
#   --minutes M   scale the length of the run: M/5 of the steps in configs/bert_mini.json (default 5)
#   --steps N     or its number of steps
#   --out DIR     the run directory (default runs/quickstart)
#   --prepare     stop before training: only set up, build, and prepare the data
set -euo pipefail
self=$(realpath "$0") caller=$(pwd -P)
cd "$(dirname "$self")/.."
# from_caller PATH: a path as the user gave it, seen from here.
from_caller() { if [[ $1 == /* || $caller == "$(pwd -P)" ]]; then echo "$1"; else echo "$caller/$1"; fi; }

minutes=5 steps="" out=runs/quickstart prepare_only=0
while (($#)); do
  case "$1" in
    --minutes | --steps | --out)
      if (($# < 2)); then echo "quickstart.sh: $1 needs a value" >&2; exit 2; fi
      case "$1" in --minutes) minutes=$2 ;; --steps) steps=$2 ;; --out) out=$(from_caller "$2") ;; esac
      shift 2 ;;
    --prepare) prepare_only=1; shift ;;
    -h | --help) sed -n '2,9s/^# \{0,1\}//p' "$self"; exit 0 ;;
    *) echo "quickstart.sh: unknown option '$1' (see --help)" >&2; exit 2 ;;
  esac
done

config=configs/bert_mini.json
corpus=.cache/quickstart/corpus
data=.cache/quickstart/tokens
say() { printf '\n== %s\n' "$*"; }

say "1/5 dependencies"
scripts/setup.sh --python
python=.venv/bin/python

if [[ -n "$steps" ]]; then
  lengths=$("$python" scripts/run_length.py "$config" --steps "$steps")
else
  lengths=$("$python" scripts/run_length.py "$config" --share "$minutes/5")
fi
read -r steps warmup <<<"$lengths"

say "2/5 build"
scripts/build.sh outeffhop outeffhop_vanilla

say "3/5 corpus and tokens"
scripts/get_corpus.sh "$corpus"
# The pattern is quoted because the shell's order of files depends on its language; the script's own does not.
"$python" scripts/tokenize_corpus.py --input "$corpus/*.txt" --style bert --train-vocab wordpiece --vocab-size 8192 \
  --output "$data" --validation-fraction 0.02 --skip-if-done
if ((prepare_only)); then exit 0; fi

newest_checkpoint() {
  find "$out/checkpoints" -mindepth 2 -maxdepth 2 -path '*/step_[0-9]*/manifest.json' 2>/dev/null | sed 's|/manifest.json$||' |
    grep -E '/step_[0-9]+$' | sort | tail -1 || true
}
step_of() {
  local name=${1##*/step_}
  echo $((10#$name))
}

say "4/5 pretraining: $config, $steps steps, into $out"
checkpoint=$(newest_checkpoint)
if [[ -n "$checkpoint" ]] && (($(step_of "$checkpoint") >= steps)); then
  echo "trained already: $checkpoint"
else
  status=0
  build/outeffhop train --config "$config" --set "data.train=$data/corpus_train_*.bin" \
    --set "data.validation=$data/corpus_val_*.bin" --set "training.steps=$steps" --set "schedule.warmup_steps=$warmup" \
    --out "$out" --resume auto || status=$?
  if ((status == 75)); then echo "quickstart.sh: stopped; the same command goes on from here" >&2; fi
  if ((status)); then exit "$status"; fi
  checkpoint=$(newest_checkpoint)
fi

say "5/5 evaluation on held-out text"
build/outeffhop eval --checkpoint "$checkpoint" --data "$data/corpus_val_*.bin" --outliers --json "$out/evaluation.json"
cat <<TEXT

The run is in $out: config.json (as resolved), metrics.jsonl (one object a logged step), checkpoints/ (Hugging Face model
directories that also resume), evaluation.json (the figures above, module by module).
TEXT
