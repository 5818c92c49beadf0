"""Watching a completion while it is sampled."""

import asyncio

import pytest
from embedded_kit import byte_tokenizer as merging_tokenizer
from embedded_kit import engine, prompt, tiny_model, using
from hypothesis import given
from hypothesis import strategies as st

from agent_r1.rollout.agent_loop import AgentLoop
from agent_r1.rollout.codec import Codec
from agent_r1.rollout.engine import StreamingEngine
from agent_r1.rollout.limits import LoopLimits, Sampling
from agent_r1.rollout.stream import TextStream
from agent_r1.testing import ScriptedEngine, byte_tokenizer
from agent_r1.tool.base import BaseToolEnv
from agent_r1.types import Completion, Finish, SamplingParams, Task

STOPS = ("</code>", "</co!")
CODEC = Codec(byte_tokenizer(extra_tokens=["</code>", "e>\n\n", "é!", "</co"]))


def streamed(ids, finish, stop=None, stops=STOPS, codec=CODEC, step=1):
    pieces = []
    stream = TextStream(codec, stops, pieces.append)
    for at in range(0, len(ids), step):
        stream.feed(ids[at : at + step])
    before_the_end = list(pieces)
    completion = Completion(tuple(ids), None, finish, stop=stop)
    stream.finish(codec.text_of(completion))
    assert "".join(pieces) == codec.text_of(completion)
    return pieces, before_the_end


def encode(text):
    return CODEC.tokenizer.encode(text, add_special_tokens=False)


def test_every_token_is_shown_as_soon_as_it_is_text():
    pieces, early = streamed(encode("héllo"), Finish.LENGTH)
    assert pieces == early == ["h", "é", "l", "l", "o"]  # é is two tokens


def test_half_a_stop_string_is_never_shown():
    ids = [*encode("a<b </c"), *encode("x</cod"), CODEC.tokenizer.convert_tokens_to_ids("e>\n\n")]
    pieces, early = streamed(ids, Finish.STOP, "</code>")
    assert pieces == early == ["a", "<b", " ", "</cx", "</code>"]
    pieces, early = streamed(encode("end </cod"), Finish.LENGTH)
    assert early == ["e", "n", "d", " "] and pieces[-1] == "</cod"


def test_the_end_of_sequence_token_is_not_shown():
    ids = [*encode("done"), CODEC.tokenizer.eos_token_id]
    assert "".join(streamed(ids, Finish.EOS)[0]) == "done"
    assert "".join(streamed([*ids, *encode("!")], Finish.LENGTH)[0]) == "done<|im_end|>!"


@given(st.lists(st.integers(0, len(CODEC.tokenizer) - 1), max_size=40), st.integers(1, 5))
def test_whatever_is_sampled_the_pieces_are_the_text(ids, step):
    text = CODEC.decode(ids)
    found = [stop for stop in STOPS if stop in text]
    if not found:
        finish = Finish.EOS if ids and ids[-1] == CODEC.tokenizer.eos_token_id else Finish.LENGTH
        streamed(ids, finish, step=step)


@given(st.text(st.sampled_from("ae</cod>é€𝄞\n"), max_size=20), st.integers(1, 6))
def test_characters_are_whole(text, step):
    _, early = streamed(encode(text), Finish.LENGTH, stops=(), step=step)
    assert "".join(early) == text[: len("".join(early))]
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in early)


class Tool(BaseToolEnv):
    stop_strings = ("</code>",)

    def step(self, raw_response):
        called = raw_response.endswith("</code>")
        return ("\n[1]\n", [True], True) if called else ("", [], False)


class Recorder:
    def __init__(self):
        self.events = []

    def on_text(self, piece):
        self.events.append(("text", piece))

    def on_written(self, turn):
        self.events.append(("written", turn.text))

    def on_observed(self, turn):
        self.events.append(("observed", turn.observation_text))


def play(env=None, **limits):
    env, recorder = env or Tool(), Recorder()
    model = ScriptedEngine(CODEC.tokenizer, ["so <code>1</code> no", "it is 1"])
    loop = AgentLoop(model, CODEC, env, LoopLimits(4, 100, **limits))
    task = Task("t", "question")
    sampling = Sampling(stop=env.stop_strings)
    return asyncio.run(loop.run(task, "g", 0, sampling, watch=recorder)), recorder.events


def test_the_order_of_what_happens():
    trajectory, events = play()
    kinds = [kind for i, (kind, _) in enumerate(events) if i == 0 or events[i - 1][0] != kind]
    assert kinds == ["text", "written", "observed", "text", "written", "observed"]
    assert "".join(piece for kind, piece in events if kind == "text") == trajectory.model_text
    assert sum(kind == "text" for kind, _ in events) > 10
    assert ("observed", "\n[1]\n") in events


def test_an_environment_that_cuts_for_itself_is_shown_what_it_kept():
    class Cutting(Tool):
        def process_responses_ids(self, tokenizer, raw_responses_ids):
            return [row[:2] for row in raw_responses_ids]

    trajectory, events = play(Cutting())
    assert trajectory.model_text == "so" and events[0] == ("text", "so")


def test_looking_on_changes_nothing():
    watched, _ = play()
    model = ScriptedEngine(CODEC.tokenizer, ["so <code>1</code> no", "it is 1"])
    loop = AgentLoop(model, CODEC, Tool(), LoopLimits(4, 100))
    alone = asyncio.run(loop.run(Task("t", "question"), "g", 0, Sampling(stop=("</code>",))))
    assert [t.completion for t in watched.turns] == [t.completion for t in alone.turns]


@pytest.mark.parametrize("stops", [(), ("a", "é")])
def test_the_embedded_engine_streams_what_it_returns(stops):
    codec = Codec(merging_tokenizer())

    async def body(built):
        assert isinstance(built, StreamingEngine)
        results = []
        for seed in range(4):
            params = SamplingParams(40, seed=seed, stop=stops)
            ids, pieces = [], []
            stream = TextStream(codec, stops, pieces.append)

            def on_tokens(new, ids=ids, stream=stream):
                ids.extend(new)
                stream.feed(new)

            name = f"r{seed}"
            built.open([name, f"{name}-alone"])
            watched, alone = await asyncio.gather(
                built.stream(prompt(seed, 12), params, name, on_tokens),
                built.generate(prompt(seed, 12), params, f"{name}-alone"),
            )
            assert tuple(ids) == watched.token_ids == alone.token_ids
            stream.finish(codec.text_of(watched))
            assert "".join(pieces) == codec.text_of(watched)
            results.append(watched)
            built.release(name)
            built.release(f"{name}-alone")
        return results

    completions = using(engine(tiny_model(vocab_size=len(codec.tokenizer))), body)
    assert not stops or any(c.finish is Finish.STOP for c in completions)
