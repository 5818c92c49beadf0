"""Between text and token ids: the only place where either becomes the other.

Three rules keep training honest. A prompt is rendered once. What the model sampled is
only ever decoded, never encoded again. New environment text is encoded by itself and
appended, so the context of a turn is always literally the context of the turn before
plus the completion plus the observation; a chat template gets no chance to rewrite
history (Qwen3's removes earlier thinking).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from agent_r1.config.policy import ModelConfig
from agent_r1.errors import ConfigError, TemplateError
from agent_r1.models.load import load_tokenizer
from agent_r1.rollout.prefixes import common_prefix
from agent_r1.types import Completion, Finish, Task

_PROBE = ({"role": "user", "content": "probe"},)
_DIRECTIVES = [f"%{letter}" for letter in ("-d", "-m", *"dmbByYaAjHIpMS")]


class Codec:
    """Renders prompts, decodes completions, encodes observations for one tokenizer.

    ``chat_template_kwargs`` go to the template (``enable_thinking=False`` for Qwen3). Templates
    that write the present date (Llama 3.1 and later) always see the same one, as a run that
    is resumed tomorrow must see the prompts of today; their ``date_string`` sets another.
    """

    def __init__(
        self, tokenizer: Any, *, chat_template_kwargs: Mapping[str, Any] | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self._template_kwargs = {**_fixed_day(tokenizer), **(chat_template_kwargs or {})}
        self._ends = end_token_ids(tokenizer)
        self._lead = _lead_of(tokenizer)
        self._lead_text = self._decode(self._lead)

    @property
    def pad_id(self) -> int:
        """Any id will do for padding: masks and lengths never look at it."""
        pad = self.tokenizer.pad_token_id
        return int(pad) if pad is not None else min(self._ends, default=0)

    def render(self, task: Task) -> tuple[int, ...]:
        """Token ids of a task's prompt, ready to be continued by the model.

        Raises :class:`TemplateError` when messages cannot be rendered.
        """
        if isinstance(task.prompt, str):
            return tuple(self.tokenizer.encode(task.prompt, add_special_tokens=True))
        return tuple(self._rendered(task.prompt, True, (), tokenize=True))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of sampled ids, exactly, control tokens included."""
        return self._decode([*self._lead, *token_ids]).removeprefix(self._lead_text)

    def encode_text(self, text: str, *, plain: bool = False) -> tuple[int, ...]:
        """Ids of text that continues a context: nothing is put before it.

        Tokenizers of the SentencePiece kind (Llama 2, Yi) begin every text with a space of
        their own, which belongs at the beginning of a document only. With ``plain``, text
        that spells a control token is encoded as the characters it consists of.
        """
        ids = self.tokenizer.encode(
            self._lead_text + text, add_special_tokens=False, split_special_tokens=plain
        )
        return tuple(ids[len(self._lead) :])

    def spells_control(self, text: str) -> bool:
        """Whether text holds the name of a control token."""
        return bool(text) and self.encode_text(text) != self.encode_text(text, plain=True)

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text

    def text_of(self, completion: Completion) -> str:
        """What an environment sees of a completion.

        The token that ended it is not text. A stop string may end inside a token: the
        text ends right after it, whatever else that token carried; the token itself
        stays in the trajectory whole.
        """
        ids = completion.token_ids
        if completion.finish is Finish.EOS and ids and ids[-1] in self._ends:
            return self.decode(ids[:-1])
        text = self.decode(ids)
        if completion.stop is not None:
            end = text.find(completion.stop)
            return text if end < 0 else text[: end + len(completion.stop)]
        return text

    def encode_observation(self, text: str, *, control_tokens: bool = False) -> tuple[int, ...]:
        """Ids of environment text.

        Tool output is untrusted: text in it that spells a control token
        (``<|im_end|>``) is encoded as plain characters. An environment that writes the
        markup of further chat turns itself asks for ``control_tokens`` and is then
        responsible for neutralising the tool's part.
        """
        return self.encode_text(text, plain=not control_tokens) if text else ()

    def check_template(self) -> None:
        """Fail early where a history would show the model another context than it continued.

        The prompt that generation continues must be a prefix of the same conversation
        rendered with its answer, but for a thought that it opens (DeepSeek-R1's ``<think>``):
        rollouts and cold start both go on from there. Raises :class:`TemplateError`.
        """
        if getattr(self.tokenizer, "chat_template", None) is None:
            return
        prompt = self.template_text(_PROBE, add_generation_prompt=True)
        answer = {"role": "assistant", "content": "answer"}
        whole = self.template_text((*_PROBE, answer), add_generation_prompt=False)
        opened = prompt[common_prefix(prompt, whole) :]
        if opened.strip() not in ("", "<think>"):
            raise TemplateError(
                f"the chat template is not append-only: the generation prompt {prompt!r} is no "
                f"prefix of the answered conversation {whole!r}. Set "
                "actor_rollout_ref.model.chat_template_kwargs (for Qwen3: {enable_thinking: "
                "false}) or give the model another template."
            )

    def template_text(
        self,
        messages: Sequence[Any],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        """Messages and announced tools as the chat template writes them.

        Raises :class:`TemplateError` when they cannot be rendered.
        """
        return str(self._rendered(messages, add_generation_prompt, tools, tokenize=False))

    def _rendered(
        self,
        messages: Sequence[Any],
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]],
        *,
        tokenize: bool,
    ) -> Any:
        try:
            return self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tools=[dict(tool) for tool in tools] or None,
                add_generation_prompt=add_generation_prompt,
                tokenize=tokenize,
                return_dict=False,
                **self._template_kwargs,
            )
        except Exception as error:  # templates are programs: jinja raises what it likes
            raise TemplateError(_unrendered(self.tokenizer, messages, error)) from error


