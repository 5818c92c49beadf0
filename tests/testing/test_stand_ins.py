"""The stand-ins obey what the real things obey."""

import asyncio

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agent_r1.errors import EngineError
from agent_r1.monitor.loggers import BackgroundLogger, RunInfo
from agent_r1.rollout.codec import Codec
from agent_r1.sandbox.base import Executor, RunRequest, RunResult, RunStatus
from agent_r1.testing import (
    HANG,
    FakeExecutor,
    MemoryLogger,
    Reply,
    ScriptedEngine,
    byte_tokenizer,
    make_trajectory,
    tiny_model,
)
from agent_r1.types import Finish, SamplingParams

TOKENIZER = byte_tokenizer(["</code>", "e>."])


def generate(engine, prompt="p", request_id="r", **params):
    params = SamplingParams(**{"max_new_tokens": 100, **params})
    return asyncio.run(engine.generate(TOKENIZER.encode(prompt), params, request_id))


@given(st.text(alphabet=st.characters(codec="utf-8")))
def test_the_tokenizer_loses_nothing(text):
    ids = TOKENIZER.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert TOKENIZER.decode(ids) == text


def test_one_token_per_byte_and_control_tokens_as_asked():
    assert TOKENIZER.encode("aé") == [ord("a"), 0xC3, 0xA9]
    assert TOKENIZER.encode("<|im_end|>") == [TOKENIZER.eos_token_id] == [258]
    assert len(TOKENIZER.encode("<|im_end|>", split_special_tokens=True)) == 10
    assert TOKENIZER.encode("</code>") == [259]
    assert (TOKENIZER.pad_token_id, len(TOKENIZER)) == (256, 261)


def test_its_template_is_append_only():
    Codec(TOKENIZER).check_template()
    messages = [{"role": "user", "content": "hi"}]
    text = TOKENIZER.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert byte_tokenizer(chat_template=None).chat_template is None


def test_the_tiny_model_is_equal_for_equal_seeds_and_leaves_the_random_state():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, same, other = tiny_model(), tiny_model(), tiny_model(seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    ids = torch.tensor([TOKENIZER.encode("hello")])
    with torch.no_grad():
        logits = one(ids).logits
        assert logits.shape == (1, 5, 264)
        assert torch.equal(logits, same(ids).logits)
        assert not torch.equal(logits, other(ids).logits)
    assert not one.training
    assert one.config.model_type == "qwen3"


def test_a_scripted_engine_ends_its_turns():
    engine = ScriptedEngine(TOKENIZER, ["one", "two"])
    first = generate(engine)
    assert (first.finish, first.token_ids[-1]) == (Finish.EOS, TOKENIZER.eos_token_id)
    assert first.logprobs == (-1.0,) * 4
    assert TOKENIZER.decode(generate(engine).token_ids) == "two<|im_end|>"
    with pytest.raises(EngineError, match="no reply for turn 2 of r"):
        generate(engine)
    assert [(call.turn, call.prompt_text) for call in engine.calls] == [
        (0, "p"),
        (1, "p"),
        (2, "p"),
    ]


def test_a_stop_string_keeps_the_whole_token_that_completes_it():
    engine = ScriptedEngine(
        TOKENIZER, lambda call: Reply(token_ids=(120, 60, 47, 99, 111, 100, 260))
    )
    completion = generate(engine, stop=("</code>",))
    assert TOKENIZER.decode(completion.token_ids) == "x</code>."
    assert (completion.finish, completion.stop) == (Finish.STOP, "</code>")
    engine = ScriptedEngine(TOKENIZER, ["x</code> y"])
    assert TOKENIZER.decode(generate(engine, stop=("</code>",)).token_ids) == "x</code>"
    assert generate(engine, request_id="s", stop_token_ids=(259,)).finish is Finish.STOP


@pytest.mark.parametrize(
    ("budget", "finish", "length"),
    [(1, Finish.LENGTH, 1), (3, Finish.LENGTH, 3), (4, Finish.EOS, 4), (9, Finish.EOS, 4)],
)
def test_the_budget_holds(budget, finish, length):
    completion = generate(ScriptedEngine(TOKENIZER, ["abc"]), max_new_tokens=budget)
    assert (completion.finish, len(completion.token_ids)) == (finish, length)


def test_an_engine_may_fail_hang_and_count():
    engine = ScriptedEngine(TOKENIZER, lambda call: EngineError("out of order"))
    with pytest.raises(EngineError, match="out of order"):
        generate(engine)

    async def hang():
        engine = ScriptedEngine(TOKENIZER, [HANG])
        params = SamplingParams(max_new_tokens=5)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(engine.generate([1], params, "r"), 0.01)

    asyncio.run(hang())
    with pytest.raises(EngineError, match="do not fit into 50"):
        generate(ScriptedEngine(TOKENIZER, ["x"], max_model_len=50))
    engine = ScriptedEngine(TOKENIZER, ["x"])
    engine.open(["r", "s"])
    generate(engine)
    engine.release("r")
    assert (engine.open_ids, engine.released) == ({"s"}, ["r"])
    asyncio.run(engine.load_weights("weights", 3))
    assert generate(engine).policy_version == 3  # and "r" begins anew


def test_a_fake_executor_answers_and_remembers():
    assert isinstance(FakeExecutor(), Executor)
    executor = FakeExecutor(lambda request: request.code.upper())
    assert executor.run(RunRequest(code="a")).stdout == "A"
    result = RunResult(status=RunStatus.TIMEOUT)
    assert asyncio.run(FakeExecutor(result).arun(RunRequest(code="a"))) is result
    with pytest.raises(OSError):
        FakeExecutor(OSError()).run(RunRequest(code="a"))
    assert [request.code for request in executor.requests] == ["a"]


def test_a_memory_logger_is_a_run_logger(tmp_path):
    complaints = []
    logger = MemoryLogger()
    background = BackgroundLogger("memory", logger, complaints.append)
    background.start(RunInfo(tmp_path, "p", "e", "id"))
    background.log({"reward": 0.5}, 1)
    background.log({"reward": 0.75, "loss": 1.0}, 2)
    background.samples([make_trajectory(["x"])], 2)
    background.close()
    assert complaints == []
    assert logger.series("reward") == [0.5, 0.75]
    assert logger.trajectories[0][1][0].final_text == "x"
    assert logger.closed and logger.info.run_id == "id"


def test_a_trajectory_made_by_hand_is_consistent():
    trajectory = make_trajectory([("ab", "XYZ"), "c"], answer="1", prompt="p")
    assert trajectory.model_text == "abc"
    assert trajectory.transcript == "abXYZc"
    (sample,) = trajectory.samples()
    assert "".join(map(chr, sample.token_ids)) == "pabXYZc"
    assert sample.loss_mask == (0, 1, 1, 0, 0, 0, 1)
    assert [call.success for call in trajectory.tool_calls] == [True]
