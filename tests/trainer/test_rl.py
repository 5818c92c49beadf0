"""The whole loop on a toy: it learns, resumes to the very same numbers, and loses nothing."""

import json

import pytest
import torch

from agent_r1.errors import ConfigError, DataError, ModelError, RolloutFailed
from agent_r1.monitor.records import read_records
from agent_r1.monitor.run import RunFolder
from agent_r1.monitor.tokens import TOKENS_FILE, TokenFinder
from agent_r1.trainer.build import train
from agent_r1.trainer.checkpoint import CheckpointStore, load_state, whole_state

from .conftest import TOY

TIMES = ("time", "timing_s", "perf/", "seconds", "generate_seconds", "tool_seconds")


def without_times(value):
    """The record without wall-clock readings, which no seed decides."""
    if isinstance(value, dict):
        return {
            key: without_times(item)
            for key, item in value.items()
            if not any(name in key for name in TIMES)
        }
    return [without_times(item) for item in value] if isinstance(value, list) else value


def lines(run, name):
    if name.startswith("trajectories"):
        return [without_times(record) for record in read_records(run)]
    text = (run / name).read_text()
    return [without_times(json.loads(line)) for line in text.splitlines()]


def final_state(run):
    path = CheckpointStore(run / "checkpoints").latest()
    return whole_state(load_state(path), path)


def assert_equal(one, other):
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_equal(left, right)
    else:
        assert one == other


def run_of(toy_config, *overrides, run="run"):
    config = toy_config(*overrides, run=run)
    train(config)
    return config.trainer.run_dir


ESTIMATORS = {
    "grpo": [],
    "gae": ["actor_rollout_ref.actor.ppo_epochs=2"],
    "reinforce_plus_plus": ["algorithm.use_kl_in_reward=true", "algorithm.kl_ctrl.type=adaptive"],
    "remax": ["actor_rollout_ref.actor.use_kl_loss=true"],
}


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_resumed_run_gives_the_very_same_numbers(toy_config, estimator):
    settings = [f"algorithm.adv_estimator={estimator}", *ESTIMATORS[estimator]]
    settings += ["trainer.test_freq=1", "actor_rollout_ref.actor.ppo_mini_batch_size=2"]
    settings += ["actor_rollout_ref.actor.optim.lr_scheduler_type=constant"]
    whole = run_of(toy_config, *settings, run="whole")
    parts = run_of(toy_config, *settings, "trainer.total_training_steps=2", run="parts")
    assert run_of(toy_config, *settings, run="parts") == parts
    assert_equal(final_state(whole), final_state(parts))
    assert lines(whole, "metrics.jsonl") == lines(parts, "metrics.jsonl")
    assert lines(whole, "trajectories.jsonl") == lines(parts, "trajectories.jsonl")
    assert (whole / TOKENS_FILE).read_bytes() == (parts / TOKENS_FILE).read_bytes()


def test_the_policy_changes_and_the_reward_is_logged(toy_config):
    run = run_of(toy_config, "trainer.total_training_steps=12")
    metrics = lines(run, "metrics.jsonl")
    rewards = [m["critic/rewards/mean"] for m in metrics if "critic/rewards/mean" in m]
    assert sum(rewards[-3:]) > sum(rewards[:3])
    assert [m["step"] for m in metrics] == list(range(13))
    assert all(m["training/logprob_diff_mean"] < 1e-4 for m in metrics[1:])


