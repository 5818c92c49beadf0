"""Between text and token ids: the only place where either becomes the other.

Three rules keep training honest. A prompt is rendered once. What the model sampled is
only ever decoded, never encoded again. New environment text is encoded by itself and
appended, so the context of a turn is always literally the context of the turn before
plus the completion plus the observation; a chat template gets no chance to rewrite
history (Qwen3's removes earlier thinking).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agent_r1.errors import TemplateError
from agent_r1.types import Completion, Finish, Task

_PROBE = ({"role": "user", "content": "probe"},)


class Codec:
    """Renders prompts, decodes completions, encodes observations for one tokenizer.

    ``chat_template_kwargs`` go to the template (``enable_thinking=False`` for Qwen3).
    """

    def __init__(
        self, tokenizer: Any, *, chat_template_kwargs: Mapping[str, Any] | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self._template_kwargs = dict(chat_template_kwargs or {})
        self._eos_ids = eos_token_ids(tokenizer)

    @property
    def pad_id(self) -> int:
        """Any id will do for padding: masks and lengths never look at it."""
        pad = self.tokenizer.pad_token_id
        return int(pad) if pad is not None else min(self._eos_ids, default=0)

    def render(self, task: Task) -> tuple[int, ...]:
        """Token ids of a task's prompt, ready to be continued by the model.

        Raises :class:`TemplateError` when messages cannot be rendered.
        """
        if isinstance(task.prompt, str):
            return tuple(self.tokenizer.encode(task.prompt, add_special_tokens=True))
        return self._apply(task.prompt, add_generation_prompt=True)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of sampled ids, exactly, control tokens included."""
        text: str = self.tokenizer.decode(
            list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text

    def text_of(self, completion: Completion) -> str:
        """What an environment sees of a completion.

        The end-of-sequence token is not text. A stop string may end inside a token: the
        text ends right after it, whatever else that token carried; the token itself
        stays in the trajectory whole.
        """
        ids = completion.token_ids
        if completion.finish is Finish.EOS and ids and ids[-1] in self._eos_ids:
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
        if not text:
            return ()
        ids = self.tokenizer.encode(
            text, add_special_tokens=False, split_special_tokens=not control_tokens
        )
        return tuple(ids)

    def check_template(self) -> None:
        """Fail early where cold start and rollouts would see different contexts.

        The prompt that generation continues must be a prefix of the same conversation
        rendered with its answer. Raises :class:`TemplateError`.
        """
        if getattr(self.tokenizer, "chat_template", None) is None:
            return
        prompt = self._apply(_PROBE, add_generation_prompt=True)
        answer = {"role": "assistant", "content": "answer"}
        whole = self._apply((*_PROBE, answer), add_generation_prompt=False)
        if whole[: len(prompt)] != prompt:
            raise TemplateError(
                "the chat template is not append-only: the generation prompt "
                f"{self.decode(prompt)!r} is no prefix of the answered conversation "
                f"{self.decode(whole)!r}. Set actor_rollout_ref.model.chat_template_kwargs "
                "(for Qwen3: {enable_thinking: false}) or give the model another template."
            )

    def _apply(self, messages: Sequence[Any], *, add_generation_prompt: bool) -> tuple[int, ...]:
        try:
            ids = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                tokenize=True,
                return_dict=False,
                **self._template_kwargs,
            )
        except Exception as error:  # templates are programs: jinja raises what it likes
            raise TemplateError(
                f"the tokenizer's chat template cannot render {list(messages)!r}: {error}. "
                "A model without a template takes prompts as plain text (a string)."
            ) from error
        return tuple(ids)


def eos_token_ids(tokenizer: Any) -> frozenset[int]:
    """Ids that end a completion according to the tokenizer (there may be none)."""
    eos = tokenizer.eos_token_id
    if eos is None:
        return frozenset()
    return frozenset(eos) if isinstance(eos, list | tuple | set) else frozenset({int(eos)})
