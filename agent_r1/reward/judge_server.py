"""Requests to the model that judges: one pooled client, bounded, retried, counted."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from agent_r1.errors import RewardError

_AGAIN = frozenset({408, 409, 425, 429})
_LONGEST_PAUSE_S = 30.0


@dataclass(slots=True)
class Usage:
    """What one judgement took."""

    requests: int = 0
    failures: int = 0
    """Requests that were refused, broken off, or answered without a verdict."""
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


def total(used: Iterable[Usage]) -> Usage:
    """What several judgements took together."""
    found = Usage()
    for one in used:
        found.requests += one.requests
        found.failures += one.failures
        found.prompt_tokens += one.prompt_tokens
        found.completion_tokens += one.completion_tokens
    return found


class NoAnswer(RewardError):
    """A request failed in a way that may be over in a moment."""

    def __init__(self, message: str, after_s: float | None = None) -> None:
        super().__init__(message)
        self.after_s = after_s


class JudgeServer:
    """An OpenAI-compatible server. Safe from many threads.

    Args:
        url: its address, with or without ``/v1``.
        model: the model's name there.
        api_key_env: environment variable with the key. Unset: none is sent.
        timeout_s: longest wait for one answer.
        max_concurrency: requests under way at once; others wait for their turn.
        budget_tokens: tokens after which no more requests are made. None: unbounded.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key_env: str = "OPENAI_API_KEY",
        timeout_s: float = 60.0,
        max_concurrency: int = 16,
        budget_tokens: int | None = None,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        url = url.rstrip("/").removesuffix("/chat/completions")
        self.base = url if "/" in url.partition("://")[2] else f"{url}/v1"
        self.model = model
        self._key_env = api_key_env
        self._extra = dict(extra_body or {})
        self._slots = threading.BoundedSemaphore(max_concurrency)
        self._budget, self._spent = budget_tokens, 0
        self._lock = threading.Lock()
        self._client = httpx.Client(timeout=httpx.Timeout(timeout_s, connect=10.0))

    def ask(self, messages: Sequence[Mapping[str, str]], used: Usage, **params: Any) -> str:
        """The text of one answer; what it took is added to ``used``.

        Raises:
            NoAnswer: trying again may help.
            RewardError: it will not.
        """
        self._require_budget()
        body = {"model": self.model, "messages": list(messages), **params, **self._extra}
        body = {name: value for name, value in body.items() if value is not None}
        key = os.environ.get(self._key_env)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        used.requests += 1
        try:
            with self._slots:
                answer = self._client.post(
                    f"{self.base}/chat/completions", json=body, headers=headers
                )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            used.failures += 1
            raise NoAnswer(
                f"the judge at {self.base} did not answer ({type(error).__name__}: {error}); is "
                "reward.kwargs.url right?"
            ) from error
        if answer.status_code != 200:
            used.failures += 1
            raise self._refusal(answer)
        return self._read(answer, used)

    def close(self) -> None:
        """Close the connections. Idempotent."""
        self._client.close()

    def _require_budget(self) -> None:
        with self._lock:
            if self._budget is not None and self._spent >= self._budget:
                raise RewardError(
                    f"the judge's budget of {self._budget} tokens is used up "
                    "(reward.kwargs.budget_tokens)"
                )

    def _read(self, answer: httpx.Response, used: Usage) -> str:
        try:
            found = answer.json()
            text = found["choices"][0]["message"]["content"]
            if not isinstance(text, str):
                raise TypeError(f"content is {text!r:.80}")
        except (ValueError, LookupError, TypeError) as error:
            used.failures += 1
            raise NoAnswer(f"the judge's answer cannot be read: {error}") from error
        usage = found.get("usage") or {}
        used.prompt_tokens += int(usage.get("prompt_tokens") or 0)
        used.completion_tokens += int(usage.get("completion_tokens") or 0)
        with self._lock:
            self._spent += int(usage.get("prompt_tokens") or 0)
            self._spent += int(usage.get("completion_tokens") or 0)
        return text

    def _refusal(self, answer: httpx.Response) -> RewardError:
        said = f"the judge at {self.base} answered {answer.status_code}: {answer.text[:300]}"
        if answer.status_code in _AGAIN or answer.status_code >= 500:
            return NoAnswer(said, _seconds(answer.headers.get("retry-after")))
        if answer.status_code in (401, 403):
            state = "is set" if os.environ.get(self._key_env) else "is not set"
            said += f"; its key is read from {self._key_env}, which {state}"
        return RewardError(said)


def pause(attempt: int, failure: NoAnswer, backoff_s: float) -> None:
    """Wait before another attempt: exponentially, with jitter, or as long as the server asks."""
    wait = backoff_s * 2**attempt * (0.5 + random.random())
    time.sleep(min(max(wait, failure.after_s or 0.0), _LONGEST_PAUSE_S))


def _seconds(header: str | None) -> float | None:
    try:
        return float(header) if header else None
    except ValueError:  # a date; our own pause will do
        return None
