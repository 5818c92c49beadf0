"""The endpoint, asked by the ``openai`` client: what it answers, and what it records."""

import asyncio
import json

import httpx
import pytest
from endpoint_kit import (
    ADD,
    CALL,
    LIMITS,
    TOKENIZER,
    USER,
    chat,
    learned,
    run,
    samples,
    session_of,
    text,
)

from agent_r1.errors import EngineError
from agent_r1.rollout.codec import Codec
from agent_r1.rollout.endpoint.messages import ChatRenderer
from agent_r1.rollout.endpoint.server import Endpoint, serving
from agent_r1.rollout.endpoint.session import Session
from agent_r1.rollout.limits import LoopLimits, Sampling
from agent_r1.testing import HANG, Reply, ScriptedEngine, byte_tokenizer
from agent_r1.types import Outcome

openai = pytest.importorskip("openai")


def test_an_answer_has_the_form_that_the_client_knows():
    session, engine = session_of(["It is 42."])

    async def agent(client):
        models = await client.models.list()
        assert [model.id for model in models.data] == ["policy"]
        return await client.chat.completions.create(
            model="policy", messages=[USER], logprobs=True, max_tokens=50
        )

    answer = run(session, agent)
    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content) == ("assistant", "It is 42.")
    assert choice.finish_reason == "stop"
    prompt = "<|im_start|>user\nWhat is 6 * 7?<|im_end|>\n<|im_start|>assistant\n"
    assert text(engine.calls[0].prompt_ids) == prompt
    assert answer.usage.prompt_tokens == len(engine.calls[0].prompt_ids)
    assert answer.usage.completion_tokens == len("It is 42.") + 1
    assert [t.token for t in choice.logprobs.content] == [*"It is 42.", "<|im_end|>"]
    assert {t.logprob for t in choice.logprobs.content} == {-1.0}


def test_a_request_that_goes_on_continues_the_very_ids():
    # The first answer is not what re-tokenising its text would give: "42" as two replies of ids.
    odd = Reply("It is 42.", token_ids=tuple(b"It is 42. "))
    session, engine = session_of([odd, "Sure."])

    async def agent(client):
        first = await chat(client, [USER])
        history = [USER, first.message.model_dump(), {"role": "user", "content": "Sure?"}]
        history[1]["content"] = history[1]["content"].strip()  # agents like to tidy up
        return await chat(client, history)

    assert run(session, agent).message.content == "Sure."
    first, second = engine.calls
    assert second.prompt_ids[: len(first.prompt_ids)] == first.prompt_ids
    behind = text(second.prompt_ids[len(first.prompt_ids) :])
    assert behind == (
        "It is 42. <|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"
    )
    (sample,) = samples(session)
    assert learned(sample) == ["It is 42. <|im_end|>", "Sure.<|im_end|>"]
    assert sample.token_ids[: len(second.prompt_ids)] == second.prompt_ids


def test_an_answer_that_was_cut_is_closed_by_the_template_and_not_by_the_policy():
    session, _ = session_of([Reply("It is about", ends=False), "Yes."])

    async def agent(client):
        first = await chat(client, [USER], max_tokens=5)
        assert (first.message.content, first.finish_reason) == ("It is", "length")
        return await chat(client, [USER, first.message, {"role": "user", "content": "?"}])

    run(session, agent)
    (sample,) = samples(session)
    assert learned(sample) == ["It is", "Yes.<|im_end|>"]
    assert "It is<|im_end|>\n<|im_start|>user\n?<|im_end|>" in text(sample.token_ids)


@pytest.mark.parametrize(
    "change",
    [
        lambda history: [{"role": "user", "content": "Another question"}],
        lambda history: [history[0], {"role": "assistant", "content": "It is 41."}, history[2]],
        lambda history: [{"role": "system", "content": "Be brief."}, *history],
    ],
)
def test_any_other_request_begins_a_segment(change):
    session, _ = session_of(["It is 42.", "Sure."])

    async def agent(client):
        first = await chat(client, [USER])
        history = [USER, first.message.model_dump(), {"role": "user", "content": "Sure?"}]
        await chat(client, change(history))

    run(session, agent)
    one, two = samples(session)
    assert learned(one) == ["It is 42.<|im_end|>"]
    assert learned(two) == ["Sure.<|im_end|>"]


