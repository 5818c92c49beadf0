"""The run scripts of examples/trainer, through a real shell."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

FOLDER = Path(__file__).parents[1] / "examples" / "trainer"
SCRIPTS = sorted(FOLDER.glob("run_*_retool.sh"))
STOP = """actor_rollout_ref.rollout.stop='["</code>"]'"""


@pytest.fixture
def shell(tmp_path):
    """Run a line in bash in an empty folder, with ``agent-r1`` on the path."""
    command = tmp_path / "bin" / "agent-r1"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m agent_r1 "$@"\n')
    command.chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("AGENT_R1_")}
    environment["AGENT_R1_PROGRESS"] = "0"
    environment["PATH"] = f"{command.parent}:{environment['PATH']}"
    environment["PYTHONPATH"] = str(FOLDER.parents[1])

    def run(line, **variables):
        done = subprocess.run(
            ["bash", "-c", line],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env=environment | variables,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_there_is_a_script_for_each_family():
    assert [script.name for script in SCRIPTS] == [
        "run_grpo_retool.sh",
        "run_ppo_retool.sh",
        "run_reinforce_plus_plus_retool.sh",
    ]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_copied_script_takes_its_paths_and_the_stop_string(shell, tmp_path, script):
    shell(f"cp {shlex.quote(str(script))} ./")
    line = f"MODEL_PATH=./m DATA_DIR=./d bash {script.name} {STOP} trainer.seed=7 --print-config"
    config = yaml.safe_load(shell(line))
    assert config["actor_rollout_ref"]["rollout"]["stop"] == ["</code>"]
    assert config["actor_rollout_ref"]["model"]["path"] == "./m"
    assert config["data"]["train_files"] == ["./d/train.parquet"]
    assert config["tool"]["env"] == "retool" and config["trainer"]["seed"] == 7


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_the_stop_string_comes_from_the_environment_too(shell, script):
    line = f"""export AGENT_R1_OVERRIDES="{STOP.replace('"', chr(92) + '"')}"
    bash {shlex.quote(str(script))} --print-config"""
    assert yaml.safe_load(shell(line))["actor_rollout_ref"]["rollout"]["stop"] == ["</code>"]


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_the_script_trains_on_a_cpu_when_the_model_path_says_so(shell, tmp_path, script):
    import pandas

    from agent_r1.recipes.arithmetic import tasks
    from agent_r1.recipes.tiny import build_tiny_model

    build_tiny_model(tmp_path / "model", seed=0)
    for split, name, count in (("train", "train", 16), ("val", "val", 4)):
        rows = [
            {"prompt": task.prompt, "reward_model": {"ground_truth": str(task.answer)}}
            for task, _ in zip(tasks(split, 0), range(count), strict=False)
        ]
        pandas.DataFrame(rows).to_parquet(tmp_path / f"{name}.parquet")
    small = (
        "trainer.total_training_steps=2 data.train_batch_size=4 trainer.critic_warmup=0 "
        "actor_rollout_ref.actor.ppo_mini_batch_size=4 data.max_response_length=64 "
        "data.max_prompt_length=64 actor_rollout_ref.rollout.n=2 reward.overlong_buffer.len=8 "
        "algorithm.filter_groups.enable=false trainer.default_local_dir=run"
    )
    shell(f"MODEL_PATH=./model DATA_DIR=. bash {shlex.quote(str(script))} {small} {STOP}")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 2
    assert (tmp_path / "run/checkpoints/step-000002/policy/config.json").is_file()
