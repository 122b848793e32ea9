#!/usr/bin/env bash
# Kills training with SIGKILL at N random moments, resumes it each time with the same command until it has ended, and compares
# what it leaves, byte for byte, with what an uninterrupted run leaves. A tiny model that saves every few steps, so that many
# kills fall into saving.
#
#   scripts/crash_test.sh N [--program build/outeffhop] [--seed S] [--steps 300] [--keep]
#
# --seed repeats the delays of an earlier test (when the kills fall also depends on the machine); --keep leaves the files.
# The exit status is 0 if every run ended as the uninterrupted one did. Needs python3, for the shards and the metrics.
set -euo pipefail
export LC_ALL=C

usage() { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; }
refuse() { echo "crash_test.sh: $*" >&2; exit 2; }

kills='' seed=$((EPOCHSECONDS % 1000000)) steps=300 keep=false
program=$(dirname "$0")/../build/outeffhop
while (($#)); do
  case $1 in
    --help | -h) usage; exit ;;
    --keep) keep=true ;;
    --program | --seed | --steps)
      (($# > 1)) || refuse "$1 needs a value"
      printf -v "${1#--}" %s "$2"
      shift ;;
    -*) refuse "unknown option $1; see --help" ;;
    *) [[ -z $kills ]] || refuse "one number of kills, please: $kills or $1?"; kills=$1 ;;
  esac
  shift
done
for number in "$kills" "$seed" "$steps"; do
  [[ $number =~ ^[0-9]{1,9}$ ]] || refuse "expected a number, got \"$number\": scripts/crash_test.sh 20"
