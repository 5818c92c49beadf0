"""What is learned of conversations that a chat template writes, and reruns of outputs."""

import asyncio

import pytest

from agent_r1.data.traces import Trace, model, tool, trace_from_row
from agent_r1.errors import DataError
from agent_r1.rollout.codec import Codec
from agent_r1.testing import byte_tokenizer
from agent_r1.tool.base import BaseToolEnv
from agent_r1.trainer.sft_inspect import rerun, stretches

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% for c in m.get('tool_calls', []) %}<tool_call>{{ c['function'] | tojson }}</tool_call>"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FORGETFUL = TEMPLATE.replace(
    "{{ m['content'] }}",
    "{% if loop.last or m['role'] != 'assistant' %}{{ m['content'] }}{% endif %}",
)
OPENAI = {
    "messages": [
        {"role": "user", "content": "1+1?"},
        {
            "role": "assistant",
            "content": "Hm.",
            "tool_calls": [{"function": {"name": "add", "arguments": '{"x": 1}'}}],
        },
        {"role": "tool", "content": "2<|im_end|>"},
        {"role": "assistant", "content": "It is 2."},
    ]
}
CALL = '<tool_call>{"arguments": {"x": 1}, "name": "add"}</tool_call>'
HERMES = {
    "conversations": [
        {"from": "human", "value": "1+1?"},
        {"from": "gpt", "value": f"Hm.{CALL}"},
        {"from": "tool", "value": "<tool_response>\n2<|im_end|>\n</tool_response>"},
        {"from": "gpt", "value": "It is 2."},
    ]
}


def codec(template):
    return Codec(byte_tokenizer(chat_template=template))


@pytest.mark.parametrize("row", [OPENAI, HERMES], ids=["openai", "hermes"])
def test_only_the_models_words_are_learned(row):
    made = codec(TEMPLATE)
    end = made.tokenizer.eos_token
    shown = [(part.learned, part.text) for part in stretches(trace_from_row(row), made)]
    assert "".join(text for _, text in shown).count("2< |im_end|>") == 1
    learned = [text for own, text in shown if own]
    assert learned[0].startswith("Hm.<tool_call>{") and "add" in learned[0]
    assert learned[-1] == f"It is 2.{'<|im_end|>' if end == '<|im_end|>' else ''}" + (
        "" if end == "<|im_end|>" else f"<|im_end|>{end}"
    )
    assert shown[0] == (False, "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n")


def test_a_template_that_rewrites_history_is_refused():
    with pytest.raises(DataError, match="does not append"):
        stretches(trace_from_row(OPENAI), codec(FORGETFUL))


class Doubling(BaseToolEnv):
    """Answers a number with its double, and fails on others."""

    def step(self, raw_response):
        word = raw_response.split()[-1]
        if word == "end":
            return "", [], False
        try:
            return f"\n{int(word) * 2}\n", [True], True
        except ValueError as error:
            return f"\nError: {error}\n", [False], True


def play(*pairs, stale="correct"):
    traces = []
    for said, answer in pairs:
        traces.append(Trace("q", (model(said), tool(answer), model("done"))))
    result = asyncio.run(rerun(traces, Doubling, stale=stale))
    return [t.segments[1].text for t in result.traces], dict(result.counts)


def test_outputs_of_another_day_are_corrected_or_dropped():
    pairs = [("x 2", "\n4\n"), ("x 3", "\n7\n"), ("x y", "\n1\n"), ("the end", "\n1\n")]
    gone = {"dropped: a call changed its success": 1, "dropped: a turn calls no tool": 1}
    assert play(*pairs) == (["\n4\n", "\n6\n"], {"unchanged": 1, "corrected": 1} | gone)
    assert play(*pairs, stale="drop") == (
        ["\n4\n"],
        {"unchanged": 1, "dropped: an output changed": 1} | gone,
    )
