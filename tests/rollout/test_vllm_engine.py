"""A real vLLM on the CPU: ``make test-vllm``, or VLLM_PYTHON=…/bin/python pytest -m vllm."""

import asyncio
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from vllm_kit import logprobs_by, model_folder, model_of, run, running, settings, weights

from agent_r1.models.lora import add_lora, lora_layers
from agent_r1.rollout.agent_loop import AgentLoop
from agent_r1.rollout.codec import Codec
from agent_r1.rollout.group import Group, GroupRunner
from agent_r1.rollout.limits import LoopLimits, Sampling
from agent_r1.testing import byte_tokenizer
from agent_r1.tool.base import BaseToolEnv
from agent_r1.types import Finish, Outcome, Reward, SamplingParams, Task

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

PROMPT = list(b"What is 3 times 4? ")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return model_folder(tmp_path_factory.mktemp("model"))


class Nods(BaseToolEnv):
    """Answers every turn but the fourth."""

    stop_strings = ("Q", "Y", "{", "6")

    def step(self, raw_response):
        return "\nyes\n", [True], True


async def scored(trajectory):
    return replace(trajectory, reward=Reward(1.0))


def runner(engine):
    limits = LoopLimits(max_turns=4, max_response_length=200, max_tokens_per_turn=40)
    codec = Codec(byte_tokenizer(chat_template=None))
    return GroupRunner(AgentLoop(engine, codec, Nods(), limits), engine, scored)


def exact(model, trajectory, version):
    """Every token of this version has the probability that the model gives it."""
    for turn in trajectory.turns:
        found = np.array(logprobs_by(model, turn.prompt_ids, turn.completion))
        mine = np.array(turn.completion.token_versions()) == version
        assert np.allclose(found[mine], np.array(turn.completion.logprobs)[mine], atol=1e-3)


def test_sampling_stopping_tools_and_weights_between_and_during(folder, tmp_path):
    first, second, third = (model_of(seed) for seed in range(3))
    sampling = Sampling(stop=Nods.stop_strings)

    async def body():
        async with running(folder, tmp_path) as engine:
            await engine.load_weights(weights(first), 0)
            once = await engine.generate(PROMPT, SamplingParams(40, seed=1), "a")
            again = await engine.generate(PROMPT, SamplingParams(40, seed=1), "b")
            assert once == again
            assert np.allclose(logprobs_by(first, PROMPT, once), once.logprobs, atol=1e-3)
            warm = SamplingParams(40, temperature=0.7, stop=("a", "e"), seed=2)
            stopped = await engine.generate(PROMPT, warm, "c")
            assert stopped.finish in (Finish.STOP, Finish.LENGTH, Finish.EOS)

            groups = [Group(Task(str(i), f"Question {i}: "), f"g{i}", 4) for i in range(4)]
            before = await runner(engine).run(groups, sampling)
            await engine.load_weights(weights(second), 1)
            between = await runner(engine).run(groups, sampling)
            job = asyncio.create_task(runner(engine).run(groups, sampling))
            await asyncio.sleep(0.3)
            await engine.load_weights(weights(third), 2)
            during = await job
            return before, between, during

    before, between, during = run(body())
    models = (first, second, third)
    for version, trajectories in ((0, before), (1, between)):
        for trajectory in trajectories:
            assert trajectory.outcome in (Outcome.TURN_LIMIT, Outcome.LENGTH)
            assert {v for t in trajectory.turns for v in t.completion.token_versions()} == {version}
            exact(models[version], trajectory, version)
        called = [t for t in trajectories if len(t.turns) > 1]
        assert called and all(t.turns[0].observation_text == "\nyes\n" for t in called)
    written = {v for t in during for turn in t.turns for v in turn.completion.token_versions()}
    assert 2 in written
    for trajectory in during:
        exact(second, trajectory, 1)
        exact(third, trajectory, 2)


def test_an_output_layer_that_is_tied_to_the_embedding_is_updated_too(tmp_path):
    models = [model_of(seed, tied=True) for seed in range(2)]
    folder = model_folder(tmp_path / "tied", tied=True)

    async def body():
        async with running(folder, tmp_path) as engine:
            found = []
            for version, model in enumerate(models):
                await engine.load_weights(weights(model), version)
                found.append(await engine.generate(PROMPT, SamplingParams(24, seed=1), "a"))
            return found

    for model, completion in zip(models, run(body()), strict=True):
        assert np.allclose(logprobs_by(model, PROMPT, completion), completion.logprobs, atol=1e-3)