done
((10#$steps >= 20)) || refuse "--steps $steps: at least 20, so that there is something to save"
[[ -x $program ]] || refuse "there is no program $program: build it with scripts/build.sh, or name it with --program"
program=$(realpath "$program")

folder=$(mktemp -d)
running=''
clean_up() {
  if [[ -n $running ]]; then kill -9 "$running" 2>/dev/null || true; fi
  if $keep; then echo "files: $folder"; else rm -rf "$folder"; fi
}
trap clean_up EXIT
cd "$folder"
echo "crash_test.sh: $kills kills, --seed $seed, $program"

python3 - "$steps" <<'PYTHON'
import json, struct, sys
for name, count in (("train_000", 6000), ("train_001", 3000), ("val_000", 500)):
    tokens = [5 + (i * i + i // 7) % 50 for i in range(count)]
    with open(f"tiny_{name}.bin", "wb") as shard:
        shard.write(struct.pack("<256i", 20240520, 1, count, *[0] * 253) + struct.pack(f"<{count}H", *tokens))
json.dump({"vocab_size": 64, "special_ids": [0, 1, 2, 3], "mask_id": 3, "pad_id": 0, "bos_id": 1, "eos_id": 2},
          open("metadata.json", "w"))
json.dump({
    "model": {"model_type": "bert", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
              "intermediate_size": 128, "max_position_embeddings": 32},
    "data": {"train": "tiny_train_*.bin", "validation": "tiny_val_*.bin", "sequence_length": 32},
    "training": {"steps": int(sys.argv[1]), "global_batch_size": 8, "micro_batch_size": 4, "threads": 1},
    "optimizer": {"learning_rate": 1e-3},
    "evaluation": {"interval": 25, "batches": 2},
    "checkpoint": {"interval": 3, "keep_last": 2, "keep_every": 50},
    "logging": {"interval": 1}}, open("config.json", "w"))
PYTHON

# train RUN [OPTION...]: starts training in the background; $running is its process.
train() {
  "$program" train --config config.json --out "$@" >log 2>&1 &
  running=$!
}
# Waits for $running; its exit status is $status.
status=0
finish() {
  status=0
  { wait "$running" || status=$?; } 2>/dev/null
  running=''
}
# Microseconds.
now() { echo "${EPOCHREALTIME/./}"; }
# random N: $drawn is from 0 to N - 1.
RANDOM=$((10#$seed % 32768)) drawn=0
random() { drawn=$(((RANDOM * 32768 + RANDOM) % ($1 > 0 ? $1 : 1))); }
broken() {
  echo "FAILED: $*"
  if [[ -f log ]]; then tail -n 5 log; fi
  exit 1
}

begin=$(now)
train first --stop-after 1
finish
((status == 0)) || broken "training of one step ended with $status"
start_up=$(($(now) - begin))
begin=$(now)
train whole
finish
((status == 0)) || broken "the uninterrupted run ended with $status"
whole=$(($(now) - begin))
last=$(printf 'checkpoints/step_%08d' "$((10#$steps))")
[[ -d whole/$last ]] || broken "the uninterrupted run has no $last"

# Compares an interrupted run that has ended with the uninterrupted one.
compare() {
  local file entry
  for file in model.safetensors optimizer.safetensors; do
    cmp "whole/$last/$file" "run/$last/$file" || broken "$file differs after run $runs"
  done
  for entry in run/checkpoints/*; do
    [[ ${entry##*/} =~ ^step_[0-9]{8}$ ]] || broken "$entry was left behind"
  done
  python3 - "$steps" "$last" <<'PYTHON' || broken "the records of run $runs differ"
import json, sys
def read(run):
    objects = [json.loads(line) for line in open(f"{run}/metrics.jsonl")]
    objects = [o for o in objects if "resumed" not in o]
    for o in objects:  # what depends on the clock
        o.pop("seconds", 0), o.pop("tokens_per_second", 0), o.pop("loading_share", 0)
    state = json.load(open(f"{run}/{sys.argv[2]}/trainer.json"))
    return objects, {k: v for k, v in state.items() if k not in ("seconds", "config")}
(whole, whole_state), (run, run_state) = read("whole"), read("run")
logged = [o["step"] for o in run if "loss" in o]
if logged != list(range(1, int(sys.argv[1]) + 1)):
    sys.exit(f"the logged steps are not 1 to {sys.argv[1]}, once each and in order: {logged}")
for a, b in zip(whole, run):
    if a != b:
        sys.exit(f"metrics.jsonl: {a} became {b}")
if len(whole) != len(run) or whole_state != run_state:
    sys.exit(f"{len(whole)} lines and {whole_state} became {len(run)} lines and {run_state}")
PYTHON
}

# Where the process that was just killed stood.
starting=0 before_first=0 saving=0 deleting=0 between=0
count_phase() {
  if ! grep -qE '^(resumed|step) ' log; then
    starting=$((starting + 1))
  elif compgen -G 'run/checkpoints/*.unfinished' >/dev/null; then
    saving=$((saving + 1))
  elif compgen -G 'run/checkpoints/*.deleted' >/dev/null; then
    deleting=$((deleting + 1))
  elif ! compgen -G 'run/checkpoints/step_*' >/dev/null; then
    before_first=$((before_first + 1))
  else
    between=$((between + 1))
  fi
}

runs=0 killed=0 shown=$EPOCHSECONDS
kills=$((10#$kills))
while ((killed < kills)); do
  rm -rf run
  runs=$((runs + 1))
  ended=false
  while ! $ended; do
    if ((killed == kills)); then
      train run
      finish
    else
      # One in five falls into the start, the others into the first half of an uninterrupted run.
      random 5
      if ((drawn == 0)); then random "$start_up"; else random $((whole / 2)); fi
      delay=$(printf '%d.%06d' $((drawn / 1000000)) $((drawn % 1000000)))
      train run
      sleep "$delay"
      kill -9 "$running" 2>/dev/null || true
      finish
    fi
    case $status in
      0) ended=true ;;
      137)
        killed=$((killed + 1))
        count_phase
        if ((EPOCHSECONDS >= shown + 5)); then
          shown=$EPOCHSECONDS
          echo "  $killed of $kills kills, $runs runs"
        fi ;;
      *) broken "after $killed kills run $runs ended with $status" ;;
    esac
  done
  compare
done
echo "$killed kills in $runs runs of $steps steps: $starting while starting, $before_first before the first checkpoint," \
  "$saving while saving, $deleting while deleting an old one, $between between saves"
echo "every run left the bytes of the uninterrupted one"
