"""Training as a library, as a notebook would."""

import asyncio
import re
from pathlib import Path

import pytest
import torch

import agent_r1
from agent_r1.errors import ConfigError
from agent_r1.testing import byte_tokenizer, tiny_model

from .toy import InterruptingEnv, ToyEnv, likes_low_bytes, tasks

SETTINGS = {
    "data.train_batch_size": 4,
    "data.max_prompt_length": 16,
    "data.max_response_length": 40,
    "actor_rollout_ref.actor.optim.lr": 0.01,
    "actor_rollout_ref.rollout.n": 4,
    "actor_rollout_ref.rollout.response_length": 12,
    "actor_rollout_ref.rollout.stop_token_ids": list(range(64)),
    "tool.tools": [],
    "trainer.total_training_steps": 3,
    "trainer.logger": [],
    "trainer.device": "cpu",
}
ROWS = [{"prompt": f"q{i}:", "answer": str(i)} for i in range(8)]


def trainer(tmp_path, **given):
    settings = {**SETTINGS, "trainer.default_local_dir": str(tmp_path / "run")}
    objects = {
        "model": tiny_model(),
        "tokenizer": byte_tokenizer(chat_template=None),
        "env": ToyEnv(),
        "reward": lambda trajectory: likes_low_bytes(trajectory).value,
        "data": ROWS,
    }
    return agent_r1.Trainer(None, settings, **{**objects, **given})


def test_one_step_at_a_time_with_objects_in_place_of_names(tmp_path):
    model = tiny_model()
    with trainer(tmp_path, model=model) as run:
        first = run.step()
        assert (first.number, run.number, len(first.trajectories)) == (1, 1, 16)
        assert {t.task.prompt for t in first.trajectories} <= {row["prompt"] for row in ROWS}
        scored = [likes_low_bytes(t).value for t in first.trajectories]
        assert first.reward == pytest.approx(sum(scored) / 16)
        assert first.metrics["critic/rewards/mean"] == pytest.approx(first.reward)
        assert [step.number for step in run.fit()] == [2, 3]
        folder = run.save()
        trained, before = run.model.state_dict(), model.state_dict()
        assert any(not torch.equal(trained[name].cpu(), before[name]) for name in before)
    assert (folder / "config.json").is_file() and folder.parent.name == "step-000003"


def test_it_works_where_an_event_loop_is_running(tmp_path):
    async def cell():
        with trainer(tmp_path, data=list(tasks()), env=ToyEnv) as run:
            return run.step().number

    assert asyncio.run(cell()) == 1


def test_rows_without_an_answer_and_models_without_a_tokenizer_are_named(tmp_path):
    with pytest.raises(ConfigError, match="row 0 of the data has no 'answer'"):
        trainer(tmp_path, data=[{"prompt": "q"}])
    with pytest.raises(ConfigError, match="needs its tokenizer"):
        trainer(tmp_path, tokenizer=None)


def test_the_names_are_there_and_nothing_heavy_is_imported_for_them():
    assert set(agent_r1.__all__) <= set(dir(agent_r1))
    for name in agent_r1.__all__:
        assert getattr(agent_r1, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Trainor'"):
        _ = agent_r1.Trainor


def test_an_interrupted_step_can_be_taken_again(tmp_path):
    with trainer(tmp_path, env=InterruptingEnv("2.", delay=0.0)) as run:
        assert run.step().number == 1
        with pytest.raises(KeyboardInterrupt):
            run.step()
        done = run.number  # 2 if the step was finished before the interrupt was seen
        assert done in (1, 2)
        assert run.step().number == done + 1


def test_the_notebook_page_can_be_followed(tmp_path, monkeypatch):
    page = Path(__file__).parents[2] / "docs" / "notebook.md"
    cells = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert len(cells) >= 5
    monkeypatch.chdir(tmp_path)
    names: dict = {}

    async def notebook():  # a kernel runs its cells on a running event loop
        for cell in cells:
            exec(compile(cell, str(page), "exec"), names)

    asyncio.run(notebook())
    assert names["trainer"].number == 4
    assert (tmp_path / "runs" / "notebook" / "metrics.jsonl").is_file()
