"""The quick start with vLLM beside the trainer: VLLM_PYTHON=.../bin/python pytest -m vllm."""

import json
import os

import pytest

from agent_r1.recipes.quickstart import quickstart

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(5400)]

STALENESS = 2


def test_rollouts_by_vllm_that_are_two_updates_old_teach_the_quick_starts_task(tmp_path):
    python = os.environ.get("VLLM_PYTHON")
    if not python:
        pytest.skip("VLLM_PYTHON names no interpreter that has vLLM")
    report = quickstart(
        None,
        [
            f"trainer.default_local_dir={tmp_path}",
            "trainer.logger=[]",
            f"trainer.max_staleness={STALENESS}",
            "actor_rollout_ref.rollout.name=vllm",
            f"actor_rollout_ref.rollout.vllm.python={python}",
            "actor_rollout_ref.rollout.vllm.args=[--block-size,'32']",
            "actor_rollout_ref.rollout.vllm.env={OMP_NUM_THREADS: '1'}",
            # vLLM, the trainer and the tools may have to share two cores.
            "sandbox.limits={wall_seconds: 10, memory_bytes: 256MiB}",
            "tool.timeout_s=900",
        ],
    )
    text = (tmp_path / "rl" / "metrics.jsonl").read_text()
    steps = [json.loads(line) for line in text.splitlines()]
    trained = [step for step in steps if "async/staleness/max" in step]
    assert max(step["async/staleness/max"] for step in trained) == STALENESS
    assert max(step["async/staleness/mean"] for step in trained) > 0.5
    assert trained[-1]["weights/version"] == trained[-1]["step"]
    assert report.before.success < 0.45
    assert report.after.success > 0.9
