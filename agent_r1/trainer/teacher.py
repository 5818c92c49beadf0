"""The teacher of a distillation: what it says of the tokens that the student sampled.

Either the log-probability of each sampled token, or a view of the whole distribution that it
was drawn from (``algorithm.distillation.form``; see :mod:`agent_r1.models.divergence`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import httpx
import torch
from torch import Tensor, nn

from agent_r1.config.task import DistillationConfig
from agent_r1.data.batch import Batch
from agent_r1.errors import ConfigError, EngineError
from agent_r1.models.divergence import TeacherStates, TeacherView, TopTokens, top_tokens
from agent_r1.models.load import load_tokenizer
from agent_r1.models.logprobs import head_of, predictions, scatter, token_logprobs
from agent_r1.trainer.worker import in_micro_batches

T = TypeVar("T")


class Teacher(Protocol):
    """Grades tokens; shares the student's tokenizer."""

    def logprobs(self, batch: Batch) -> Tensor:
        """``[B, T]`` ``log p(token | everything before it)``; 0.0 outside of the loss mask."""

    def view(self, batch: Batch, topk: int | None) -> TeacherView:
        """The distributions of a batch's action tokens.

        Their ``topk`` most probable tokens, or all of each (None).

        Raises:
            ConfigError: this teacher cannot give the latter.
        """


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

    @torch.no_grad()
    def view(self, batch: Batch, topk: int | None) -> TeacherView:
        head = head_of(self._model)
        places: list[tuple[Tensor, ...]] = []
        found: list[tuple[Tensor, ...]] = []
        for rows in batch.micro_batches(self._max_tokens):
            part = batch.select(rows)
            at = predictions(self._model, part.token_ids, part.lengths, mask=part.loss_mask)
            places.append((rows.to(at.rows.device)[at.rows], at.columns))
            if topk is None:
                found.append((at.hidden,))
            else:
                best = top_tokens(at.hidden, head, topk, self._temperature)
                found.append((best.ids, best.logprobs))
        rows, columns = (torch.cat(pieces) for pieces in zip(*places, strict=True))
        values = [
            scatter(torch.cat(pieces), rows, columns, batch.token_ids.shape)
            for pieces in zip(*found, strict=True)
        ]
        return TeacherStates(values[0], head) if topk is None else TopTokens(values[0], values[1])


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
        def read(places: list[Any], ids: Sequence[int]) -> list[float]:
            return [_of(place, token) for place, token in zip(places, ids, strict=True)]

        result = torch.zeros(batch.token_ids.shape)
        for row, found in enumerate(self._ask(batch, 0, read)):
            result[row, 1 : 1 + len(found)] = torch.tensor(found)
        return torch.where(batch.loss_mask.cpu(), result, 0.0)

    def view(self, batch: Batch, topk: int | None) -> TopTokens:
        if topk is None:
            raise ConfigError(
                "algorithm.distillation.form=exact needs the whole distributions of a local "
                "teacher, which a server does not give; set form=topk, or distillation.teacher"
            )

        def read(places: list[Any], _: Sequence[int]) -> list[list[tuple[int, float]]]:
            return [_best(place, topk) for place in places]

        shape = (*batch.token_ids.shape, topk)
        ids, logprobs = torch.zeros(shape, dtype=torch.int32), torch.zeros(shape)
        for row, found in enumerate(self._ask(batch, topk, read)):
            told = torch.tensor(found, dtype=torch.float64).reshape(-1, topk, 2)
            ids[row, 1 : 1 + len(told)] = told[..., 0].int()
            logprobs[row, 1 : 1 + len(told)] = told[..., 1].float()
        return TopTokens(ids, logprobs)

    def _ask(
        self, batch: Batch, most: int, read: Callable[[list[Any], Sequence[int]], T]
    ) -> Iterator[T]:
        """What ``read`` makes of each row's places and tokens, both from the second token on."""
        rows = [
            ids[:length]
            for ids, length in zip(batch.token_ids.tolist(), batch.lengths.tolist(), strict=True)
        ]
        with ThreadPoolExecutor(self._concurrency, "agent-r1-teacher") as pool:
            yield from pool.map(lambda ids: self._ask_row(ids, most, read), rows)

    def _ask_row(
        self, ids: Sequence[int], most: int, read: Callable[[list[Any], Sequence[int]], T]
    ) -> T:
        body = {"model": self._model, "prompt": list(ids), "max_tokens": 1, "prompt_logprobs": most}
        try:
            answer = self._client.post(f"{self._url}/completions", json=body)
            answer.raise_for_status()
            told = answer.json()["choices"][0]["prompt_logprobs"]
            return read(told[1:], ids[1:])
        except (httpx.HTTPError, KeyError, IndexError, TypeError, ValueError) as error:
            raise EngineError(
                f"the teacher at {self._url} gave no log-probabilities of a prompt of {len(ids)} "
                f"tokens: {type(error).__name__}: {error}. It must be a server whose completions "
                f"take token ids and prompt_logprobs, such as vLLM's{_bound(most)}"
            ) from error

    def close(self) -> None:
        self._client.close()


def _of(place: Any, token: int) -> float:
    return float(place[str(token)]["logprob"])


def _bound(most: int) -> str:
    return f" (whose --max-logprobs must be at least {most})" if most else ""


def _best(place: Any, k: int) -> list[tuple[int, float]]:
    """The ``k`` most probable of what a server says of a position, as ``(id, log-probability)``.

    Raises ``ValueError`` where it says less.
    """
    told = sorted(((float(v["logprob"]), int(token)) for token, v in place.items()), reverse=True)
    if len(told) < k:
        raise ValueError(f"{len(told)} tokens at a position where {k} were asked for")
    return [(token, logprob) for logprob, token in told[:k]]


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
