"""The teacher of a distillation: log-probabilities of tokens that the student sampled."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import httpx
import torch
from torch import Tensor, nn

from agent_r1.config.task import DistillationConfig
from agent_r1.data.batch import Batch
from agent_r1.errors import ConfigError, EngineError
from agent_r1.models.load import load_tokenizer
from agent_r1.models.logprobs import token_logprobs
from agent_r1.trainer.worker import in_micro_batches


class Teacher(Protocol):
    """Grades tokens; shares the student's tokenizer."""

    def logprobs(self, batch: Batch) -> Tensor:
        """``[B, T]`` ``log p(token | everything before it)``; 0.0 outside of the loss mask."""


class LocalTeacher:
    """A frozen model of this process.

    ``temperature`` is the student's, so that both distributions are tempered alike.
    ``max_tokens`` bounds one forward pass.
    """

    def __init__(self, model: nn.Module, *, temperature: float, max_tokens: int) -> None:
        self._model = model.eval().requires_grad_(False)
        self._temperature = temperature
        self._max_tokens = max_tokens

    @torch.no_grad()
    def logprobs(self, batch: Batch) -> Tensor:
        def run(part: Batch, _: Tensor) -> Tensor:
            return token_logprobs(
                self._model, part.token_ids, part.lengths, self._temperature, mask=part.loss_mask
            ).logprobs

        device = next(self._model.parameters()).device
        cuts = batch.micro_batches(self._max_tokens)
        return in_micro_batches(batch, run, device=device, cuts=cuts)


class ServerTeacher:
    """A server that returns the log-probabilities of a prompt, as vLLM's completions do.

    ``POST {url}/completions`` with token ids as the prompt and ``prompt_logprobs``.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        token: str | None = None,
        timeout_s: float = 300.0,
        concurrency: int = 16,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._url, self._model, self._concurrency = url.rstrip("/"), model, concurrency
        self._client = httpx.Client(headers=headers, timeout=timeout_s, transport=transport)

    def logprobs(self, batch: Batch) -> Tensor:
        rows = [
            ids[:length]
            for ids, length in zip(batch.token_ids.tolist(), batch.lengths.tolist(), strict=True)
        ]
        result = torch.zeros(batch.token_ids.shape)
        with ThreadPoolExecutor(self._concurrency, "agent-r1-teacher") as pool:
            for row, found in enumerate(pool.map(self._ask, rows)):
                result[row, : len(found)] = torch.tensor(found)
        return torch.where(batch.loss_mask.cpu(), result, 0.0)

    def _ask(self, ids: Sequence[int]) -> list[float]:
        body = {"model": self._model, "prompt": list(ids), "max_tokens": 1, "prompt_logprobs": 0}
        try:
            answer = self._client.post(f"{self._url}/completions", json=body)
            answer.raise_for_status()
            told = answer.json()["choices"][0]["prompt_logprobs"]
            return [
                0.0,
                *(_of(place, token) for place, token in zip(told[1:], ids[1:], strict=True)),
            ]
        except (httpx.HTTPError, KeyError, IndexError, TypeError, ValueError) as error:
            raise EngineError(
                f"the teacher at {self._url} gave no log-probabilities of a prompt of {len(ids)} "
                f"tokens: {type(error).__name__}: {error}. It must be a server whose completions "
                "take token ids and prompt_logprobs, such as vLLM's"
            ) from error

    def close(self) -> None:
        self._client.close()


def _of(place: Any, token: int) -> float:
    return float(place[str(token)]["logprob"])


def require_same_tokens(student: Any, teacher_path: str, *, trust_remote_code: bool) -> None:
    """Both must mean the same by a token id.

    Raises:
        ConfigError: the teacher's tokenizer has another vocabulary.
    """
    teacher = load_tokenizer(teacher_path, trust_remote_code=trust_remote_code)
    mine, theirs = student.get_vocab(), teacher.get_vocab()
    differing = [token for token, number in mine.items() if theirs.get(token) != number]
    if differing:
        raise ConfigError(
            f"the teacher {teacher_path} reads token ids otherwise than the student "
            f"({len(differing)} of {len(mine)} tokens differ, {differing[0]!r} is one); "
            "distillation by tokens needs a teacher of the student's model family"
        )


def server_teacher(settings: DistillationConfig) -> ServerTeacher:
    """The configured server."""
    assert settings.server is not None
    return ServerTeacher(
        settings.server, settings.server_model, token=os.environ.get(settings.token_env)
    )
