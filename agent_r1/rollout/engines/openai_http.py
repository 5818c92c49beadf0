"""Talking to an OpenAI-compatible server: event streams, patience and plain words for errors."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import httpx

from agent_r1.config.policy import ServerConfig
from agent_r1.errors import ConfigError, ContextExceeded, EngineError

_AGAIN = frozenset({408, 409, 425, 429})
_LONGEST_PAUSE_S = 60.0
_CONNECT_S = 10.0


class Retryable(EngineError):
    """What may be over in a moment. ``after_s``: how long the server asks to wait."""

    def __init__(self, message: str, after_s: float | None = None) -> None:
        super().__init__(message)
        self.after_s = after_s


class ServerClient:
    """Requests to one server with one key.

    The address may be given with or without its ``/v1``.
    """

    def __init__(self, config: ServerConfig, *, backoff_s: float = 0.5) -> None:
        self._config = config
        self._backoff_s = backoff_s
        self.base = base_url(config.url)
        self.software = ""
        """What the server says of itself in its list of models, such as ``vllm``."""
        self._client: httpx.AsyncClient | None = None

    def _options(self) -> dict[str, Any]:
        key = os.environ.get(self._config.api_key_env)
        return {
            "headers": {"Authorization": f"Bearer {key}"} if key else {},
            "timeout": httpx.Timeout(self._config.timeout_s, connect=_CONNECT_S),
        }

    def model_name(self) -> str:
        """The configured model after a look at what is served, or the only one served.

        Raises :class:`ConfigError` where nobody answers, the address is no such server's,
        or the model is not served.
        """
        wanted = self._config.model
        try:
            answer = httpx.get(f"{self.base}/models", **self._options())
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ConfigError(
                f"no server answers at {self.base} ({type(error).__name__}: {error}); is it "
                "running, and is actor_rollout_ref.rollout.server.url right?"
            ) from error
        if answer.status_code in (401, 403):
            raise ConfigError(self._key_refused(answer.status_code))
        entries = _models(answer)
        served = None if entries is None else [str(model["id"]) for model in entries]
        self.software = str(entries[0].get("owned_by") or "") if entries else ""
        if served is None and wanted:
            return wanted  # not every server lists its models; the first request will tell
        if served is None:
            raise ConfigError(
                f"{self.base}/models answered {answer.status_code} and no list of models: the "
                "address of an OpenAI-compatible server mostly ends in /v1; if it is right, name "
                "the model with --model"
            )
        if not wanted and len(served) == 1:
            return served[0]
        if wanted not in served:
            what = f"does not serve {wanted!r}" if wanted else f"serves {len(served)} models"
            raise ConfigError(f"{self.base} {what}; choose --model from: {', '.join(served)}")
        return wanted

    async def events(
        self, path: str, body: Mapping[str, Any]
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The events of a streamed answer. Raises :class:`Retryable` or :class:`EngineError`."""
        if self._client is None:
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
            self._client = httpx.AsyncClient(limits=limits, **self._options())
        content = json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        try:
            async with self._client.stream(
                "POST", f"{self.base}/{path}", content=content, headers=headers
            ) as answer:
                if answer.status_code != 200:
                    raise self._refusal(answer, _message(await answer.aread()))
                async for line in answer.aiter_lines():
                    if not line.startswith("data:"):
                        continue
                    data = line[5:].strip()
                    if data == "[DONE]":
                        return
                    yield _event(data)
        except httpx.HTTPError as error:
            raise Retryable(
                f"{self.base} did not answer ({type(error).__name__}: {error})"
            ) from error

    async def pause(self, attempt: int, failure: Retryable) -> None:
        """Wait before another attempt, or raise what happened when there were enough.

        Exponential with jitter, so that many trajectories do not come back at once.
        """
        if attempt >= self._config.retries:
            raise EngineError(
                f"{failure}; gave up after {attempt + 1} attempts "
                "(actor_rollout_ref.rollout.server.retries)"
            ) from failure
        wait = self._backoff_s * 2**attempt * (0.5 + random.random())
        if failure.after_s is not None:
            wait = max(wait, failure.after_s)
        await asyncio.sleep(min(wait, _LONGEST_PAUSE_S))

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def _refusal(self, answer: httpx.Response, message: str) -> EngineError:
        status = answer.status_code
        said = f"{self.base} answered {status}: {message}"
        if status in _AGAIN or status >= 500:
            return Retryable(said, _seconds(answer.headers.get("retry-after")))
        if status in (401, 403):
            return EngineError(self._key_refused(status))
        if status == 404:
            return EngineError(f"{said}; is the address right, and the model served?")
        if status in (400, 413, 422) and _says_too_long(message):
            return ContextExceeded(said)
        return EngineError(
            f"{said}; what the server does not know can be taken out of the request with "
            "actor_rollout_ref.rollout.server.extra_body={name: null}, and prompts can be sent "
            "as text with actor_rollout_ref.rollout.server.api=completions_text"
        )

    def _key_refused(self, status: int) -> str:
        name = self._config.api_key_env
        state = "is set" if os.environ.get(name) else "is not set"
        return (
            f"{self.base} refuses the key ({status}): it is read from the environment variable "
            f"{name}, which {state} (actor_rollout_ref.rollout.server.api_key_env)"
        )


def base_url(url: str) -> str:
    """``http://host:8000`` as ``http://host:8000/v1``; an address with a path as it is."""
    url = url.rstrip("/")
    for path in ("/chat/completions", "/completions", "/models"):
        url = url.removesuffix(path)
    return url if "/" in url.partition("://")[2] else f"{url}/v1"


def _models(answer: httpx.Response) -> list[dict[str, Any]] | None:
    if answer.status_code != 200:
        return None
    try:
        models = answer.json()["data"]
        return [dict(model) for model in models if model["id"]]
    except (ValueError, KeyError, TypeError):
        return None


def _event(data: str) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except ValueError as error:
        raise Retryable(f"the server streamed what is no JSON: {data[:80]!r}") from error
    if not isinstance(event, dict):
        raise Retryable(f"the server streamed {data[:80]!r}")
    if event.get("error"):
        raise Retryable(f"the server failed while answering: {_error_text(event['error'])}")
    return event


def _message(body: bytes) -> str:
    text = body.decode(errors="replace")
    try:
        found = json.loads(text)
    except ValueError:
        return text[:300].strip() or "(nothing)"
    if isinstance(found, dict):
        found = found.get("error") or found.get("detail") or found.get("message") or found
    return _error_text(found)


def _error_text(error: Any) -> str:
    if isinstance(error, dict) and "message" in error:
        return str(error["message"])
    return str(error)[:500]


def _says_too_long(message: str) -> bool:
    """Servers agree on the status of a prompt that does not fit, but not on its words."""
    low = message.lower()
    return any(
        words in low
        for words in ("context length", "context size", "context window", "max_model_len")
    ) or ("longer than" in low and "maximum" in low)


def _seconds(header: str | None) -> float | None:
    try:
        return float(header) if header else None
    except ValueError:  # a date; our own pause will do
        return None
