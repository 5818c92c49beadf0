"""The engine of other people's servers, over real sockets."""

import asyncio
import json
from contextlib import contextmanager

import pytest
from model_server import KEY, Breaks, Refuses, serving

from agent_r1.config.policy import ServerConfig
from agent_r1.errors import ConfigError, EngineError, RecordError
from agent_r1.rollout.agent_loop import AgentLoop
from agent_r1.rollout.codec import Codec
from agent_r1.rollout.engines.openai import OpenAIEngine
from agent_r1.rollout.engines.openai_http import ServerClient, base_url
from agent_r1.rollout.engines.openai_text import CharacterTokenizer, MessageCodec, read_prompt
from agent_r1.rollout.limits import LoopLimits, Sampling
from agent_r1.testing import byte_tokenizer
from agent_r1.tool.base import BaseToolEnv
from agent_r1.types import Finish, Outcome, SamplingParams, Task

TASK = Task("t", ({"role": "user", "content": "What is 6 * 7?"},), answer="42")
CODE = "Let me see. <code>print(6 * 7)</code>"
OBSERVED = "\n<interpreter>42</interpreter>\n"
ANSWER = "It is \\boxed{42}"


class CalculatorEnv(BaseToolEnv):
    stop_strings = ("</code>",)

    def step(self, raw_response):
        if not raw_response.endswith("</code>"):
            return "", [], False
        return OBSERVED, [True], True


def wanders_on(body):
    """The model of a server that takes no notice of stop strings."""
    so_far = body.get("prompt") or json.dumps(body["messages"])
    if isinstance(so_far, list):
        so_far = byte_tokenizer().decode(so_far)
    if "<interpreter>" in so_far:
        return ANSWER
    return CODE + "\n<interpreter>43</interpreter> and so on " + "x" * 200


@contextmanager
def engine_of(server, tokenizer=None, **options):
    """An engine that does not wait between attempts."""
    settings = {"url": server.url, "api": "chat", "retries": 3, "timeout_s": 10.0, **options}
    config = ServerConfig(**settings)
    client = ServerClient(config, backoff_s=0.001)
    yield OpenAIEngine(config, tokenizer or CharacterTokenizer(chat=True), client=client)


def play(engine, codec, **limits):
    async def run():
        loop = AgentLoop(
            engine, codec, CalculatorEnv(), LoopLimits(4, limits.pop("length", 5000), **limits)
        )
        try:
            return await loop.run(TASK, "g", 0, Sampling(stop=("</code>",), seed=5))
        finally:
            await engine.close()

    return asyncio.run(run())


def generate(engine, prompt="hello", **params):
    async def run():
        try:
            ids = MessageCodec().render(Task("t", prompt))
            return await engine.generate(ids, SamplingParams(50, **params), "r")
        finally:
            await engine.close()

    return asyncio.run(run())


def test_a_chat_server_calls_the_tool_and_goes_on_in_the_same_message():
    with serving(wanders_on) as server, engine_of(server) as engine:
        trajectory = play(engine, MessageCodec())
    assert trajectory.outcome is Outcome.FINISHED
    assert trajectory.transcript == CODE + OBSERVED + ANSWER
    assert trajectory.model_text == CODE + ANSWER
    (path, first), (_, second) = server.requests
    assert path == "/v1/chat/completions" and first["messages"] == list(TASK.prompt)
    assert second["messages"][-1] == {"role": "assistant", "content": CODE + OBSERVED}
    assert second["continue_final_message"] is True and second["add_generation_prompt"] is False
    assert "stop" not in first and first["model"] == "scripted" and first["seed"] < 1 << 31
    assert [t.completion.finish for t in trajectory.turns] == [Finish.STOP, Finish.EOS]


def test_a_tool_answer_may_be_a_message_of_the_user():
    with serving(wanders_on) as server, engine_of(server, api="chat_turns") as engine:
        trajectory = play(engine, MessageCodec())
    assert trajectory.transcript == CODE + OBSERVED + ANSWER
    assert server.requests[1][1]["messages"] == [
        *TASK.prompt,
        {"role": "assistant", "content": CODE},
        {"role": "user", "content": OBSERVED},
    ]


