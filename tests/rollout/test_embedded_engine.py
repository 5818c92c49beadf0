"""The embedded engine against transformers, and its behaviour at the edges."""

from __future__ import annotations

import asyncio
import copy
import threading
import time

import numpy as np
import pytest
import torch
from embedded_kit import (
    FAMILIES,
    Episode,
    engine,
    episode,
    prompt,
    reference_logprobs,
    run,
    tiny_model,
    using,
)

from agent_r1.errors import EngineError
from agent_r1.models.fused import fuse_elementwise
from agent_r1.models.load import enable_packing
from agent_r1.models.lora import add_lora, lora_layers
from agent_r1.models.recompute import recompute_elementwise
from agent_r1.rollout.engines.embedded import EmbeddedEngine
from agent_r1.rollout.engines.embedded_lean import is_lean
from agent_r1.types import Completion, Finish, SamplingParams


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_transformers_generate(family: str) -> None:
    model = tiny_model(family)
    prompts = [prompt(seed, 5 + 7 * seed) for seed in range(4)]

    async def body(built: EmbeddedEngine) -> list[Completion]:
        sampling = SamplingParams(20, temperature=0.0)
        calls = (built.generate(ids, sampling, f"r{i}") for i, ids in enumerate(prompts))
        return await asyncio.gather(*calls)

    for ids, completion in zip(prompts, using(engine(model), body), strict=True):
        expected = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids)),
            max_new_tokens=20,
            do_sample=False,
            pad_token_id=0,
        )
        assert list(completion.token_ids) == expected[0, len(ids) :].tolist()
        assert completion.finish is Finish.LENGTH


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_equal_a_plain_forward_over_several_turns(family: str, native: bool) -> None:
    model = tiny_model(family)

    async def body(built: EmbeddedEngine) -> list[Episode]:
        built.open([f"r{i}" for i in range(12)])
        return await asyncio.gather(
            *(
                episode(built, f"r{i}", prompt(i // 3, 20 + i // 3), seed=i, temperature=0.8)
                for i in range(12)
            )
        )

    done = using(engine(model, max_slots=5, prefill_chunk=16, native=native), body)
    difference = np.concatenate(
        [
            np.subtract(reference, completion.logprobs)
            for one in done
            for reference, completion in zip(
                reference_logprobs(model, one, 0.8), one.completions, strict=True
            )
        ]
    )
    assert len(difference) == 12 * (9 + 10 + 11)
    assert np.abs(difference).mean() < 1e-5
    assert np.abs(difference).max() < 1e-3


@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_adapters_are_part_of_the_policy_that_is_sampled_from(family: str) -> None:
    model = add_lora(tiny_model(family), rank=4, alpha=8)
    with torch.no_grad():
        for _, layer in lora_layers(model):
            layer.lora_B["default"].weight.normal_(std=0.3)
    assert is_lean(model) == (family == "qwen3")

    async def body(built: EmbeddedEngine) -> Episode:
        built.open(["r"])
        return await episode(built, "r", prompt(0, 20))

    done = using(engine(model), body)
    for expected, completion in zip(reference_logprobs(model, done), done.completions, strict=True):
        assert np.abs(np.subtract(expected, completion.logprobs)).max() < 1e-4


@pytest.mark.parametrize("native", [True, False])
def test_a_model_prepared_for_training_is_sampled_from_as_it_was(native: bool) -> None:
    model = tiny_model("qwen3")
    enable_packing(model)
    fuse_elementwise(model, compile_=lambda function: function)
    recompute_elementwise(model)
    add_lora(model, rank=2, alpha=4)
    model.model.layers[0].mlp.up_proj.register_forward_hook(lambda *_: None)  # the general way
    assert not is_lean(model)

    async def body(built: EmbeddedEngine) -> Episode:
        built.open(["r"])
        return await episode(built, "r", prompt(0, 20))

    done = using(engine(model, native=native), body)
    plain = add_lora(tiny_model("qwen3"), rank=2, alpha=4)
    plain.load_state_dict(model.state_dict())
    for expected, completion in zip(reference_logprobs(plain, done), done.completions, strict=True):
        assert np.abs(np.subtract(expected, completion.logprobs)).max() < 1e-4


def test_the_lean_forward_serves_the_families_it_knows() -> None:
    assert [f for f in FAMILIES if is_lean(tiny_model(f))] == ["llama", "mistral", "qwen2", "qwen3"]
    adapted = tiny_model("qwen3")
    adapted.model.layers[0].mlp.up_proj.register_forward_hook(lambda *_: None)
    assert not is_lean(adapted)


def test_a_completion_does_not_depend_on_its_company() -> None:
    model = tiny_model()

    async def alone(built: EmbeddedEngine) -> Episode:
        return await episode(built, "a", prompt(1, 30), seed=7)

    async def together(built: EmbeddedEngine) -> Episode:
        others = [episode(built, f"o{i}", prompt(i, 11 * i + 3), seed=i) for i in range(6)]
        return (await asyncio.gather(episode(built, "a", prompt(1, 30), seed=7), *others))[0]

    first, second = using(engine(model), alone), using(engine(model), together)
    assert first.tokens == second.tokens


def test_the_past_is_computed_once() -> None:
    async def body(built: EmbeddedEngine) -> Episode:
        return await episode(built, "a", prompt(0, 40), turns=3)

    built = engine()
    done = using(built, body)
    stats = built.stats()
    sampled = sum(len(c.token_ids) for c in done.completions)
    # Every token but the last is fed exactly once, as part of a chunk or as a decode row.
    assert stats.prefill_tokens + stats.decode_rows == len(done.tokens) - 1
    assert stats.generated_tokens == stats.decode_rows == sampled
    assert stats.reused_tokens > 80


def test_an_edited_history_is_computed_anew_from_the_edit_on() -> None:
    model, first = tiny_model(), prompt(0, 40)
    edited = [*first[:25], *prompt(9, 10)]

    async def body(built: EmbeddedEngine) -> Completion:
        await built.generate(first, SamplingParams(5), "a")
        return await built.generate(edited, SamplingParams(5, seed=3), "a")

    built = engine(model)
    completion = using(built, body)
    assert built.stats().reused_tokens == 25
    done = Episode((*edited, *completion.token_ids), (len(edited),), (completion,))
    assert np.allclose(reference_logprobs(model, done)[0], completion.logprobs, atol=1e-4)


def test_siblings_share_the_computation_of_their_prompt() -> None:
    async def body(built: EmbeddedEngine) -> list[Completion]:
        names = [f"r{i}" for i in range(6)]
        built.open(names)
        ids = prompt(0, 50)
        return await asyncio.gather(
            *(built.generate(ids, SamplingParams(4, seed=i), n) for i, n in enumerate(names))
        )

    built = engine()
    completions = using(built, body)
    stats = built.stats()
    assert (stats.prefill_tokens, stats.shared_tokens) == (49, 5 * 49)
    assert len({c.token_ids for c in completions}) == 6


def test_decode_computes_active_rows_only() -> None:
    lengths = [3, 30, 7, 18, 1, 24]

    async def body(built: EmbeddedEngine) -> None:
        built.open([f"r{i}" for i in range(6)])
        await asyncio.gather(
            *(
                episode(built, f"r{i}", prompt(i, 10), turns=1, new_tokens=n)
                for i, n in enumerate(lengths)
            )
        )

    built = engine()
    using(built, body)
    stats = built.stats()
    assert stats.decode_rows == stats.generated_tokens == sum(lengths)
    assert stats.decode_steps == max(lengths)


def test_a_long_prompt_does_not_hold_up_running_rows() -> None:
    async def body(built: EmbeddedEngine) -> None:
        built.open(["short", "long"])
        await asyncio.gather(
            episode(built, "short", prompt(0, 4), turns=1, new_tokens=40),
            episode(built, "long", prompt(1, 200), turns=1, new_tokens=1),
        )

    built = engine(prefill_chunk=10)
    using(built, body)
    # The long prompt takes 20 steps; all but the first also decode the short sequence.
    assert built.stats().prefill_tokens == 3 + 199
    assert built.stats().steps - built.stats().decode_steps == 1


@pytest.mark.parametrize("deterministic", [True, False])
def test_more_sequences_than_slots_queue_and_stay_right(deterministic: bool) -> None:
    """Slots of sequences that are sure to return are kept, and nothing is computed twice."""
    model = tiny_model()

    async def body(built: EmbeddedEngine) -> list[Episode]:
        built.open([f"r{i}" for i in range(10)])
        # Sequence 0 is called back after all others, which need its slot meanwhile.
        others = asyncio.Event()

        async def late() -> Episode:
            tokens = prompt(0, 15)
            first = await built.generate(tokens, SamplingParams(9, seed=0), "r0")
            if not deterministic:
                await others.wait()
            after = [*tokens, *first.token_ids, 1, 2]
            second = await built.generate(after, SamplingParams(9, seed=1), "r0")
            built.release("r0")
            ends = (*after, *second.token_ids)
            return Episode(ends, (len(tokens), len(after)), (first, second))

        async def rest() -> list[Episode]:
            done = await asyncio.gather(
                *(episode(built, f"r{i}", prompt(i, 15 + i), seed=i) for i in range(1, 10))
            )
            others.set()
            return done

        first, done = await asyncio.gather(late(), rest())
        return [first, *done]

    built = engine(model, max_slots=3, deterministic=deterministic)
    done = using(built, body)
    assert (built.stats().evictions > 0) is not deterministic
    if deterministic:
        sampled = sum(len(c.token_ids) for one in done for c in one.completions)
        ends = sum(len(one.completions) for one in done)
        given = sum(len(one.tokens) for one in done) - sampled
        # The last token of every context is decoded, and so is what followed the last turn.
        assert built.stats().prefill_tokens == given - len(done)
        assert ends == 29
    for one in done:
        for expected, completion in zip(
            reference_logprobs(model, one), one.completions, strict=True
        ):
            assert np.allclose(expected, completion.logprobs, atol=1e-4)


def test_end_tokens_are_part_of_the_completion() -> None:
    model = tiny_model()

    async def first(built: EmbeddedEngine) -> Completion:
        return await built.generate(prompt(0, 8), SamplingParams(30, seed=1), "a")

    free = using(engine(model), first)
    end = free.token_ids[6]
    at = free.token_ids.index(end) + 1

    async def stopped(built: EmbeddedEngine) -> Completion:
        sampling = SamplingParams(30, seed=1, stop_token_ids=(end,))
        return await built.generate(prompt(0, 8), sampling, "a")

    for completion in (
        using(engine(model, eos_ids=[end, 319]), first),
        using(engine(model), stopped),
    ):
        assert completion.token_ids == free.token_ids[:at]
        assert completion.finish is Finish.EOS


def test_end_tokens_come_from_generation_config_and_tokenizer() -> None:
    model = tiny_model()

    async def body(built: EmbeddedEngine) -> Completion:
        return await built.generate(prompt(0, 8), SamplingParams(30, seed=1), "a")

    free = using(engine(model), body)
    model.generation_config.eos_token_id = [318, free.token_ids[4]]
    completion = using(engine(model, eos_ids=None), body)
    assert completion.finish is Finish.EOS
    assert completion.token_ids == free.token_ids[: len(completion.token_ids)]
    assert len(completion.token_ids) <= 5


def test_new_tokens_are_clamped_to_the_context() -> None:
    async def body(built: EmbeddedEngine) -> Completion:
        return await built.generate(prompt(0, 30), SamplingParams(500), "a")

    assert len(using(engine(max_model_len=40), body).token_ids) == 10


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (list(range(64)), "64 tokens leaves no room in a context of 64"),
        ([], "at least one token"),
        ([3, 320], r"0\.\.319"),
    ],
)
def test_impossible_prompts_are_refused_by_name(ids: list[int], message: str) -> None:
    async def body(built: EmbeddedEngine) -> None:
        with pytest.raises(EngineError, match=message):
            await built.generate(ids, SamplingParams(4), "a")
        assert len((await built.generate([1, 2], SamplingParams(4), "a")).token_ids) == 4

    using(engine(max_model_len=64), body)