def test_adapters_alone_are_sent_and_added_to_their_base(folder, tmp_path):
    pytest.importorskip("peft")
    model = add_lora(model_of(), rank=4, alpha=8.0, targets=("q_proj", "down_proj"))
    pairs = [layer.lora_B["default"].weight for _, layer in lora_layers(model)]

    async def body():
        async with running(folder, tmp_path) as engine:
            found = []
            for version in range(3):
                with torch.no_grad():
                    for number, weight in enumerate(pairs):
                        torch.manual_seed(100 * version + number)
                        weight.normal_(std=0.5 * version)
                size = await engine.load_weights(weights(model), version)
                completion = await engine.generate(PROMPT, SamplingParams(24, seed=1), str(version))
                expected = logprobs_by(model, PROMPT, completion)
                found.append((size, completion, expected))
            return found

    base, first, second = run(body())
    assert second[0] == first[0] < base[0] / 4
    for _, completion, expected in (base, first, second):
        assert np.allclose(expected, completion.logprobs, atol=1e-3)
    assert len({one[1].token_ids for one in (base, first, second)}) == 3


def test_more_prompts_at_once_than_one_step_computes(folder, tmp_path):
    """64 x 300 tokens, seeded: none may be computed in pieces on a CPU."""

    async def body():
        async with running(folder, tmp_path) as engine:
            jobs = [
                engine.generate(
                    [(7 * i + k) % 256 for k in range(300)], SamplingParams(4, seed=i), str(i)
                )
                for i in range(64)
            ]
            return await asyncio.gather(*jobs), engine.repeated

    found, repeated = run(body())
    assert len(found) == 64 and repeated == 0


def engine_core(pid):
    """vLLM's own child, which computes."""
    psutil = pytest.importorskip("psutil")
    return next(p for p in psutil.Process(pid).children(recursive=True) if "EngineCore" in p.name())


def test_an_engine_killed_or_wedged_in_mid_flight_comes_back_with_its_weights(folder, tmp_path):
    """And a queue that is full, as eight trajectories share two places."""
    second = model_of(1)
    rollout = settings(timeout_s=10.0).model_copy(update={"max_num_seqs": 2})
    groups = [Group(Task(str(i), f"Question {i}: "), f"g{i}", 2) for i in range(4)]

    async def body():
        async with running(folder, tmp_path, rollout) as engine:
            await engine.load_weights(weights(second), 5)
            (process,) = (r.process for r in engine.replicas)
            results = []
            for number in (signal.SIGKILL, signal.SIGSTOP):
                told = []
                job = asyncio.create_task(
                    runner(engine).run(groups, Sampling(stop=Nods.stop_strings), told.append)
                )
                await asyncio.sleep(0.5)
                if number == signal.SIGKILL:
                    os.killpg(process.pid, signal.SIGKILL)
                else:
                    os.kill(engine_core(process.pid).pid, signal.SIGSTOP)
                results.append((await job, told))
            return results, engine.replicas[0].starts, engine.repeated

    results, starts, repeated = run(body())
    assert starts == 3 and repeated > 0
    for trajectories, told in results:
        assert sorted(t.id for t in told) == sorted(t.id for t in trajectories)
        assert len({t.id for t in told}) == 8
        for trajectory in trajectories:
            assert not trajectory.outcome.failed
            exact(second, trajectory, 5)
            assert {v for t in trajectory.turns for v in t.completion.token_versions()} == {5}


def test_of_two_replicas_one_dies_and_the_other_goes_on(folder, tmp_path):
    second = model_of(1)
    rollout = settings(replicas=2)
    groups = [Group(Task(str(i), f"Question {i}: "), f"g{i}", 4) for i in range(4)]

    async def body():
        async with running(folder, tmp_path, rollout) as engine:
            await engine.load_weights(weights(second), 1)
            job = asyncio.create_task(runner(engine).run(groups, Sampling(stop=Nods.stop_strings)))
            await asyncio.sleep(0.3)
            os.killpg(engine.replicas[0].process.pid, signal.SIGKILL)
            found = await job
            await engine.load_weights(weights(second), 2)
            later = await engine.generate(PROMPT, SamplingParams(8), "z")
            return found, later

    found, later = run(body())
    assert len(found) == 16 and not any(t.outcome.failed for t in found)
    for trajectory in found:
        exact(second, trajectory, 1)
    assert later.versions == ((0, 2),)