def test_a_branch_is_a_segment_in_which_the_common_past_is_context():
    session, engine = session_of(["It is 42.", "Left.", "Right.", "Further right."])

    async def agent(client):
        first = (await chat(client, [USER])).message
        left = [USER, first, {"role": "user", "content": "left"}]
        right = [USER, first, {"role": "user", "content": "right"}]
        await chat(client, left)
        second = (await chat(client, right)).message
        await chat(client, [*right, second, {"role": "user", "content": "on"}])

    run(session, agent)
    one, two = samples(session)
    assert learned(one) == ["It is 42.<|im_end|>", "Left.<|im_end|>"]
    assert learned(two) == ["Right.<|im_end|>", "Further right.<|im_end|>"]
    shared = len(engine.calls[0].prompt_ids) + len("It is 42.") + 1
    assert one.token_ids[:shared] == two.token_ids[:shared]


def test_parallel_agents_of_one_trajectory_keep_apart():
    session, _ = session_of([f"answer {i}" for i in range(8)])

    async def agent(client):
        async def sub(name):
            history = [{"role": "user", "content": name}]
            for _ in range(2):
                history.append((await chat(client, history)).message)
                history.append({"role": "user", "content": "more"})

        await asyncio.gather(*(sub(name) for name in "abcd"))

    run(session, agent)
    found = samples(session)
    assert len(found) == 4
    assert all(len(learned(sample)) == 2 for sample in found)
    assert sorted(text for sample in found for text in learned(sample)) == [
        f"answer {i}<|im_end|>" for i in range(8)
    ]


# --- tools ---------------------------------------------------------------------------------


