"""A policy behind an OpenAI-compatible address, for evaluations and agents elsewhere."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

from agent_r1.config.schema import Config
from agent_r1.errors import ConfigError
from agent_r1.models.load import check_vocabulary
from agent_r1.rollout.codec import Codec, open_codec
from agent_r1.rollout.endpoint.messages import ChatRenderer
from agent_r1.rollout.endpoint.server import Endpoint, ServerLimits
from agent_r1.rollout.endpoint.session import Session
from agent_r1.rollout.engine import Engine
from agent_r1.rollout.limits import LoopLimits, Sampling
from agent_r1.trainer import build
from agent_r1.under_way import under_way

UNLIMITED = 1 << 60
KEPT_ANSWERS = 1024
"""Answers that a later request can continue by their ids; older ones are rendered anew."""
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    config: Config,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    max_concurrency: int | None = 64,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM.

    Requests need ``token`` as their key, if there is one. ``max_concurrency`` are answered at
    once; an answer has at most ``rollout.response_length`` (else ``data.max_response_length``)
    tokens. Requests choose their temperature and top_p; what they leave open is that of
    ``rollout.val_kwargs``.

    Raises:
        ConfigError: the address cannot be had, or would let anybody on the network in.
    """
    if host not in _LOOPBACK and not token:
        raise ConfigError(
            f"{host} is reachable from other machines, and whoever reaches it may use the model; "
            "set a token in the environment variable AGENT_R1_SERVE_TOKEN"
        )
    if config.actor_rollout_ref.rollout.name == "openai":
        raise ConfigError("a model on a server is served already; give --run or --checkpoint")
    with under_way("opening the policy"):
        codec = open_codec(config.actor_rollout_ref.model)
        renderer = ChatRenderer(codec)
        model = build.model_loader(config)(config.actor_rollout_ref.model.path)
        check_vocabulary(model, codec.tokenizer)
        engine = build.build_engine(config, model, codec.tokenizer)
    session = _session(config, engine, codec, renderer)
    endpoint = Endpoint(
        config.actor_rollout_ref.model.path,
        ServerLimits(max_concurrency),
        anonymous=None if token else session,
    )
    if token:
        endpoint.open(session, token)

    async def run() -> None:
        stopped = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
        try:
            url = await endpoint.start(host, port)
            if ready is not None:
                ready(f"{url}/v1")
            await stopped.wait()
        finally:
            await endpoint.stop()
            await engine.close()

    asyncio.run(run())


def _session(config: Config, engine: Engine, codec: Codec, renderer: ChatRenderer) -> Session:
    rollout = config.actor_rollout_ref.rollout
    val = rollout.val_kwargs
    most = rollout.response_length or config.data.max_response_length
    return Session(
        "serve",
        engine,
        codec,
        renderer,
        LoopLimits(UNLIMITED, UNLIMITED, max_tokens_per_turn=most),
        Sampling(
            temperature=val.temperature,
            top_p=val.top_p,
            top_k=max(val.top_k, 0),
            stop_token_ids=rollout.stop_token_ids,
            seed=config.trainer.seed,
        ),
        obey_sampling=True,
        keep=KEPT_ANSWERS,
    )