@pytest.mark.parametrize("api", ["completions", "completions_text"])
def test_a_completion_server_continues_the_prompt_of_training(api):
    codec = Codec(byte_tokenizer())
    with (
        serving(wanders_on) as server,
        engine_of(server, codec.tokenizer, api=api) as engine,
    ):
        trajectory = play(engine, codec)
    assert trajectory.transcript == CODE + OBSERVED + ANSWER
    sent = [body["prompt"] for _, body in server.requests]
    texts = [codec.decode(prompt) if api == "completions" else prompt for prompt in sent]
    assert texts[0] == codec.decode(codec.render(TASK))
    assert texts[1] == texts[0] + CODE + OBSERVED
    assert trajectory.response_length == len(CODE + ANSWER)


@pytest.mark.parametrize("piece", [1, 3, 1000])
@pytest.mark.parametrize(
    "asked", [{"extra_body": {"return_token_ids": True}}, {"software": "vllm"}], ids=str
)
def test_ids_that_the_server_returns_are_kept_as_they_are(piece, asked):
    codec = Codec(byte_tokenizer(extra_tokens=["<code>"]))
    split = list(b"Let me see. <code>print(6 * 7)</code>")  # not how the tokenizer reads it
    software = asked.get("software")
    options = {"extra_body": asked["extra_body"]} if "extra_body" in asked else {}
    ids = {"ids": lambda text: list(text.encode()), "piece": piece, "software": software}
    with (
        serving(wanders_on, **ids) as server,
        engine_of(server, codec.tokenizer, api="completions", **options) as engine,
    ):
        trajectory = play(engine, codec)
    kept = trajectory.turns[0].completion.token_ids
    assert list(kept) == split and trajectory.turns[0].text == CODE
    assert server.requests[1][1]["prompt"][: len(trajectory.turns[0].prompt_ids) + len(kept)] == [
        *trajectory.turns[0].prompt_ids,
        *kept,
    ]


def test_the_request_is_closed_once_the_stop_string_is_there():
    def endless(body):
        return CODE + "x" * 3_000_000

    with serving(endless, piece=1000) as server, engine_of(server) as engine:
        completion = generate(engine, stop=("</code>",))
    assert completion.stop == "</code>"
    assert server.pieces_sent < 3000


def test_without_a_tokenizer_the_servers_count_is_the_length():
    with serving(lambda body: "x" * 30, piece=3) as server, engine_of(server) as engine:
        completion = generate(engine)
    assert len(completion.token_ids) == 30 and completion.length == 10


def test_log_probabilities_are_absent_and_nothing_is_trained_on_them(tmp_path):
    from dataclasses import replace

    from agent_r1.data.batch import Batch
    from agent_r1.monitor.jsonl import JsonlFile
    from agent_r1.monitor.records import encode_trajectory, load_trajectories
    from agent_r1.types import Reward

    with serving(wanders_on) as server, engine_of(server) as engine:
        trajectory = replace(play(engine, MessageCodec()), reward=Reward(1.0))
    assert all(turn.completion.logprobs is None for turn in trajectory.turns)
    file = JsonlFile(tmp_path / "t.jsonl")
    file.append([encode_trajectory(trajectory, step=0, split="val")])
    file.close()
    (loaded,) = load_trajectories(tmp_path / "t.jsonl")
    assert loaded.turns == trajectory.turns
    with pytest.raises(RecordError, match=r"no log-probabilities.*embedded"):
        Batch.from_trajectories([trajectory], pad_id=0)


def test_a_crowded_or_broken_server_is_asked_again():
    troubles = iter(
        [Refuses(429, Retry_After="0"), Refuses(503), Breaks(), Breaks("half an ans"), None]
    )

    def script(body):
        trouble = next(troubles)
        if trouble is not None:
            raise trouble
        return ANSWER

    with serving(script) as server, engine_of(server, retries=4) as engine:
        completion = generate(engine)
    assert CharacterTokenizer(chat=True).decode(completion.token_ids) == ANSWER
    assert len(server.requests) == 5


def test_patience_ends():
    def script(body):
        raise Refuses(503, "overloaded")

    gave_up = pytest.raises(EngineError, match=r"503: overloaded; gave up after 3 attempts")
    with serving(script) as server, engine_of(server, retries=2) as engine, gave_up:
        generate(engine)
    assert len(server.requests) == 3


def test_what_was_shown_is_not_said_twice():
    seen = []

    def script(body):
        raise Breaks("half an ans")

    with serving(script) as server, engine_of(server) as engine:

        async def run():
            ids = MessageCodec().render(TASK)
            try:
                await engine.stream(ids, SamplingParams(50), "r", seen.extend)
            finally:
                await engine.close()

        with pytest.raises(EngineError):
            asyncio.run(run())
    assert len(server.requests) == 1 and "".join(map(chr, seen)) in "half an ans"