def _unrendered(tokenizer: Any, messages: Sequence[Any], error: Exception) -> str:
    """What is wrong, and the ways out; the template's own words come last."""
    shown = f"{list(messages)!r:.200}"
    if getattr(tokenizer, "chat_template", None) is None:
        return (
            "the model's tokenizer has no chat template, and the prompt is a list of messages: "
            f"{shown}. Give a template with actor_rollout_ref.model.custom_chat_template=FILE, or "
            "give prompts as plain text (a string), which such a model continues"
        )
    return (
        f"the tokenizer's chat template cannot render {shown}. Change the messages, or give "
        "another template with actor_rollout_ref.model.custom_chat_template=FILE. The template "
        f"said: {error}"
    )


def open_codec(model: ModelConfig) -> Codec:
    """The codec of a configured model. Raises :class:`ModelError` and :class:`ConfigError`."""
    tokenizer = load_tokenizer(model.path, trust_remote_code=model.trust_remote_code)
    if model.custom_chat_template:
        tokenizer.chat_template = _template_text(model.custom_chat_template)
    return Codec(tokenizer, chat_template_kwargs=model.chat_template_kwargs)


def _template_text(given: str) -> str:
    if "{" in given:
        return given
    try:
        return Path(given).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"model.custom_chat_template={given} cannot be read: {error}. Give a file with a "
            "Jinja template, or the template itself"
        ) from error


def end_token_ids(tokenizer: Any) -> frozenset[int]:
    """Ids that may end a completion: every control token, the end of sequence first.

    A model's generation config often names more ends than its tokenizer does (Gemma 3
    ends its turns with ``<end_of_turn>``, its tokenizer says ``<eos>``).
    """
    eos = tokenizer.eos_token_id
    named = eos if isinstance(eos, list | tuple | set) else () if eos is None else (eos,)
    known = getattr(tokenizer, "added_tokens_decoder", {})
    return frozenset(map(int, named)) | {
        int(index) for index, token in known.items() if token.special
    }


def _fixed_day(tokenizer: Any) -> dict[str, str]:
    """The tokenizer's template with a fixed date in the place of today's, if it asks for that."""
    template = getattr(tokenizer, "chat_template", None)
    if not isinstance(template, str) or "strftime_now" not in template:
        return {}
    day = datetime(2024, 7, 26)  # what Llama 3's own takes where there is no clock
    shown = "".join(f"|replace({part!r}, {day.strftime(part)!r})" for part in _DIRECTIVES)
    clock = f"{{%- macro strftime_now(format) -%}}{{{{ format{shown} }}}}{{%- endmacro -%}}"
    return {"chat_template": clock + template}


def _lead_of(tokenizer: Any) -> tuple[int, ...]:
    """Ids to encode and decode after, so that text reads as it does inside a context.

    Empty where that makes no difference.
    """
    alone, line, both = (
        tokenizer.encode(text, add_special_tokens=False) for text in ("a", "\n", "\na")
    )
    inside = both[len(line) :]
    return tuple(line) if both[: len(line)] == line and inside != alone else ()