def test_cancelling_frees_the_work() -> None:
    async def body(built: EmbeddedEngine) -> None:
        built.open(["a", "b"])
        endless = asyncio.create_task(built.generate(prompt(0, 5), SamplingParams(4000), "a"))
        other = asyncio.create_task(built.generate(prompt(1, 5), SamplingParams(60), "b"))
        while built.stats().decode_steps < 3:
            await asyncio.sleep(0)
        endless.cancel()
        assert len((await other).token_ids) == 60
        built.release("b")
        with pytest.raises(asyncio.CancelledError):
            await endless
        assert len((await built.generate(prompt(2, 5), SamplingParams(5), "c")).token_ids) == 5
        assert built.stats().generated_tokens < 4000
        assert (await built.generate(prompt(0, 5), SamplingParams(5), "a")).token_ids

    using(engine(max_slots=2, max_model_len=4096), body)


def test_a_crash_of_the_model_reaches_every_waiter_and_the_engine_recovers() -> None:
    model = tiny_model("gemma3")
    built = engine(model)
    calls = iter(range(100))
    healthy = model.model.layers[0].mlp.forward

    async def body(built: EmbeddedEngine) -> None:
        twin_layer = built._twin.module.model.layers[0].mlp

        def broken(x: torch.Tensor) -> torch.Tensor:
            if next(calls) == 4:
                raise RuntimeError("boom")
            return healthy(x)

        twin_layer.forward = broken
        jobs = (built.generate(prompt(i, 9), SamplingParams(20), f"r{i}") for i in range(3))
        results = await asyncio.gather(*jobs, return_exceptions=True)
        for result in results:
            assert isinstance(result, EngineError)
            assert "RuntimeError: boom" in str(result)
        again = await built.generate(prompt(0, 9), SamplingParams(20), "r0")
        assert len(again.token_ids) == 20

    built.open(["r0", "r1", "r2"])
    using(built, body)