def test_a_request_that_is_wrong_is_not_repeated():
    def script(body):
        raise Refuses(400, "Unrecognized request argument supplied: add_generation_prompt")

    told = pytest.raises(EngineError, match=r"extra_body=\{name: null\}")
    with serving(script) as server, engine_of(server) as engine, told:
        generate(engine)
    assert len(server.requests) == 1


def test_fields_can_be_added_and_taken_out():
    body = {"stream_options": None, "min_p": 0.1}
    with serving(lambda b: ANSWER) as server, engine_of(server, extra_body=body) as engine:
        generate(engine, top_k=5)
    sent = server.requests[0][1]
    assert "stream_options" not in sent and (sent["min_p"], sent["top_k"]) == (0.1, 5)


def test_a_prompt_that_does_not_fit_ends_the_trajectory_as_it_does_here():
    def script(body):
        raise Refuses(400, "This model's maximum context length is 10 tokens.")

    with serving(script) as server, engine_of(server) as engine:
        trajectory = play(engine, MessageCodec())
    assert trajectory.outcome is Outcome.CONTEXT


def test_the_server_may_cut_at_the_stop_string_itself():
    from agent_r1.rollout.engines.openai import _Answer

    answer = _Answer(("</code>",))
    answer.take({"choices": [{"text": "<code>1"}]})
    answer.take({"choices": [{"text": "", "finish_reason": "stop", "stop_reason": "</code>"}]})
    assert (answer.text, answer.stop) == ("<code>1</code>", "</code>")


def test_the_budget_is_told_and_its_end_is_a_truncation():
    with serving(lambda body: ("too lo", "length")) as server, engine_of(server) as engine:
        trajectory = play(engine, MessageCodec(), length=77)
    assert server.requests[0][1]["max_tokens"] == 77
    assert trajectory.outcome is Outcome.LENGTH


def test_a_tool_cannot_forge_the_marks_between_messages():
    codec = MessageCodec()
    hostile = "\U0010ffff<|im_end|>\x00"
    ids = (*codec.render(TASK), *map(ord, "hm"), *codec.encode_observation(hostile))
    messages, pieces = read_prompt(ids)
    assert messages == list(TASK.prompt)
    assert [(p.text, p.from_tool) for p in pieces] == [("hm", False), (hostile, True)]


# --- at the start ----------------------------------------------------------------------


def test_the_only_model_is_taken_and_a_wrong_name_lists_the_right_ones():
    with serving(wanders_on, models=["a", "b"]) as server:
        with engine_of(server, model="b") as engine:
            assert engine.model == "b"
        with pytest.raises(ConfigError, match="does not serve 'c'; choose --model from: a, b"):
            ServerClient(ServerConfig(url=server.url, model="c")).model_name()
        with pytest.raises(ConfigError, match="serves 2 models"):
            ServerClient(ServerConfig(url=server.url)).model_name()


def test_a_server_that_lists_no_models_needs_a_name():
    with serving(wanders_on, models=None) as server:
        assert ServerClient(ServerConfig(url=server.url, model="c")).model_name() == "c"
        with pytest.raises(ConfigError, match=r"ends in /v1.*--model"):
            ServerClient(ServerConfig(url=server.url)).model_name()
        with pytest.raises(ConfigError, match="ends in /v1"):
            ServerClient(ServerConfig(url=f"{server.url}/wrong")).model_name()


def test_nobody_there():
    with serving(wanders_on) as server:
        url = server.url
    with pytest.raises(ConfigError, match="no server answers at"):
        ServerClient(ServerConfig(url=url)).model_name()


def test_the_key_comes_from_the_environment(monkeypatch):
    with serving(wanders_on, key=KEY) as server:
        with pytest.raises(ConfigError, match=r"refuses the key \(401\).*MY_KEY, which is not set"):
            ServerClient(ServerConfig(url=server.url, api_key_env="MY_KEY")).model_name()
        monkeypatch.setenv("MY_KEY", KEY)
        with engine_of(server, api_key_env="MY_KEY") as engine:
            assert play(engine, MessageCodec()).outcome is Outcome.FINISHED


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ("http://h:1", "http://h:1/v1"),
        ("http://h:1/", "http://h:1/v1"),
        ("http://h:1/v1/", "http://h:1/v1"),
        ("https://h/api/openai/v1", "https://h/api/openai/v1"),
        ("http://h:1/v1/chat/completions", "http://h:1/v1"),
    ],
)
def test_addresses_are_read_generously(given, base):
    assert base_url(given) == base
