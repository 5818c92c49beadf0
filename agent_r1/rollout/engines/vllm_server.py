"""One vLLM server over its token-in, token-out and reinforcement learning routes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import msgspec

from agent_r1.errors import ContextExceeded, EngineError
from agent_r1.types import Completion, Finish, SamplingParams, Versions

INITIAL_VERSION = -1
"""Of a server that was never sent any weights."""


class Unreachable(EngineError):
    """The server is gone, or gives no answer in time. Another may do what it was asked."""


class ServerFailed(Unreachable):
    """The server answers that its engine is dead."""


class VLLMServer:
    """The routes of ``vllm serve --enable-scale-out`` with ``VLLM_SERVER_DEV_MODE=1``.

    ``timeout_s`` is the longest wait for one completion. Cancelling a request closes its
    connection, on which vLLM aborts it.
    """

    def __init__(self, url: str, *, timeout_s: float) -> None:
        self.url = url.rstrip("/")
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        timeout = httpx.Timeout(timeout_s, connect=10.0, pool=None)
        self._client = httpx.AsyncClient(base_url=self.url, limits=limits, timeout=timeout)
        self._timeout_s = timeout_s

    async def generate(
        self, prompt_ids: Sequence[int], params: SamplingParams, salt: str
    ) -> Completion:
        """One completion. ``salt``: only what was computed with the same one is reused."""
        body = {
            "token_ids": list(prompt_ids),
            "sampling_params": _sampling(params),
            "cache_salt": salt,
        }
        answer = await self.post("/inference/v1/generate", body)
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
            answer = await self._client.get("/weight_info", timeout=10.0)
            label = answer.raise_for_status().json()["weight_version"]
        except (httpx.HTTPError, ValueError, KeyError) as error:
            raise Unreachable(f"{self.url} does not answer ({error!r})") from error
        return int(label) if label.lstrip("-").isdigit() else INITIAL_VERSION

    async def alive(self) -> bool:
        """Whether the server says that it is well."""
        try:
            return (await self._client.get("/health", timeout=5.0)).status_code == 200
        except httpx.HTTPError:
            return False

    async def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        content = b"" if body is None else msgspec.json.encode(body)
        try:
            answer = await self._client.post(
                path, content=content, headers={"Content-Type": "application/json"}
            )
        except httpx.TimeoutException as error:
            raise Unreachable(
                f"{self.url} gave no answer within {self._timeout_s:g} s to {path}"
            ) from error
        except httpx.HTTPError as error:
            raise Unreachable(f"{self.url} is not reachable: {error!r}") from error
        if answer.status_code >= 500:
            raise ServerFailed(f"{self.url}{path} failed: {answer.text[:500]}")
        if answer.status_code >= 400:
            if "maximum context length" in answer.text or "max_model_len" in answer.text:
                raise ContextExceeded(f"{self.url}: {answer.text[:500]}")
            raise EngineError(
                f"{self.url}{path} refused the request ({answer.status_code}): {answer.text[:500]}"
            )
        return msgspec.json.decode(answer.content) if answer.content else None

    async def close(self) -> None:
        await self._client.aclose()


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