def test_logits_that_are_not_finite_are_an_error() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")

    async def body(built: EmbeddedEngine) -> None:
        with pytest.raises(EngineError, match="not finite"):
            await built.generate([1, 2, 3], SamplingParams(4), "a")
        with torch.no_grad():
            model.model.norm.weight[0] = 1.0
        assert (await built.generate([1, 2, 3], SamplingParams(4), "a")).token_ids

    using(engine(model), body)


def test_closing_fails_what_waits_and_may_be_repeated() -> None:
    async def body() -> None:
        built = engine()
        built.open(["a", "never"])
        waiting = asyncio.create_task(built.generate([1, 2], SamplingParams(4), "a"))
        await asyncio.sleep(0.01)
        await built.close()
        with pytest.raises(EngineError, match="closed"):
            await waiting
        await built.close()
        built.release("a")
        with pytest.raises(EngineError, match="closed"):
            await built.generate([1, 2], SamplingParams(4), "b")

    run(body)


def test_an_engine_that_is_dropped_stops_its_thread() -> None:
    def threads() -> set[threading.Thread]:
        return {t for t in threading.enumerate() if t.name == "agent-r1-engine"}

    before = threads()

    async def body() -> None:
        await engine().generate([1, 2], SamplingParams(2), "a")

    run(body)
    deadline = time.monotonic() + 10
    while threads() - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threads() <= before


