"""One vLLM server over its token-in, token-out and reinforcement learning routes."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx
import msgspec

from agent_r1.errors import ContextExceeded, EngineError
from agent_r1.types import Completion, Finish, SamplingParams, Versions

T = TypeVar("T")

INITIAL_VERSION = -1
"""Of a server that was never sent any weights."""
UNKNOWN_VERSION = -2
"""Of a server to which a transfer did not come to its end."""
_LOOK_S = 10.0
_SHARE = 16
"""Connections of one client."""
_IDLE_S = 2.0
"""Idle connections are closed after this time. vLLM closes them after 5 s, by default, and what
is sent while it does is lost."""


class Unreachable(EngineError):
    """The server cannot be asked, or broke off. Another may do what it was asked."""


class Wedged(Unreachable):
    """The server took a request and computes nothing: it will not recover by itself."""


class ServerFailed(Unreachable):
    """The server answers that its engine is dead."""


class Connections:
    """Clients for many requests at once, with few connections each.

    A client looks at all of its connections for every request: with hundreds in one, the asking
    process is busy with nothing else.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._trust = ssl.create_default_context()
        self._loads: dict[httpx.AsyncClient, int] = {}

    def client(self, *, reuse: bool) -> httpx.AsyncClient:
        limits = httpx.Limits(
            max_connections=None,
            max_keepalive_connections=None if reuse else 0,
            keepalive_expiry=_IDLE_S,
        )
        return httpx.AsyncClient(base_url=self._url, limits=limits, verify=self._trust)

    @contextmanager
    def one(self) -> Iterator[httpx.AsyncClient]:
        """The client with the fewest requests, a new one if all have their share."""
        client = min(self._loads, key=lambda known: self._loads[known], default=None)
        if client is None or self._loads[client] >= _SHARE:
            client = self.client(reuse=True)
            self._loads[client] = 0
        self._loads[client] += 1
        try:
            yield client
        finally:
            self._loads[client] -= 1

    async def close(self) -> None:
        await asyncio.gather(*(client.aclose() for client in self._loads))


class VLLMServer:
    """The routes of ``vllm serve --enable-scale-out`` with ``VLLM_SERVER_DEV_MODE=1``.

    ``timeout_s`` is how long the server may compute nothing while a completion is asked for,
    and how long it may take over anything else. A full queue is no reason to give up, and a
    refused connection is noticed at once: ``connect_s`` only bounds how long a busy machine, this
    one among them, may take to open one.
    Cancelling a request closes its connection, on which vLLM aborts it.
    """

    def __init__(self, url: str, *, timeout_s: float, connect_s: float = 60.0) -> None:
        self.url = url.rstrip("/")
        self._connections = Connections(self.url)
        self._control = self._connections.client(reuse=False)
        self._timeout_s = timeout_s
        self._connect_s = connect_s
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
        choice = answer["choices"][0]
        if choice["finish_reason"] not in ("stop", "length"):
            raise Unreachable(f"{self.url} ended a request with {choice['finish_reason']!r}")
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
            answer = await self._control.get("/weight_info", timeout=_LOOK_S)
            label = answer.raise_for_status().json()["weight_version"]
        except (httpx.HTTPError, ValueError, KeyError) as error:
            raise Unreachable(f"{self.url} does not answer ({error!r})") from error
        return int(label) if label.lstrip("-").isdigit() else INITIAL_VERSION

    async def alive(self) -> bool:
        """Whether the server says that it is well."""
        try:
            return (await self._control.get("/health", timeout=_LOOK_S)).status_code == 200
        except httpx.HTTPError:
            return False

    async def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Have the server do something other than a completion, once and no second time."""
        content = b"" if body is None else msgspec.json.encode(body)
        try:
            answer = await self._send(self._control, path, content, self._timeout_s)
        except httpx.TransportError as error:
            raise Unreachable(f"{self.url} is not reachable: {error!r}") from error
        return self._content(path, answer)

    async def close(self) -> None:
        await self._control.aclose()
        await self._connections.close()

    async def _complete(self, content: bytes) -> Any:
        """A completion. Asked for again, by a new connection, if an old one turns out closed."""
        path = "/inference/v1/generate"
        try:
            try:
                with self._connections.one() as client:
                    answer = await self._send(client, path, content, None)
            except (httpx.NetworkError, httpx.RemoteProtocolError):
                answer = await self._send(self._control, path, content, None)
        except httpx.TransportError as error:
            raise Unreachable(f"{self.url} is not reachable: {error!r}") from error
        return self._content(path, answer)

    async def _send(
        self, client: httpx.AsyncClient, path: str, content: bytes, timeout_s: float | None
    ) -> httpx.Response:
        headers = {"Content-Type": "application/json"}
        timeout = httpx.Timeout(timeout_s, connect=self._connect_s, pool=None)
        try:
            return await client.post(path, content=content, headers=headers, timeout=timeout)
        except httpx.ConnectTimeout as error:
            raise Unreachable(
                f"{self.url} took no connection within {self._connect_s:g} s"
            ) from error
        except httpx.TimeoutException as error:
            raise Wedged(f"{self.url} gave no answer within {timeout_s:g} s to {path}") from error

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
            timeout = httpx.Timeout(max(_LOOK_S, self._timeout_s / 2), connect=self._connect_s)
            answer = (await self._control.get("/metrics", timeout=timeout)).raise_for_status()
        except httpx.ReadTimeout as error:
            raise Wedged(f"{self.url} does not say what it computes: {error!r}") from error
        except httpx.HTTPError as error:
            raise Unreachable(f"{self.url} does not say what it computes: {error!r}") from error
        return sum(float(number) for number in _TOKENS.findall(answer.text))

    def _content(self, path: str, answer: httpx.Response) -> Any:
        if answer.status_code >= 500:
            raise ServerFailed(f"{self.url}{path} failed: {answer.text[:500]}")
        if answer.status_code >= 400:
            if "maximum context length" in answer.text or "max_model_len" in answer.text:
                raise ContextExceeded(f"{self.url}: {answer.text[:500]}")
            raise EngineError(
                f"{self.url}{path} refused the request ({answer.status_code}): {answer.text[:500]}"
            )
        return msgspec.json.decode(answer.content) if answer.content else None


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


def _completion(choice: Mapping[str, Any]) -> Completion:
    ids = tuple(choice["token_ids"])
    logprobs = tuple(float(entry["logprob"]) for entry in choice["logprobs"]["content"])
    reason = choice["stop_reason"]
    if choice["finish_reason"] == "length":
        finish, stop = Finish.LENGTH, None
    elif isinstance(reason, str):
        finish, stop = Finish.STOP, reason
    else:
        finish, stop = Finish.EOS, None
    return Completion(ids, logprobs, finish, _versions(choice.get("weight_versions")), stop)


def _versions(spans: Sequence[Mapping[str, Any]] | None) -> Versions:
    found = [(int(span["start"]), span["version"]) for span in spans or ()]
    numbers = [(at, int(v) if v.lstrip("-").isdigit() else INITIAL_VERSION) for at, v in found]
    return tuple(numbers) or ((0, INITIAL_VERSION),)