def test_tool_calls_and_their_results_continue_the_ids():
    session, engine = session_of([f"Let me see. {CALL}", "3."])

    async def agent(client):
        first = await chat(client, [USER], tools=[ADD])
        (call,) = first.message.tool_calls
        assert first.finish_reason == "tool_calls"
        assert first.message.content == "Let me see."
        assert (call.function.name, json.loads(call.function.arguments)) == (
            "add",
            {"a": 1, "b": [2]},
        )
        result = {"role": "tool", "tool_call_id": call.id, "content": "3<|im_end|>"}
        return await chat(client, [USER, first.message, result], tools=[ADD])

    assert run(session, agent).message.content == "3."
    first, second = map(text, (call.prompt_ids for call in engine.calls))
    assert '"name": "add"' in first  # this template knows no tools: they are told in words
    assert second.startswith(first)
    assert second[len(first) :] == (
        f"Let me see. {CALL}<|im_end|>\n<|im_start|>user\n<tool_response>\n3< |im_end|>\n"
        "</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )
    (sample,) = samples(session)
    assert len(learned(sample)) == 2
    assert [len(turn.tool_calls) for turn in session.turns()] == [1, 0]


def test_a_template_that_knows_tools_announces_them_itself():
    template = (
        "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% for c in m.tool_calls or [] %}[{{ c.function.name }}]{% endfor %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    codec = Codec(byte_tokenizer(chat_template=template))
    engine = ScriptedEngine(codec.tokenizer, [CALL, "3."])
    session = Session("g/0", engine, codec, ChatRenderer(codec), LIMITS, Sampling())

    async def agent(client):
        first = await chat(client, [USER], tools=[ADD])
        call = first.message.tool_calls[0]
        result = {"role": "tool", "tool_call_id": call.id, "content": "3"}
        await chat(client, [USER, first.message, result], tools=[ADD])

    run(session, agent)
    prompt = text(session.turns()[1].prompt_ids)
    assert prompt.startswith('<|im_start|>system\n[{"type": "function"')
    assert prompt.endswith("<|im_end|>\n<|im_start|>tool\n3<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize(
    "reply", ["<tool_call>{broken</tool_call>", "<tool_call>[1]</tool_call>", "<tool_call>{"]
)
def test_what_is_no_call_stays_text_that_the_agent_sees(reply):
    session, _ = session_of([reply])

    async def agent(client):
        return await chat(client, [USER], tools=[ADD])

    choice = run(session, agent)
    assert choice.message.content == reply and choice.message.tool_calls is None


def test_a_tokenizer_that_says_how_answers_are_read_is_obeyed():
    tokenizer = byte_tokenizer(
        response_template={
            "start_anchor": "<|im_start|>assistant\n",
            "defaults": {"role": "assistant"},
            "fields": {
                "content": {},
                "tool_calls": {"open": "[C]", "close": "[/C]", "content": "json", "repeats": True},
            },
        }
    )
    codec = Codec(tokenizer)
    call = '[C]{"function": {"name": "add", "arguments": {"a": 1}}}[/C]'
    replies = iter([f"So. {call}{call}", "[C]broken[/C]", f"So. {call}"])
    engine = ScriptedEngine(tokenizer, lambda asked: next(replies))
    session = Session("g/0", engine, codec, ChatRenderer(codec), LIMITS, Sampling())

    async def agent(client):
        first = (await chat(client, [USER], tools=[ADD])).message
        assert (first.content, len(first.tool_calls)) == ("So.", 2)
        assert json.loads(first.tool_calls[1].function.arguments) == {"a": 1}
        second = (await chat(client, [USER], tools=[ADD])).message
        assert (second.content, second.tool_calls) == ("[C]broken[/C]", None)
        stream = await client.chat.completions.create(
            model="policy", messages=[USER], tools=[ADD], stream=True
        )
        deltas = [chunk.choices[0].delta async for chunk in stream]
        assert "".join(d.content or "" for d in deltas) == "So."
        assert sum(len(d.tool_calls or ()) for d in deltas) == 1

    run(session, agent)


# --- streaming and plain completions -------------------------------------------------------


def test_a_stream_shows_text_then_calls_then_usage():
    session, _ = session_of([f"Let me see. {CALL}", "plain"])

    async def agent(client):
        stream = await client.chat.completions.create(
            model="policy",
            messages=[USER],
            tools=[ADD],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        content = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        calls = [c.choices[0].delta.tool_calls for c in chunks if c.choices]
        (call,) = [call for found in calls if found for call in found]
        reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
        assert content.strip() == "Let me see."
        assert call.function.name == "add"
        assert [r for r in reasons if r] == ["tool_calls"]
        assert chunks[-1].usage.completion_tokens == len(f"Let me see. {CALL}") + 1
        assert len(chunks) > 8  # piece by piece

    run(session, agent)


def test_plain_completions_continue_text_and_ids():
    session, engine = session_of(["two,", " three", " four", "other", "last"])

    async def agent(client):
        async def complete(prompt, **options):
            answer = await client.completions.create(model="policy", prompt=prompt, **options)
            return answer.choices[0].text

        assert await complete("one,") == "two,"
        assert await complete("one,two, and then") == " three"
        ids = [*engine.calls[1].prompt_ids, *map(ord, " three"), TOKENIZER.eos_token_id]
        assert await complete([*ids, ord("!")]) == " four"
        assert await complete("something else") == "other"
        pieces = []
        stream = await client.completions.create(model="policy", prompt="x", stream=True)
        async for chunk in stream:
            pieces.append(chunk.choices[0].text)
        return "".join(pieces)

    assert run(session, agent) == "last"
    first, *others = samples(session)
    assert learned(first) == [f"{t}<|im_end|>" for t in ("two,", " three", " four")]
    assert [learned(sample) for sample in others] == [["other<|im_end|>"], ["last<|im_end|>"]]


def test_stop_strings_of_a_request_end_the_answer_and_are_not_shown():
    session, engine = session_of([Reply("a wall END of text")])

    async def agent(client):
        return await chat(client, [USER], stop=["END"])

    choice = run(session, agent)
    assert (choice.message.content, choice.finish_reason) == ("a wall ", "stop")
    assert session.turns()[0].text == "a wall END"
    assert engine.calls[0].params.stop == ("END",)


def test_a_run_samples_as_configured_and_a_server_as_asked():
    for obey, expected in ((False, (1.0, 1.0)), (True, (0.5, 0.9))):
        session, engine = session_of(["x"], obey_sampling=obey)

        async def agent(client):
            await chat(client, [USER], temperature=0.5, top_p=0.9)

        run(session, agent)
        params = engine.calls[0].params
        assert (params.temperature, params.top_p) == expected


# --- limits and refusals -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "length", "outcome", "answered"),
    [
        (LoopLimits(2, 4000), 1 << 14, Outcome.TURN_LIMIT, 2),
        (LoopLimits(9, 60), 1 << 14, Outcome.LENGTH, 2),
        (LoopLimits(9, 4000), 105, Outcome.CONTEXT, 2),
    ],
)
def test_a_used_up_limit_is_an_error_for_the_agent_and_the_outcome(
    limits, length, outcome, answered
):
    session, _ = session_of(["It is 42."] * 9, limits=limits, max_model_len=length)

    async def agent(client):
        history = [USER]
        for _ in range(9):
            history.append((await chat(client, history)).message)
            history.append({"role": "user", "content": "Sure? "})

    with pytest.raises(openai.BadRequestError) as refused:
        run(session, agent)
    assert refused.value.code in ("limit_reached", "context_length_exceeded")
    assert session.over.outcome is outcome
    assert session.answers == answered


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"messages": []}, "at least one message"),
        ({"messages": [{"role": "robot", "content": ""}]}, "'robot' is not supported"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "'image_url'"),
        ({"messages": [USER], "n": 2}, "'n' must be 1"),
        ({"messages": [USER], "response_format": {"type": "json_object"}}, "response_format"),
        ({"messages": [USER], "max_tokens": 0}, "'max_tokens' is out of range"),
        ({"messages": [USER], "tools": [{"type": "retrieval"}]}, "'tools' must be functions"),
        (b"{", "no valid JSON"),
        (b"[]", "must be a JSON object"),
    ],
)
def test_a_request_that_cannot_be_obeyed_is_refused_and_not_recorded(body, said):
    session, engine = session_of([])

    async def agent(client):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with httpx.AsyncClient() as http:
            headers = {"Authorization": f"Bearer {client.api_key}"}
            return await http.post(
                f"{client.base_url}chat/completions", content=content, headers=headers
            )

    answer = run(session, agent)
    assert answer.status_code == 400 and said in answer.json()["error"]["message"]
    assert not engine.calls and not session.turns()


