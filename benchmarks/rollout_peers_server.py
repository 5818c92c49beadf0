"""What the vLLM server of ``rollout.py`` samples: two tool calls and an answer.

vLLM loads :class:`Script` with ``--logits-processors``. It leaves one token of each row possible,
the next one of the call, or of the answer after :data:`CALLS` tool responses, so that all systems
read the same tokens and do the same work. The model computes and the sampler draws as usual.
"""

import json
import os

import torch
from vllm.v1.sample.logits_processor import LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

CALLS = 2


class Script(LogitsProcessor):
    """``ROLLOUT_SCRIPT``: ids of ``call`` and ``answer``, and the one that opens a ``response``."""

    def __init__(self, vllm_config, device, is_pin_memory):
        self._script = json.loads(os.environ["ROLLOUT_SCRIPT"])
        self._rows = {}

    def is_argmax_invariant(self):
        return False

    def update_state(self, batch_update):
        process_dict_updates(self._rows, batch_update, self._turn)

    def _turn(self, params, prompt_ids, output_ids):
        """The ids of the turn, and those written so far, a list that vLLM extends."""
        over = (prompt_ids or []).count(self._script["response"]) >= CALLS
        return self._script["answer" if over else "call"], output_ids

    def apply(self, logits):
        rows = sorted(self._rows)
        turns = [self._rows[row] for row in rows]
        # Rows that vLLM adds for warming up have no end.
        tokens = [ids[min(len(written), len(ids) - 1)] for ids, written in turns]
        at = torch.tensor(rows, device=logits.device), torch.tensor(tokens, device=logits.device)
        if rows:
            kept = logits[at]
            logits.fill_(-float("inf"))
            logits[at] = kept
        return logits
