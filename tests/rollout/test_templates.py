"""Chat templates in the manner of the model families, and what is made of their habits."""

import pytest

from agent_r1.config.load import load_config
from agent_r1.errors import ConfigError, TemplateError
from agent_r1.rollout.codec import Codec, open_codec
from agent_r1.testing import byte_tokenizer
from agent_r1.types import Completion, Finish, Outcome, Task, Trajectory, Turn

# In our own words, with the behaviour of the originals: what is added, stripped, refused.
QWEN2 = (
    "{% if messages[0]['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN3 = (
    "{% set last = namespace(user=0) %}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{% set last.user = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}"
    "{% set answer = m['content'].split('</think>')[-1].lstrip('\n') %}"
    "{% set thought = m['content'].split('</think>')[0].split('<think>')[-1].strip('\n')"
    " if '</think>' in m['content'] else '' %}"
    "{% if loop.index0 > last.user %}<think>\n{{ thought }}\n</think>\n\n{% endif %}{{ answer }}"
    "{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
THINKING_ONLY = QWEN3.replace(
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}",
    "<think>\nLet me think.",
)
LLAMA3 = (
    "{{ '<|begin_of_text|>' }}{% for m in messages %}"
    "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
SMOLLM2 = QWEN2.replace("You are a helpful assistant.", "You are a helpful AI assistant.")
GEMMA = (
    "{{ '<bos>' }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MARKUP = [
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<bos>",
    "<start_of_turn>",
    "<end_of_turn>",
]
USER = {"role": "user", "content": "6 * 7?"}
SYSTEM = {"role": "system", "content": "Be brief."}


def codec(template, **kwargs):
    tokenizer = byte_tokenizer(extra_tokens=MARKUP, chat_template=template)
    return Codec(tokenizer, chat_template_kwargs=kwargs)


def rendered(template, *messages, **kwargs):
    made = codec(template, **kwargs)
    return made.decode(made.render(Task("t", messages)))


@pytest.mark.parametrize(
    ("template", "opening"),
    [
        (QWEN2, "<|im_start|>assistant\n"),
        (QWEN3, "<|im_start|>assistant\n"),
        (SMOLLM2, "<|im_start|>assistant\n"),
        (LLAMA3, "<|start_header_id|>assistant<|end_header_id|>\n\n"),
        (GEMMA, "<start_of_turn>model\n"),
    ],
    ids=["qwen2", "qwen3", "smollm2", "llama3", "gemma"],
)
def test_a_family_passes_the_check_and_opens_the_models_turn(template, opening):
    codec(template).check_template()
    text = rendered(template, USER)
    assert text.endswith(opening) and text.count("6 * 7?") == 1


@pytest.mark.parametrize("template", [QWEN2, QWEN3, SMOLLM2, LLAMA3])
def test_a_system_message_is_rendered_first(template):
    text = rendered(template, SYSTEM, USER)
    assert text.index("Be brief.") < text.index("6 * 7?") and "helpful" not in text


def test_gemma_has_no_system_role_and_says_so():
    with pytest.raises(TemplateError, match="System role not supported"):
        rendered(GEMMA, SYSTEM, USER)
    answered = rendered(GEMMA, USER, {"role": "assistant", "content": "42"}, USER)
    assert "<start_of_turn>model\n42<end_of_turn>" in answered and answered.startswith("<bos>")


def test_special_tokens_are_not_put_twice():
    ids = codec(LLAMA3).render(Task("t", (USER,)))
    begin = codec(LLAMA3).tokenizer.convert_tokens_to_ids("<|begin_of_text|>")
    assert ids[0] == begin and ids.count(begin) == 1


@pytest.mark.parametrize("thinking", [True, False])
def test_thinking_is_switched_by_the_configuration(thinking):
    for key in ("actor_rollout_ref.model.chat_template_kwargs", "+data.apply_chat_template_kwargs"):
        config = load_config(None, [f"{key}.enable_thinking={thinking}"], environ={})
        kwargs = config.actor_rollout_ref.model.chat_template_kwargs
        assert kwargs == {"enable_thinking": thinking}
        codec(QWEN3, **kwargs).check_template()
        assert rendered(QWEN3, USER, **kwargs).endswith("</think>\n\n") is not thinking


def test_a_prompt_that_begins_with_words_which_history_does_not_keep_is_refused():
    with pytest.raises(TemplateError, match=r"not append-only.*Let me think"):
        codec(THINKING_ONLY).check_template()


def test_a_prompt_may_open_a_thought():
    """DeepSeek-R1's distillations and Qwen's thinking models: what is sampled goes on from it."""
    opens = THINKING_ONLY.replace("<think>\nLet me think.", "<think>\n")
    assert opens != THINKING_ONLY
    codec(opens).check_template()
    assert rendered(opens, USER).endswith("<think>\n")


def turn(made, prompt, text):
    ids = tuple(made.tokenizer.encode(text, add_special_tokens=False))
    completion = Completion(ids, (-1.0,) * len(ids), Finish.EOS)
    return Turn(prompt, completion, text)


def test_thoughts_that_a_template_takes_back_begin_a_new_training_sample():
    made = codec(QWEN3)
    said = "<think>\nsix sevens\n</think>\n\n42"
    first = turn(made, made.render(Task("t", (USER,))), said)
    history = (USER, {"role": "assistant", "content": said}, {"role": "user", "content": "Sure?"})
    second = turn(made, made.render(Task("t", history)), "<think>\nyes\n</think>\n\nYes.")
    assert "six sevens" not in made.decode(second.prompt_ids)
    trajectory = Trajectory(Task("t", (USER,)), "g", 0, (first, second), Outcome.FINISHED)
    samples = trajectory.samples()
    assert [s.token_ids for s in samples] == [
        t.prompt_ids + t.completion.token_ids for t in (first, second)
    ]


def test_what_the_agent_loop_appends_keeps_thoughts_whatever_the_template():
    made = codec(QWEN3)
    first = turn(made, made.render(Task("t", (USER,))), "<think>\nuse the tool\n</think>\n\n")
    context = first.next_prompt_ids + made.encode_observation("\n<interpreter>42</interpreter>\n")
    assert "use the tool" in made.decode(context)
    assert context[: len(first.prompt_ids)] == first.prompt_ids


DATED = (
    "{% if date_string is not defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%A %d %b %Y') %}{% else %}"
    "{% set date_string = 'no clock' %}{% endif %}{% endif %}Today: {{ date_string }}\n" + QWEN2
)


def test_a_template_with_a_clock_writes_the_same_prompt_every_day():
    made = codec(DATED)
    made.check_template()
    assert rendered(DATED, USER).startswith("Today: Friday 26 Jul 2024\n<|im_start|>")
    assert rendered(DATED, USER, date_string="1 May").startswith("Today: 1 May\n")


@pytest.mark.parametrize("as_file", [True, False])
def test_a_model_without_a_template_is_given_one(tmp_path, as_file):
    folder = tmp_path / "model"
    byte_tokenizer(extra_tokens=MARKUP, chat_template=None).save_pretrained(folder)
    given = tmp_path / "gemma.jinja"
    given.write_text(GEMMA)
    key = "actor_rollout_ref.model."
    bare = load_config(None, [f"{key}path={folder}"], environ={}).actor_rollout_ref.model
    with pytest.raises(TemplateError, match="custom_chat_template"):
        open_codec(bare).render(Task("t", (USER,)))
    template = given if as_file else GEMMA
    dressed = bare.model_copy(update={"custom_chat_template": str(template)})
    made = open_codec(dressed)
    assert made.decode(made.render(Task("t", (USER,)))).startswith("<bos><start_of_turn>user\n6")
    missing = bare.model_copy(update={"custom_chat_template": str(tmp_path / "none.jinja")})
    with pytest.raises(ConfigError, match=r"none\.jinja cannot be read"):
        open_codec(missing)
