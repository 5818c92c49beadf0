"""``/v1/responses``, asked by the ``openai`` client and by an agent of openai-agents."""

import json

import pytest
from endpoint_kit import ADD, CALL, learned, run, samples, session_of, text

openai = pytest.importorskip("openai")
TOOL = {"type": "function", **ADD["function"]}


def test_text_and_what_goes_on_from_it_continue_the_ids():
    session, engine = session_of(["It is 42.", "Sure.", "Yes."])

    async def agent(client):
        async def ask(given, **options):
            return await client.responses.create(
                model="policy", input=given, instructions="Be brief.", **options
            )

        first = await ask("What is 6 * 7?")
        assert (first.output_text, first.status) == ("It is 42.", "completed")
        assert first.usage.output_tokens == len("It is 42.") + 1
        second = await ask("Sure?", previous_response_id=first.id)
        assert second.output_text == "Sure."
        items = [
            {"role": "user", "content": "What is 6 * 7?"},
            *(item.model_dump() for item in first.output),
            {"role": "user", "content": "Sure?"},
            *(item.model_dump() for item in second.output),
            {"role": "user", "content": "Really?"},
        ]
        assert (await ask(items)).output_text == "Yes."

    run(session, agent)
    (sample,) = samples(session)
    assert learned(sample) == [f"{t}<|im_end|>" for t in ("It is 42.", "Sure.", "Yes.")]
    begin = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 6 * 7?<|im_end|>\n"
    assert text(engine.calls[0].prompt_ids).startswith(begin)


def test_calls_and_their_outputs_are_items():
    session, _ = session_of([f"Let me see. {CALL}", "3."])

    async def agent(client):
        first = await client.responses.create(model="policy", input="1 + 2?", tools=[TOOL])
        message, call = first.output
        assert message.content[0].text == "Let me see."
        assert (call.name, json.loads(call.arguments)) == ("add", {"a": 1, "b": [2]})
        items = [
            {"role": "user", "content": "1 + 2?"},
            *(item.model_dump(exclude_none=True) for item in first.output),
            {"type": "function_call_output", "call_id": call.call_id, "output": "3"},
        ]
        return await client.responses.create(model="policy", input=items, tools=[TOOL])

    assert run(session, agent).output_text == "3."
    (sample,) = samples(session)
    assert len(learned(sample)) == 2


def test_an_agent_of_openai_agents_runs_unchanged():
    agents = pytest.importorskip("agents")
    call = '<tool_call>{"name": "look", "arguments": {"where": "up"}}</tool_call>'
    session, engine = session_of([call, "A bird."])

    async def agent(client):
        agents.set_tracing_disabled(True)

        @agents.function_tool
        def look(where: str) -> str:
            """Look."""
            return f"{where}: a bird"

        model = agents.OpenAIResponsesModel("policy", client)
        made = agents.Agent("looker", instructions="Look first.", tools=[look], model=model)
        return (await agents.Runner.run(made, "What is up there?")).final_output

    assert run(session, agent) == "A bird."
    (sample,) = samples(session)
    assert len(learned(sample)) == 2
    assert "up: a bird" in text(engine.calls[1].prompt_ids)


def test_an_answer_that_was_cut_says_so():
    session, _ = session_of(["It is about 42."])

    async def agent(client):
        return await client.responses.create(model="policy", input="?", max_output_tokens=5)

    answer = run(session, agent)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert answer.output_text == "It is"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"input": []}, "at least one item"),
        ({"input": "?", "stream": True}, "'stream' is not supported"),
        ({"input": "?", "previous_response_id": "resp_1"}, "no response 'resp_1'"),
        ({"input": "?", "tools": [{"type": "web_search"}]}, "hosted tools are not supported"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "'item_reference' are not supported"),
        ({"input": "?", "text": {"format": {"type": "json_object"}}}, "'text.format'"),
    ],
)
def test_what_is_not_supported_is_refused(options, said):
    session, engine = session_of([])

    async def agent(client):
        return await client.responses.create(model="policy", **options)

    with pytest.raises(openai.BadRequestError, match=said):
        run(session, agent)
    assert not engine.calls