def test_two_requests_of_one_sequence_at_a_time_are_refused() -> None:
    async def body(built: EmbeddedEngine) -> None:
        first = asyncio.create_task(built.generate([1, 2], SamplingParams(200), "a"))
        await asyncio.sleep(0)
        with pytest.raises(EngineError, match="in flight"):
            await built.generate([1, 2], SamplingParams(200), "a")
        assert len((await first).token_ids) == 200

    using(engine(), body)


def test_releasing_a_sequence_fails_its_request() -> None:
    async def body(built: EmbeddedEngine) -> None:
        first = asyncio.create_task(built.generate([1, 2], SamplingParams(4000), "a"))
        await asyncio.sleep(0)
        built.release("a")
        with pytest.raises(EngineError, match="released"):
            await first

    using(engine(max_model_len=4096), body)


def test_an_update_in_place_is_served_after_load_weights() -> None:
    model = tiny_model()
    other = tiny_model(seed=1)

    async def body(built: EmbeddedEngine) -> tuple[Completion, Completion]:
        await built.generate(prompt(0, 12), SamplingParams(6), "a")
        with torch.no_grad():
            for mine, new in zip(model.parameters(), other.parameters(), strict=True):
                mine.copy_(new)
        await built.load_weights(model, 1)
        kept = await built.generate(prompt(0, 12), SamplingParams(6), "a")
        fresh = await built.generate(prompt(0, 12), SamplingParams(6), "b")
        return kept, fresh

    kept, fresh = using(engine(model), body)
    assert kept.policy_version == fresh.policy_version == 1
    done = Episode((*prompt(0, 12), *kept.token_ids), (12,), (kept,))
    assert np.allclose(reference_logprobs(other, done)[0], kept.logprobs, atol=1e-4)
    assert kept.token_ids == fresh.token_ids


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_other_modules_mappings_and_folders_are_served(family: str, tmp_path: object) -> None:
    model, other = tiny_model(family), tiny_model(family, seed=1)
    untouched = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other.save_pretrained(str(tmp_path))

    async def body(built: EmbeddedEngine) -> list[Completion]:
        found = []
        for version, source in enumerate([other, dict(other.state_dict()), str(tmp_path), None]):
            await built.load_weights(source, version)
            found.append(await built.generate(prompt(0, 9), SamplingParams(8), "a"))
        return found

    found = using(engine(model), body)
    done = Episode((*prompt(0, 9), *found[0].token_ids), (9,), (found[0],))
    assert np.allclose(reference_logprobs(other, done)[0], found[0].logprobs, atol=1e-4)
    assert found[0].token_ids == found[1].token_ids == found[2].token_ids != found[3].token_ids
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, untouched[name])


