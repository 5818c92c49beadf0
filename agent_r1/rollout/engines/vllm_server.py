"""One vLLM server over its token-in, token-out and reinforcement learning routes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from agent_r1.errors import ContextExceeded, EngineError
from agent_r1.http1 import Address, Pool, Response, TransportError
from agent_r1.types import Completion, Finish, SamplingParams, Versions

T = TypeVar("T")

INITIAL_VERSION = -1
"""Of a server that was never sent any weights."""
UNKNOWN_VERSION = -2
"""Of a server to which a transfer did not come to its end."""
_LOOK_S = 10.0
_IDLE_S = 2.0
"""Idle connections are closed after this time. vLLM closes them after 5 s, by default, and what
is sent while it does is lost."""


class Unreachable(EngineError):
    """The server cannot be asked, or broke off. Another may do what it was asked."""


class Wedged(Unreachable):
    """The server took a request and computes nothing: it will not recover by itself."""


class ServerFailed(Unreachable):
    """The server answers that its engine is dead."""


class VLLMServer:
    """The routes of ``vllm serve --enable-scale-out`` with ``VLLM_SERVER_DEV_MODE=1``.

    ``timeout_s`` is how long the server may compute nothing while a completion is asked for,
    and how long it may take over anything else. A full queue is no reason to give up, and a
    refused connection is noticed at once: ``connect_s`` only bounds how long a busy machine, this
    one among them, may take to open one.
    Cancelling a request closes its connection, on which vLLM aborts it.
    """

    def __init__(self, url: str, *, timeout_s: float, connect_s: float = 60.0) -> None:
        address = Address.parse(url, "vLLM server")
        self.url = address.url
        self._pool = Pool(address, connect_seconds=connect_s, idle_seconds=_IDLE_S)
        self._timeout_s = timeout_s
        self._updating = False

    async def generate(
        self, prompt_ids: Sequence[int], params: SamplingParams, salt: str
    ) -> Completion:
        """One completion. ``salt``: only what was computed with the same one is reused."""
        body = {
            "token_ids": list(prompt_ids),
            "sampling_params": _sampling(params),
            "cache_salt": salt,
        }
        answer = await self._while_it_computes(self._complete(msgspec.json.encode(body)))
        try:
            choice = _ANSWER.decode(answer).choices[0]
        except (msgspec.DecodeError, IndexError) as error:
            raise EngineError(f"{self.url} answers with no completion: {error}") from error
        if choice.finish_reason not in ("stop", "length"):
            raise Unreachable(f"{self.url} ended a request with {choice.finish_reason!r}")
        return _completion(choice)

    async def update(
        self, infos: Sequence[Mapping[str, Any]], version: int, *, keep_cache: bool
    ) -> None:
        """Weights by the transport whose update infos these are; requests wait meanwhile.

        Without ``keep_cache`` the keys and values of requests in flight are computed anew.
        """
        self._updating = True
        try:
            await self._update(infos, version, keep_cache)
        finally:
            self._updating = False

    async def _update(
        self, infos: Sequence[Mapping[str, Any]], version: int, keep_cache: bool
    ) -> None:
        await self.post("/pause?mode=keep&clear_cache=false")
        try:
            await self.post("/start_weight_update")
            for info in infos:
                await self.post("/update_weights", {"update_info": info})
            await self.post("/finish_weight_update", {"weight_version": str(version)})
            if not keep_cache:
                await self.forget_cache()
        except EngineError:
            await self.post("/abort_requests", {})  # none may go on with half of the weights
            raise
        finally:
            await self.post("/resume")

    async def forget_cache(self) -> None:
        answer = await self.post("/reset_prefix_cache?reset_running_requests=true")
        if not answer["success"]:
            raise EngineError(f"{self.url} does not forget its cache; set rollout.keep_cache=true")

    async def prepare_updates(self) -> None:
        """Once, before the first update."""
        await self.post("/init_weight_transfer_engine", {"init_info": {}})

    async def sleep(self, level: int) -> None:
        await self.post(f"/sleep?level={level}")

    async def wake(self) -> None:
        await self.post("/wake_up")

    async def version(self) -> int:
        """The version that is served; :data:`INITIAL_VERSION` before any was sent."""
        try:
            answer = await self._pool.get("/weight_info", _LOOK_S)
            label = msgspec.json.decode(self._require_200(answer))["weight_version"]
        except (TransportError, msgspec.DecodeError, KeyError, TypeError) as error:
            raise Unreachable(f"{self.url} does not answer ({error!r})") from error
        return int(label) if label.lstrip("-").isdigit() else INITIAL_VERSION

    async def alive(self) -> bool:
        """Whether the server says that it is well."""
        try:
            return (await self._pool.get("/health", _LOOK_S)).status == 200
        except TransportError:
            return False

    async def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Have the server do something other than a completion, once and no second time."""
        content = b"" if body is None else msgspec.json.encode(body)
        answer = self._require_success(path, await self._send(path, content, self._timeout_s))
        return msgspec.json.decode(answer) if answer else None

    async def close(self) -> None:
        self._pool.close()

    async def _complete(self, content: bytes) -> bytes:
        """A completion. Asked for again, by a new connection, if an old one turns out closed."""
        path = "/inference/v1/generate"
        try:
            answer = await self._pool.post(path, content, None)
        except TransportError as error:
            if not error.stale:
                raise Unreachable(f"{self.url} is not reachable: {error}") from error
            answer = await self._send(path, content, None)
        return self._require_success(path, answer)

    async def _send(self, path: str, content: bytes, timeout_s: float | None) -> Response:
        """By a connection of its own."""
        try:
            return await self._pool.post(path, content, timeout_s, fresh=True)
        except TransportError as error:
            if error.timed_out:
                raise Wedged(f"{self.url}: {error} to {path}") from error
            raise Unreachable(f"{self.url} is not reachable: {error}") from error

    async def _while_it_computes(self, request: Coroutine[Any, Any, T]) -> T:
        """The answer, however long it takes, as long as the server computes tokens."""
        task = asyncio.ensure_future(request)
        pause_s = self._timeout_s / 2
        before: float | None = None
        try:
            while not (await asyncio.wait({task}, timeout=pause_s))[0]:
                now: float | None = await self._computed()
                if self._updating:  # it is not to compute anything
                    now = None
                elif before is not None and now is not None and now <= before:
                    raise Wedged(f"{self.url} computed nothing for {pause_s:g} s or longer")
                before = now
            return task.result()
        finally:
            task.cancel()

    async def _computed(self) -> float:
        """Tokens that the server has computed since it started, prompts among them."""
        try:
            answer = await self._pool.get("/metrics", max(_LOOK_S, self._timeout_s / 2))
        except TransportError as error:
            kind = Wedged if error.timed_out else Unreachable
            raise kind(f"{self.url} does not say what it computes: {error}") from error
        text = self._require_200(answer).decode(errors="replace")
        return sum(float(number) for number in _TOKENS.findall(text))

    def _require_200(self, answer: Response) -> bytes:
        if answer.status != 200:
            raise Unreachable(f"{self.url} answers {answer.status}")
        return answer.body

    def _require_success(self, path: str, answer: Response) -> bytes:
        if answer.status < 400:
            return answer.body
        text = answer.body.decode(errors="replace")
        if answer.status >= 500:
            raise ServerFailed(f"{self.url}{path} failed: {text[:500]}")
        if "maximum context length" in text or "max_model_len" in text:
            raise ContextExceeded(f"{self.url}: {text[:500]}")
        raise EngineError(f"{self.url}{path} refused the request ({answer.status}): {text[:500]}")