def test_every_trajectory_is_stored_whole(toy_config):
    from agent_r1.monitor.records import load_trajectories

    run = run_of(toy_config, "trainer.total_training_steps=2", "data.val_files=[]")
    trajectories = list(load_trajectories(run / "trajectories.jsonl"))
    assert len(trajectories) == 2 * 4 * 4
    for trajectory in trajectories:
        (sample,) = trajectory.samples()
        assert sum(sample.loss_mask) == trajectory.response_length
        assert trajectory.reward is not None
    answered = [t for t in trajectories if len(t.turns) > 1]
    assert len(answered) > 5
    for trajectory in answered:
        assert trajectory.turns[0].observation_text.startswith("[")
        assert trajectory.turns[1].prompt_ids == trajectory.turns[0].next_prompt_ids
    finder = TokenFinder(run)
    for number, trajectory in enumerate(trajectories):
        seen = finder.find(trajectory.id, 1 + number // 16, 1 + number // 16)
        assert {len(told) for told in seen.values()} == {trajectory.response_length}
        assert max(map(abs, seen["differences"])) < 1e-3 and min(seen["entropies"]) > 0
        assert len(set(seen["advantages"])) == 1  # GRPO: of the whole trajectory


def test_the_exported_policy_loads_as_a_plain_model_folder(toy_config):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = run_of(toy_config, "trainer.total_training_steps=1")
    policy = CheckpointStore(run / "checkpoints").latest() / "policy"
    model = AutoModelForCausalLM.from_pretrained(policy)
    assert AutoTokenizer.from_pretrained(policy).encode("a") == [97]
    saved = final_state(run)["worker"]["actor"]["module"]
    assert_equal(dict(model.state_dict()), {k: saved[k] for k in model.state_dict()})


def test_dynamic_sampling_keeps_groups_that_differ(toy_config):
    run = run_of(
        toy_config,
        "trainer.total_training_steps=1",
        "data.val_files=[]",
        "algorithm.filter_groups={enable: true, metric: accuracy, max_num_gen_batches: 3}",
    )
    stored = lines(run, "trajectories.jsonl")
    assert len(stored) in (16, 32, 48)


# --- what goes wrong ---------------------------------------------------------------------


def test_a_broken_environment_stops_the_run_after_storing_what_there_is(toy_config):
    config = toy_config(
        "tool.env_kwargs={fail_on: '0:'}",
        "actor_rollout_ref.rollout.max_failed_share=0.05",
        "data.val_files=[]",
    )
    with pytest.raises(RolloutFailed, match="the toy broke"):
        train(config)
    outcomes = [t["outcome"] for t in lines(config.trainer.run_dir, "trajectories.jsonl")]
    assert 0 < outcomes.count("tool_error") <= 4
    assert len(outcomes) == 16


def test_a_few_failures_are_left_out_and_counted(toy_config):
    run = run_of(
        toy_config,
        "tool.env_kwargs={fail_on: '0:'}",
        "actor_rollout_ref.rollout.max_failed_share=0.5",
        "trainer.total_training_steps=1",
        "data.val_files=[]",
    )
    (metrics,) = lines(run, "metrics.jsonl")
    assert 0 < metrics["rollout/failed"] <= 1 / 4


def test_a_reward_that_gives_no_number_stops_the_run(toy_config):
    with pytest.raises(RolloutFailed, match="nan"):
        train(toy_config(f"reward.name={TOY}:nan", "data.val_files=[]"))


def test_a_reward_that_raises_names_its_error(toy_config):
    with pytest.raises(RolloutFailed, match="no such column"):
        train(toy_config(f"reward.name={TOY}:sometimes_raises", "data.val_files=[]"))


def test_a_run_that_shall_validate_needs_something_to_validate_on(toy_config):
    with pytest.raises(ConfigError, match=r"data\.val_files.*test_freq=-1"):
        train(toy_config("trainer.test_freq=5", "data.val_files=[]"))


def test_prompts_that_are_too_long_are_counted_or_refused(toy_config):
    with pytest.raises(DataError, match=r"data\.max_prompt_length"):
        train(toy_config("data.max_prompt_length=2"))
    with pytest.raises(DataError, match="filter_overlong_prompts"):
        train(toy_config("data.max_prompt_length=2", "data.filter_overlong_prompts=false"))


def test_a_model_folder_without_a_tokenizer_says_so(toy_config, tmp_path):
    from agent_r1.testing import tiny_model

    folder = tmp_path / "bare"
    tiny_model().save_pretrained(folder)
    with pytest.raises(ModelError, match="tokenizer"):
        train(toy_config(f"actor_rollout_ref.model.path={folder}"))


def test_no_data_names_the_setting(toy_config):
    with pytest.raises((ConfigError, DataError), match=r"data\.train_files"):
        train(toy_config("data.train_files=[]"))


def test_a_fresh_start_moves_the_earlier_run_aside(toy_config):
    run = run_of(toy_config, "trainer.total_training_steps=1")
    first = lines(run, "metrics.jsonl")
    run_of(toy_config, "trainer.total_training_steps=1", "trainer.resume_mode=disable")
    assert lines(run, "metrics.jsonl") == first
    assert (run / "earlier" / "001" / "metrics.jsonl").is_file()


def test_a_run_continued_with_other_settings_records_what_changed(toy_config, monkeypatch):
    told = []
    monkeypatch.setattr(RunFolder, "announce", lambda self, message: told.append(message))
    run = run_of(toy_config, "trainer.total_training_steps=1")
    with pytest.raises(ConfigError, match=r"tool\.max_turns: 3 -> 2"):
        run_of(toy_config, "tool.max_turns=2", "trainer.total_training_steps=2")
    assert "max_turns: 3" in (run / "config.yaml").read_text()
    run_of(toy_config, "trainer.total_training_steps=2", "actor_rollout_ref.actor.optim.lr=1e-3")
    first, second = json.loads((run / "run.json").read_text())["sessions"]
    assert "changes" not in first
    assert second["from_step"] == 1
    assert second["changes"] == {
        "actor_rollout_ref.actor.optim.lr": {"before": 0.01, "after": 0.001},
        "trainer.total_training_steps": {"before": 1, "after": 2},
    }
    assert told == [
        "continuing after step 1, from here on with 2 changed settings:\n"
        "  actor_rollout_ref.actor.optim.lr: 0.01 -> 0.001\n"
        "  trainer.total_training_steps: 1 -> 2"
    ]


def test_a_run_saves_by_time_and_keeps_the_last_of_these(toy_config):
    run = run_of(toy_config, "trainer.save_minutes=1e-9", "trainer.save_freq=2")
    assert [p.name for p in CheckpointStore(run / "checkpoints").list()] == [
        "step-000002",
        "step-000004",
    ]
    other = run_of(toy_config, "trainer.save_minutes=1e-9", run="other")
    assert [p.name for p in CheckpointStore(other / "checkpoints").list()] == ["step-000004"]


def test_every_name_and_file_that_is_wrong_is_reported_at_once(toy_config):
    with pytest.raises(ConfigError) as caught:
        train(
            toy_config(
                "algorithm.adv_estimator=absent.module:best",
                "reward.name=grade",
                "tool.env=retol",
                "tool.tools=[pyton]",
                "data.train_files=[absent.parquet]",
                "data.val_files=[generator:arithmetik]",
                "actor_rollout_ref.model.path=./absent",
            )
        )
    first, *mistakes = str(caught.value).splitlines()
    assert first == "7 mistakes:"
    for expected, mistake in zip(
        ["absent.py:NAME", "grade", "did you mean 'retool'", "did you mean 'python'",
         "absent.parquet", "did you mean 'arithmetic'", "does not exist"],
        mistakes,
        strict=True,
    ):  # fmt: skip
        assert expected in mistake