def test_weights_that_do_not_fit_are_refused() -> None:
    wide = tiny_model(hidden_size=32)

    async def body(built: EmbeddedEngine) -> None:
        with pytest.raises(EngineError, match="shape"):
            await built.load_weights(wide, 1)
        with pytest.raises(EngineError, match="lack"):
            await built.load_weights({}, 1)
        with pytest.raises(EngineError, match="safetensors"):
            await built.load_weights("/nonexistent", 1)
        assert built.stats().policy_version == 0

    using(engine(), body)


def test_the_trainer_keeps_its_mode_and_attention() -> None:
    model = tiny_model("qwen3", attention_dropout=0.5).train()
    before = model.config._attn_implementation
    built = engine(model)
    using(built, lambda e: e.generate(prompt(0, 9), SamplingParams(8), "a"))
    assert model.training
    assert model.config._attn_implementation == before
    mine = dict(model.named_parameters())
    assert all(mine[name] is shared for name, shared in built._twin.module.named_parameters())


def test_models_with_other_kinds_of_layers_are_refused() -> None:
    model = tiny_model("gemma3")
    model.config.layer_types = ["linear_attention", "full_attention"]
    with pytest.raises(EngineError, match="linear_attention"):
        engine(model)


def test_half_precision_models_run() -> None:
    model = tiny_model().to(torch.bfloat16)
    done = using(engine(model), lambda e: episode(e, "a", prompt(0, 20)))
    expected = np.concatenate(reference_logprobs(model, done))
    actual = np.concatenate([c.logprobs for c in done.completions])
    assert np.abs(expected - actual).mean() < 0.1


def test_products_may_have_another_type_than_the_weights() -> None:
    model, other = tiny_model("llama"), tiny_model("llama", seed=1)

    async def body(built: EmbeddedEngine) -> tuple[Episode, Episode]:
        first = await episode(built, "a", prompt(0, 20))
        with torch.no_grad():
            for mine, new in zip(model.parameters(), other.parameters(), strict=True):
                mine.copy_(new)
        await built.load_weights(model, 1)
        return first, await episode(built, "b", prompt(0, 20))

    before = copy.deepcopy(model)
    first, second = using(engine(model, dtype="bfloat16"), body)
    assert next(model.parameters()).dtype == torch.float32
    for weights, done in ((before, first), (other, second)):
        exact = np.concatenate(reference_logprobs(weights, done))
        with torch.autocast("cpu", torch.bfloat16):
            rounded = np.concatenate(reference_logprobs(weights, done))
        actual = np.concatenate([c.logprobs for c in done.completions])
        error = np.abs(exact - actual).mean()
        assert 1e-4 < error < 2 * np.abs(exact - rounded).mean() + 0.01


def test_products_of_another_type_need_a_family_that_knows_them() -> None:
    with pytest.raises(EngineError, match=r"rollout\.dtype=auto"):
        engine(tiny_model("gemma3"), dtype="bfloat16")