_TOKENS = re.compile(r"^vllm:(?:generation|prompt)_tokens_total(?:\{.*\})? (\S+)$", re.MULTILINE)


def _sampling(params: SamplingParams) -> dict[str, Any]:
    """VLLM's parameters. Special tokens are shown, since stop strings may be such."""
    return {
        "max_tokens": params.max_new_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "stop": list(params.stop),
        "stop_token_ids": list(params.stop_token_ids),
        "seed": params.seed,
        "logprobs": 0,
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
    }


class _Logprob(msgspec.Struct, gc=False):
    logprob: float


class _Logprobs(msgspec.Struct, gc=False):
    content: tuple[_Logprob, ...]


class _Span(msgspec.Struct, gc=False):
    start: int
    version: str


class _Choice(msgspec.Struct, gc=False):
    token_ids: tuple[int, ...]
    finish_reason: str | None
    stop_reason: int | str | None
    logprobs: _Logprobs | None = None
    weight_versions: tuple[_Span, ...] | None = None


class _Answer(msgspec.Struct, gc=False):
    """What is read of an answer. Decoded without types it is thousands of small objects."""

    choices: tuple[_Choice, ...]


_ANSWER = msgspec.json.Decoder(_Answer)


def _completion(choice: _Choice) -> Completion:
    logprobs = () if choice.logprobs is None else choice.logprobs.content
    reason = choice.stop_reason
    if choice.finish_reason == "length":
        finish, stop = Finish.LENGTH, None
    elif isinstance(reason, str):
        finish, stop = Finish.STOP, reason
    else:
        finish, stop = Finish.EOS, None
    return Completion(
        choice.token_ids,
        tuple(entry.logprob for entry in logprobs),
        finish,
        _versions(choice.weight_versions or ()),
        stop,
    )


def _versions(spans: Sequence[_Span]) -> Versions:
    found = [(span.start, span.version) for span in spans]
    numbers = [(at, int(v) if v.lstrip("-").isdigit() else INITIAL_VERSION) for at, v in found]
    return tuple(numbers) or ((0, INITIAL_VERSION),)
