"""The policy that an evaluation or a chat asks: weights in this process, or a server's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agent_r1.config.schema import Config
from agent_r1.errors import ConfigError
from agent_r1.models.load import check_vocabulary
from agent_r1.rollout.codec import Codec, open_codec
from agent_r1.rollout.engine import Engine
from agent_r1.rollout.engines.openai_text import CharacterTokenizer, MessageCodec
from agent_r1.tool.protocol import Env
from agent_r1.trainer import build

SERVER_CONCURRENCY = 32
"""Trajectories at once: what waits in a server's queue would use up its time limit there."""


@dataclass(frozen=True, slots=True)
class OpenedPolicy:
    """What is known of a policy before its weights are read: tokenizer before weights."""

    name: str
    codec: Codec
    counts_tokens: bool
    """Ids are the model's tokens. Without its tokenizer they are characters."""
    max_concurrency: int | None
    build_engine: Callable[[], Engine]


def open_policy(config: Config, envs: Sequence[Env]) -> OpenedPolicy:
    """The policy of ``rollout.name``; raises :class:`ConfigError` if its server is not there."""
    if config.actor_rollout_ref.rollout.name == "openai":
        return _served(config, envs)
    roles = config.actor_rollout_ref
    codec = open_codec(config.actor_rollout_ref.model)

    def build_engine() -> Engine:
        if build.engine_name(config) == "vllm":  # it reads the folder itself
            return build.build_engine(config, None, codec.tokenizer)
        model = build.model_loader(config)(roles.model.path)
        check_vocabulary(model, codec.tokenizer)
        return build.build_engine(config, model, codec.tokenizer)

    return OpenedPolicy(roles.model.path, codec, True, roles.rollout.max_concurrency, build_engine)


def _served(config: Config, envs: Sequence[Env]) -> OpenedPolicy:
    from agent_r1.rollout.engines.openai import UNLIMITED, OpenAIEngine

    rollout, server = config.actor_rollout_ref.rollout, config.actor_rollout_ref.rollout.server
    has_tokenizer = bool(config.actor_rollout_ref.model.path)
    if server.api == "auto":
        server = server.model_copy(update={"api": "completions" if has_tokenizer else "chat"})
    chat = server.api.startswith("chat")
    counts_tokens = has_tokenizer and not chat
    codec = _codec_for(config, envs, chat)
    kwargs = config.actor_rollout_ref.model.chat_template_kwargs
    if chat and kwargs:  # vLLM and SGLang hand them to the template
        body = {"chat_template_kwargs": kwargs, **server.extra_body}
        server = server.model_copy(update={"extra_body": body})
    engine = OpenAIEngine(
        server,
        codec.tokenizer,
        max_model_len=config.context_window if counts_tokens else UNLIMITED,
    )
    concurrency = rollout.max_concurrency or SERVER_CONCURRENCY
    return OpenedPolicy(engine.model, codec, counts_tokens, concurrency, lambda: engine)


def _codec_for(config: Config, envs: Sequence[Env], chat: bool) -> Codec:
    if not chat:
        if config.actor_rollout_ref.model.path:
            return open_codec(config.actor_rollout_ref.model)
        return Codec(CharacterTokenizer(chat=False))
    marked = next((env for env in envs if env.control_tokens), None)
    if marked is not None:
        raise ConfigError(
            f"{type(marked).__name__} writes the model's chat markup itself, which "
            "server.api=chat cannot carry; give the model's tokenizer with "
            "actor_rollout_ref.model.path and use actor_rollout_ref.rollout.server.api=completions"
        )
    return MessageCodec()
