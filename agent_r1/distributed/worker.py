"""The policy worker over several ranks.

Rank 0 runs the training loop and holds :class:`ShardedWorker`, whose every method tells the
other ranks to run the same method of their :class:`RankWorker`, and runs it too. The others
only :meth:`~RankWorker.serve`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from agent_r1.data.batch import Batch
from agent_r1.distributed.ranks import Ranks, watched
from agent_r1.distributed.shard import reshard, whole_parameters
from agent_r1.distributed.state import gathered, map_tensors, scattered
from agent_r1.models.divergence import TeacherView
from agent_r1.models.load import save_model
from agent_r1.models.lora import has_lora, merged_state
from agent_r1.models.value import Values
from agent_r1.trainer.worker import LocalWorker


class RankWorker(LocalWorker):
    """One rank's share of the work, on networks that are sharded over all of them.

    Every method is collective: all ranks call it with the same arguments.
    """

    def __init__(self, *args: Any, ranks: Ranks, **options: Any) -> None:
        super().__init__(*args, peers=ranks, **options)
        self.ranks = ranks

    def perform(self, method: str, arguments: tuple[Any, ...]) -> Any:
        """Run a method and leave no gathered weights behind."""
        try:
            return getattr(self, method)(*arguments)
        finally:
            for module in (self._actor.module, self._reference):
                reshard(module)
            if self._critic is not None:
                reshard(self._critic.module)

    def serve(self, timeout_s: float) -> None:
        """Do what rank 0 says until it says that it is done."""
        while (command := self.ranks.hear()) is not None:
            method, arguments = command
            with watched(timeout_s):
                self.perform(method, arguments)

    def update_policy(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """As of one process, and how unevenly tokens fell on the ranks."""
        self.ranks.imbalance()
        metrics = super().update_policy(*arguments, **options)
        found = self.ranks.imbalance()
        return metrics if found is None else metrics | {"perf/token_imbalance": found}

    def state_dict(self) -> dict[str, Any]:
        """That of one process: everything gathered, on the CPU."""
        state: dict[str, Any] = map_tensors(super().state_dict(), gathered)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take this rank's part of a state that any number of ranks wrote."""
        parts: dict[str, Any] = dict(state)
        for name, trainable in (("actor", self._actor), ("critic", self._critic)):
            if trainable is not None:
                parts[name] = scattered(parts[name], trainable.module, trainable.parameters)
        super().load_state_dict(parts)

    def whole_policy(self) -> dict[str, Tensor] | None:
        """Every parameter of the policy on rank 0, ``None`` elsewhere."""
        keep = self.ranks.rank == 0
        found = dict(whole_parameters(self._actor.module, keep))
        return found if keep else None


class ShardedWorker:
    """A ``PolicyWorker`` whose networks are spread over ranks; lives on rank 0.

    ``shell`` is a plain model of the policy's shape on rank 0: an engine of this process is
    built on it, and exports are written from it. ``timeout_s`` bounds each method.
    """

    def __init__(self, own: RankWorker, shell: nn.Module, tokenizer: Any, timeout_s: float) -> None:
        self._own = own
        self._shell = shell
        self._tokenizer = tokenizer
        self._timeout_s = timeout_s
        self._lock = Lock()

    @property
    def policy(self) -> nn.Module:
        """A module of the policy's shape, for an engine that is then given its weights."""
        return self._shell

    @property
    def weights(self) -> GatheredWeights:
        return GatheredWeights(self)

    def logprobs(self, batch: Batch) -> Tensor:
        found: Tensor = self._together("logprobs", batch)
        return found

    def ref_logprobs(self, batch: Batch) -> Tensor:
        found: Tensor = self._together("ref_logprobs", batch)
        return found

    def values(self, batch: Batch) -> Values:
        found: Values = self._together("values", batch)
        return found

    def update_policy(
        self,
        batch: Batch,
        old_logprobs: Tensor | None,
        advantages: Tensor,
        ref_logprobs: Tensor | None = None,
        weights: Tensor | None = None,
        teacher: TeacherView | None = None,
    ) -> dict[str, float]:
        found: dict[str, float] = self._together(
            "update_policy", batch, old_logprobs, advantages, ref_logprobs, weights, teacher
        )
        return found

    def update_critic(self, batch: Batch, returns: Tensor, old_values: Tensor) -> dict[str, float]:
        found: dict[str, float] = self._together("update_critic", batch, returns, old_values)
        return found

    def whole_policy(self) -> dict[str, Tensor]:
        """Every parameter of the policy, by name."""
        found: dict[str, Tensor] = self._together("whole_policy")
        return found

    def filled_shell(self) -> nn.Module:
        """The plain model with the weights as they are now."""
        with torch.no_grad():
            for name, tensor in self.whole_policy().items():
                self._shell.get_parameter(name).copy_(tensor)
        return self._shell

    def export(self, path: Path) -> None:
        """Write the policy and its tokenizer as one model folder."""
        save_model(self.filled_shell(), self._tokenizer, path)

    def state_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = self._together("state_dict")
        return found

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._together("load_state_dict", state)

    def _together(self, method: str, *arguments: Any) -> Any:
        with self._lock, watched(self._timeout_s), self._own.ranks.exchange():
            self._own.ranks.tell((method, arguments))
            return self._own.perform(method, arguments)


class GatheredWeights:
    """The weights of a sharded policy, gathered whenever they are asked for.

    Implements :class:`agent_r1.rollout.engine.WeightSource`.
    """

    def __init__(self, worker: ShardedWorker) -> None:
        self._worker = worker

    def parameters(self) -> Iterable[tuple[str, Tensor]]:
        return self._worker.whole_policy().items()

    def checkpoint(self) -> Iterable[tuple[str, Tensor]]:
        if has_lora(self._worker.policy):
            return merged_state(self._worker.filled_shell()).items()
        return self.parameters()
