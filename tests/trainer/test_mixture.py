"""Two environments in one run: each task in its own, with its reward, its limits, its metrics."""

import json

import pytest

from agent_r1.errors import AgentR1Error, ConfigError, DataError
from agent_r1.runs import load as load_run
from agent_r1.trainer.build import train
from agent_r1.trainer.evaluate import evaluate

from .conftest import TOY
from .test_rl import assert_equal, final_state, lines

SETTINGS = [
    "data.train_files=[]",
    "data.val_files=[]",
    "envs.long.weight=3",
    f"envs.long.data.train_files=generator:{TOY}:tasks",
    f"envs.long.data.val_files=generator:{TOY}:tasks",
    "envs.short.weight=1",
    f"envs.short.data.train_files=generator:{TOY}:tasks",
    f"envs.short.data.val_files=generator:{TOY}:tasks",
    "envs.short.data.generator_kwargs={count: 3}",
    "envs.short.tool.max_turns=1",
    f"envs.short.reward.name={TOY}:a_quarter",
    "trainer.test_freq=2",
    "trainer.trajectory_file=jsonl",
]


def records(run, split="train"):
    stored = [json.loads(line) for line in (run / "trajectories.jsonl").read_text().splitlines()]
    return [record for record in stored if record["split"] == split]


def test_each_task_lives_in_its_environment_and_a_resumed_run_repeats_it(toy_config):
    whole = toy_config(*SETTINGS, run="whole")
    train(whole)
    first = toy_config(*SETTINGS, "trainer.total_training_steps=2", run="parts")
    train(first)
    second = toy_config(*SETTINGS, run="parts")
    train(second)
    one, other = whole.trainer.run_dir, second.trainer.run_dir
    assert_equal(final_state(one), final_state(other))
    assert lines(one, "trajectories.jsonl") == lines(other, "trajectories.jsonl")

    stored = records(one)
    by_env = {env: [r for r in stored if r["task"]["env"] == env] for env in ("long", "short")}
    assert (len(by_env["long"]), len(by_env["short"])) == (4 * 3 * 4, 4 * 1 * 4)
    assert {len(r["turns"]) for r in by_env["short"]} == {1}
    assert max(len(r["turns"]) for r in by_env["long"]) > 1
    assert {r["reward"]["value"] for r in by_env["short"]} == {0.25}
    assert all(r["task"]["id"].startswith(f"{r['task']['env']}/") for r in stored)
    _check_metrics(one, by_env)


def _check_metrics(run, by_env):
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in metrics if "env/long/share" in line]
    assert len(steps) == 4
    for number, line in enumerate(steps, 1):
        assert (line["env/long/share"], line["env/short/share"]) == (0.75, 0.25)
        assert line["env/short/reward/mean"] == 0.25
        assert line["env/short/num_turns/mean"] == 1
        mine = [r["reward"]["value"] for r in by_env["long"] if r["step"] == number]
        assert line["env/long/reward/mean"] == pytest.approx(sum(mine) / len(mine))
    validations = [line for line in metrics if "val-core/long/toy/reward/mean@1" in line]
    assert validations
    assert {line["val-core/short/toy/reward/mean@1"] for line in validations} == {0.25}


def test_tasks_of_the_runs_files_name_their_environment_in_a_column(toy_config, tmp_path):
    rows = [
        {"prompt": f"q{i}:", "answer": "1", "where": "long" if i % 2 else "short"} for i in range(8)
    ]
    file = tmp_path / "tasks.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = [
        f"data.train_files={file}",
        "data.val_files=[]",
        "data.answer_key=answer",
        "data.env_key=where",
        "envs.long.tool.max_turns=2",
        "envs.short.tool.max_turns=1",
        "trainer.total_training_steps=1",
    ]
    config = toy_config(*settings)
    train(config)
    frame = load_run(config.trainer.run_dir).trajectories()
    assert set(frame["env"]) == {"long", "short"}
    assert frame[frame["env"] == "short"]["turns"].max() == 1
    assert frame[frame["env"] == "long"]["turns"].max() == 2

    for override, told in (
        ("data.env_key=wher", "8 tasks .* name none"),
        ("envs.lon.weight=null", "no training task for lon"),
    ):
        with pytest.raises(DataError, match=told):
            train(toy_config(*settings, override, run="wrong"))
    rows[3]["where"] = "logn"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"1 tasks \(the first is .*\) name 'logn'.*'long'"):
        train(toy_config(*settings, run="wrong"))
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("envs.short.tool.env=retol", "retol"),
        ("envs.short.tool.tools=[pyton]", "pyton"),
        ("envs.short.reward.name=exact_mach", "exact_mach"),
        ("envs.short.data.train_files=generator:nothing", "nothing"),
    ],
)
def test_a_name_that_does_not_exist_is_found_before_anything_is_loaded(
    toy_config, tmp_path, override, told
):
    config = toy_config(*SETTINGS, override, "actor_rollout_ref.model.path=nowhere")
    with pytest.raises(ConfigError) as caught:
        train(config)
    assert told in str(caught.value)
    assert "nowhere" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_an_evaluation_reports_each_environment(toy_config, tmp_path):
    settings = [*SETTINGS, "envs.long.data.val_generator_kwargs={count: 2}"]
    reports = evaluate(toy_config(*settings), out=tmp_path / "eval")
    assert [(r.source, r.tasks) for r in reports] == [("long/toy", 2), ("short/toy", 3)]
    assert reports[1].estimates["reward"].value == 0.25
    assert reports[1].mean_turns == 1


def test_a_mixture_without_held_out_tasks_cannot_be_evaluated(toy_config, tmp_path):
    settings = [s for s in SETTINGS if "val_files=generator" not in s and "test_freq" not in s]
    with pytest.raises(ConfigError, match="no environment has tasks to evaluate"):
        evaluate(toy_config(*settings), out=tmp_path / "eval")


def test_another_environment_in_the_mixture_is_another_experiment(toy_config, tmp_path):
    train(toy_config(*SETTINGS, "trainer.total_training_steps=1"))
    with pytest.raises(ConfigError, match="another environment, reward or model"):
        train(toy_config(*SETTINGS, "envs.short.tool.max_turns=2"))


def test_a_task_of_no_environment_of_the_run_is_no_key_error():
    from agent_r1.rollout.mixture import of_task
    from agent_r1.types import Task

    with pytest.raises(AgentR1Error, match="has one, two"):
        of_task({"one": 1, "two": 2}, Task("t", "?", env="three"))