def test_a_key_opens_its_own_session_only_and_may_be_part_of_the_address():
    ours, _ = session_of(["ours"])
    theirs, _ = session_of(["theirs"])

    async def main():
        endpoint = Endpoint("policy")
        async with serving(endpoint) as url, httpx.AsyncClient() as http:
            keys = endpoint.open(ours), endpoint.open(theirs)
            assert len(set(keys)) == 2
            body = {"messages": [USER]}
            for address, key, status in [
                (f"{url}/v1", None, 401),
                (f"{url}/v1", "sk-guess", 401),
                (f"{url}/s/sk-guess/v1", None, 401),
                (f"{url}/v1", keys[0], 200),
                (f"{url}/s/{keys[1]}/v1", "ignored", 200),
            ]:
                headers = {"Authorization": f"Bearer {key}"} if key else {}
                answer = await http.post(f"{address}/chat/completions", json=body, headers=headers)
                assert answer.status_code == status
            endpoint.close_session(keys[0])
            headers = {"Authorization": f"Bearer {keys[0]}"}
            gone = await http.get(f"{url}/v1/models", headers=headers)
            assert gone.status_code == 401
            assert (await http.get(f"{url}/metrics")).status_code == 404

    asyncio.run(main())
    assert (ours.answers, theirs.answers) == (1, 1)


def test_a_failing_engine_fails_the_request_and_the_session():
    session, _ = session_of([EngineError("out of memory"), EngineError("again")])

    async def agent(client):
        with pytest.raises(openai.InternalServerError, match="out of memory"):
            await chat(client, [USER])
        with pytest.raises(openai.InternalServerError):
            await chat(client, [USER], stream=True)

    run(session, agent)
    assert isinstance(session.failure, EngineError) and not session.turns()


def test_an_agent_that_hangs_up_leaves_no_action_behind():
    session, engine = session_of(["first", HANG, "second"])

    async def agent(client):
        first = (await chat(client, [USER])).message
        history = [USER, first, {"role": "user", "content": "on"}]
        with pytest.raises(openai.APITimeoutError):
            await chat(client.with_options(timeout=0.3), history)
        while session.asked != 1:  # the server notices that nobody listens
            await asyncio.sleep(0.01)
        await chat(client, history)

    run(session, agent)
    (sample,) = samples(session)
    assert learned(sample) == ["first<|im_end|>", "second<|im_end|>"]
    assert len(engine.calls) == 3


def test_too_many_requests_at_once_are_told_to_come_again():
    session, _ = session_of([HANG, "x"])

    async def agent(client):
        waiting = asyncio.create_task(chat(client, [USER]))
        while session.asked == 0:
            await asyncio.sleep(0.01)
        with pytest.raises(openai.RateLimitError):
            await chat(client, [USER])
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    run(session, agent, max_concurrency=1)


def test_a_server_keeps_a_bounded_number_of_answers():
    session, engine = session_of([f"answer {i}" for i in range(9)], keep=3)

    async def agent(client):
        for i in range(9):
            await chat(client, [{"role": "user", "content": f"question {i}"}])

    run(session, agent)
    assert session.answers == 3
    assert len(engine.released) >= 6
