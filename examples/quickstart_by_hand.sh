#!/usr/bin/env bash
# The quick start in its three commands. Each can be interrupted and run again.
#
#   examples/quickstart_by_hand.sh                          # GRPO into runs/by-hand
#   examples/quickstart_by_hand.sh algorithm.adv_estimator=gae
#
# Arguments are settings of the last stage. The seed comes from the variable SEED, the
# folder from RUN, the interpreter from PYTHON.
set -euo pipefail

PYTHON=${PYTHON:-python}
SEED=${SEED:-0}
RUN=${RUN:-runs/by-hand}
RECIPES=$("$PYTHON" -c 'import agent_r1.recipes as r; print(r.__path__[0])')

# 1. A model of 0.7 million random parameters with a tokenizer and a chat template.
if [ ! -e "$RUN/model" ]; then
  "$PYTHON" -c "from agent_r1.recipes.tiny import build_tiny_model as b; b('$RUN/model', $SEED)"
fi

# 2. Cold start: traces of tool calls, most of them wrong.
"$PYTHON" -m agent_r1 sft --config "$RECIPES/quickstart_cold_start.yaml" \
  model.path="$RUN/model" trainer.default_local_dir="$RUN/cold-start" trainer.seed="$SEED"

# 3. Reinforcement learning with the tool.
"$PYTHON" -m agent_r1 train --config "$RECIPES/quickstart.yaml" \
  actor_rollout_ref.model.path="$RUN/cold-start/policy" \
  trainer.default_local_dir="$RUN/rl" trainer.seed="$SEED" "$@"

echo "Now: $PYTHON -m agent_r1 chat --run $RUN/rl"
