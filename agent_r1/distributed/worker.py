"""The policy worker over several ranks.

Rank 0 runs the training loop and holds :class:`ShardedWorker`, whose every method tells the
other ranks to run the same method of their :class:`RankWorker`, and runs it too. The others
only :meth:`~RankWorker.serve`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

from torch import Tensor, nn

from agent_r1.data.batch import Batch
from agent_r1.distributed.ranks import Ranks, watched
from agent_r1.distributed.shard import reshard, whole_parameters
from agent_r1.distributed.shards import ShardWriter, read_shards
from agent_r1.distributed.state import Places, scattered, split, tied_places
from agent_r1.errors import CheckpointError
from agent_r1.models.divergence import TeacherView
from agent_r1.models.export import HF_FOLDER
from agent_r1.models.load import describe_model, save_model
from agent_r1.models.lora import Adapter, adapters_of, base_weights, has_lora
from agent_r1.models.value import Values
from agent_r1.trainer.checkpoint import (
    POLICY_FOLDER,
    SHARDS_FOLDER,
    Snapshot,
    load_state,
    whole_state,
)
from agent_r1.trainer.seen import Seen
from agent_r1.trainer.trainable import StepResult, Trainable
from agent_r1.trainer.worker import LocalWorker


class RankWorker(LocalWorker):
    """One rank's share of the work, on networks that are sharded over all of them.

    Every method is collective: all ranks call it with the same arguments.
    """

    def __init__(self, *args: Any, ranks: Ranks, **options: Any) -> None:
        super().__init__(*args, peers=ranks, **options)
        self.ranks = ranks
        self.writer = ShardWriter(ranks.files)

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
            with watched(timeout_s, method):
                self.perform(method, arguments)
        with suppress(CheckpointError):  # rank 0 tells of it
            self.writer.wait()

    def update_policy(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """As of one process, and how unevenly tokens fell on the ranks."""
        self.ranks.imbalance()
        metrics = super().update_policy(*arguments, **options)
        found = self.ranks.imbalance()
        return metrics if found is None else metrics | {"perf/token_imbalance": found}

    def _policy_step(self, *arguments: Any) -> StepResult:
        try:
            return super()._policy_step(*arguments)
        finally:
            reshard(self._actor.module)

    def _critic_step(self, critic: Trainable, *arguments: Any) -> StepResult:
        try:
            return super()._critic_step(critic, *arguments)
        finally:
            reshard(critic.module)

    def begin_shards(self, folder: Path) -> Any:
        """Begin to write this rank's tensors; everything else of the state, and their names."""
        same: dict[str, str] = {}
        for role, trainable in self._trained():
            same |= tied_places(role, trainable.module)
        shards: dict[str, Tensor] = {}
        state = split(self.state_dict(), same, shards)
        self.writer.begin(shards, folder)
        return state

    def take(self, checkpoint: Path) -> None:
        """This rank's part of a checkpoint that any number of processes wrote."""
        state = load_state(checkpoint, mapped=True)["worker"]
        places = Places()
        for role, trainable in self._trained():
            part = scattered(state[role], trainable.module, trainable.parameters, places)
            state[role] = part
        if places.rooms:
            read_shards(places.rooms, checkpoint / SHARDS_FOLDER, self.ranks.files)
        self.load_state_dict(state)

    def _trained(self) -> list[tuple[str, Trainable]]:
        networks = (("actor", self._actor), ("critic", self._critic))
        return [(role, network) for role, network in networks if network is not None]

    def trained_policy(self) -> dict[str, Tensor] | None:
        """Every parameter of the policy that is trained on rank 0, ``None`` elsewhere."""
        keep = self.ranks.rank == 0
        found = dict(whole_parameters(self._actor.module, keep))
        return found if keep else None


class ShardedWorker:
    """A ``PolicyWorker`` whose networks are spread over ranks; lives on rank 0.

    ``shell`` is a plain model of the policy's shape on rank 0: an engine of this process is
    built on it, and exports are written from it. What is not trained (the base of adapters)
    never differs from its own. ``timeout_s`` bounds each method.
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

    @property
    def seen(self) -> Seen | None:
        return self._own.seen

    def update_critic(self, batch: Batch, returns: Tensor, old_values: Tensor) -> dict[str, float]:
        found: dict[str, float] = self._together("update_critic", batch, returns, old_values)
        return found

    def trained_policy(self) -> dict[str, Tensor]:
        """Every parameter of the policy that is trained, by name: with adapters those alone."""
        found: dict[str, Tensor] = self._together("trained_policy")
        return found

    def export(self, path: Path) -> None:
        """Write the policy and its tokenizer as one model folder."""
        save_model(self._shell, self._tokenizer, path, self.trained_policy())

    def snapshot(self, draft: Path) -> Snapshot:
        """Every rank begins to write its shards into the draft."""
        state = self._together("begin_shards", draft / SHARDS_FOLDER)
        describe_model(self._shell, self._tokenizer, draft / HF_FOLDER)
        return Snapshot(state, self._own.writer.wait)

    def restore(self, checkpoint: Path, state: Any) -> None:
        """Every rank reads its own part, for which all of them must see the folder."""
        self._together("take", checkpoint)

    def export_from(self, checkpoint: Path) -> None:
        """Merge the shards into the policy's folder; no other rank takes part."""
        kept = load_state(checkpoint)["worker"]["actor"]["module"]
        trained = whole_state(kept, checkpoint)
        save_model(self._shell, self._tokenizer, checkpoint / POLICY_FOLDER, trained)

    def _together(self, method: str, *arguments: Any) -> Any:
        with self._lock, watched(self._timeout_s, method), self._own.ranks.exchange():
            self._own.ranks.tell((method, arguments))
            return self._own.perform(method, arguments)


class GatheredWeights:
    """The weights of a sharded policy; what is trained is gathered whenever it is asked for.

    Implements :class:`agent_r1.rollout.engine.AdapterSource`.
    """

    def __init__(self, worker: ShardedWorker) -> None:
        self._worker = worker

    def parameters(self) -> Iterable[tuple[str, Tensor]]:
        trained = self._worker.trained_policy()
        for name, own in self._worker.policy.named_parameters():
            yield name, trained.get(name, own.detach())

    def checkpoint(self) -> Iterable[tuple[str, Tensor]]:
        adapters = self.adapters()
        if not adapters:
            yield from self.parameters()
            return
        for name, weight in self.base():
            yield name, adapters[name].merged(weight) if name in adapters else weight

    def adapters(self) -> Mapping[str, Adapter]:
        policy = self._worker.policy
        return adapters_of(policy, self._worker.trained_policy()) if has_lora(policy) else {}

    def base(self) -> Iterable[tuple[str, Tensor]]:
        return base_weights(self._worker.policy)
