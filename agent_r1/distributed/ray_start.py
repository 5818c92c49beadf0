"""Start the processes of a run on the machines of a Ray cluster, and watch them.

Ray reserves the machines (one placement group for the ranks, every machine of its own, one for
engines), carries commands there and ends everything with the driver. What runs there is what
``torchrun`` would start: the same command with the same environment variables.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from agent_r1.config.schema import Config
from agent_r1.distributed.actors import actor_in, end_all, environment
from agent_r1.distributed.cluster import joined, living_nodes, require_ray
from agent_r1.distributed.launch import FINAL, Lost, Start, ended
from agent_r1.distributed.placement import Needs, Share, columns, fit, needs_of, shortage
from agent_r1.distributed.process import Report
from agent_r1.distributed.services import Service, engines_of, sandboxes_of
from agent_r1.errors import ClusterError
from agent_r1.rollout.engines.vllm_weights import FOLDER_VARIABLE
from agent_r1.under_way import under_way

_POLL_S: Final = 1.0
_ORIGIN_S: Final = 3.0
"""After the first loss: the others may tell of their lost connection sooner than its cause."""
_RESERVE_S: Final = 30.0
_ANSWER_S: Final = 120.0
"""Until an actor must have been made: its machine may be gone by then."""


@contextmanager
def on_cluster(config: Config, say: Callable[[str], None]) -> Iterator[Start]:
    """A :data:`Start` that places the run on the cluster of ``ray.address``, or on a new one.

    Raises :class:`ClusterError` where the cluster is too small, before anything is started.
    """
    require_ray()
    os.environ.setdefault(config.sandbox.token_env, secrets.token_urlsafe(24))
    address = config.ray.address or ("auto" if os.environ.get("RAY_ADDRESS") else "local")
    with joined(address), _terminable():
        yield _Cluster(config, say).run


@contextmanager
def _terminable() -> Iterator[None]:
    """A scheduler's SIGTERM means what Ctrl-C means."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _gently(act: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C runs ``act``; the second one interrupts."""
    kinds = (signal.SIGINT, signal.SIGTERM)

    def restore() -> None:
        for kind in kinds:
            signal.signal(kind, signal.default_int_handler)

    def hear(*_: object) -> None:
        restore()
        act()

    for kind in kinds:
        signal.signal(kind, hear)
    try:
        yield
    finally:
        restore()


class _Cluster:
    def __init__(self, config: Config, say: Callable[[str], None]) -> None:
        from agent_r1.trainer.build import pick_device

        self._config = config
        self._say = say
        self._ray = require_ray()
        nodes = living_nodes()
        given = "cuda" if any(node.cards for node in nodes) else "cpu"
        device = config.trainer.device
        self._device = pick_device("cpu") if device == "cpu" else given
        self._needs: Needs = needs_of(config, self._device)
        self._first = True
        run_dir = config.trainer.run_dir.absolute()
        self._weights = run_dir.with_name(f"{run_dir.name}.weights")
        """For engines on other machines: beside the run folder, which all machines see."""

    def run(self, command: Sequence[str], count: int) -> None:
        """Place and start everything, and return when all ranks are done."""
        with under_way("waiting for the machines of the run"):
            groups = self._reserve()
        crew = _Crew(self._ray, self._say)
        services: list[Service] = []
        try:
            sandboxes = sandboxes_of(self._config, self._say)
            services += sandboxes
            engines = engines_of(self._config, self._device, groups[1], self._say)
            services += engines
            self._tell(self._place_ranks(crew, groups[0]), services)
            for service in services:
                service.start()
            self._start_ranks(crew, [*command, *_addresses(sandboxes, engines)])
            crew.watch(services)
        finally:
            crew.end()
            for service in services:
                service.end()
            shutil.rmtree(self._weights, ignore_errors=True)
            for group in filter(None, groups):
                self._ray.util.remove_placement_group(group)

    def _reserve(self) -> tuple[Any, Any]:
        """The placement group of the ranks, and that of engines where they are apart.

        What does not fit is refused at once; after a loss machines may come back, and Ray may
        still count those that are gone.
        """
        deadline = time.monotonic() + (0.0 if self._first else self._config.ray.patience_s)
        self._first = False
        while True:
            found = fit(self._needs, nodes := living_nodes())
            if not found.missing and (groups := self._reserved()):
                return groups
            if time.monotonic() < deadline:
                time.sleep(1.0)
            elif found.missing:
                raise ClusterError(
                    f"the cluster is too small for this run:\n{shortage(found, nodes)}\nStart Ray "
                    "on more machines ('ray start --address=HEAD:6379'), or lower trainer.nnodes, "
                    "trainer.n_gpus_per_node or actor_rollout_ref.rollout.vllm.replicas"
                )
            else:
                raise ClusterError(
                    f"the cluster is large enough, but others use it: {_RESERVE_S:g} s were not "
                    "enough to reserve what the run needs. 'ray status' shows what is in use"
                )

    def _reserved(self) -> tuple[Any, Any] | None:
        util = self._ray.util
        ranks = util.placement_group(_bundles(self._needs.trainers), "STRICT_SPREAD")
        engines = None
        if self._needs.engines:
            engines = util.placement_group(_bundles(self._needs.engines), "PACK")
        groups = [group for group in (ranks, engines) if group is not None]
        if all(group.wait(_RESERVE_S) for group in groups):
            return ranks, engines
        for group in groups:
            util.remove_placement_group(group)
        return None

    def _place_ranks(self, crew: _Crew, group: Any) -> list[tuple[str, ...]]:
        """Make the ranks' actors; rows of the table, one a rank."""
        per_node, cards = self._needs.per_node, int(self._device == "cuda")
        for rank in range(per_node * len(self._needs.trainers)):
            crew.add(actor_in(group, rank // per_node, cores=1, cards=cards))
        names = {node.id: node.name for node in living_nodes()}
        takes = "1 GPU, 1 CPU" if cards else "1 CPU"
        rows: list[tuple[str, ...]] = []
        for rank, (host, node_id) in enumerate(crew.ask("where")):
            what = "shards of the networks"
            if rank == 0:
                what += ", training loop, tools"
                what += "" if self._needs.engines else ", sampling"
            rows.append((f"rank {rank}", names.get(node_id, host), takes, what))
        return rows

    def _tell(self, rows: list[tuple[str, ...]], services: Sequence[Service]) -> None:
        """The placement as a table, before anything is started."""
        found = [(s.name, s.node.name, s.takes, s.url) for s in services]
        self._say(f"{len(rows)} ranks on {self._config.trainer.nnodes} machines")
        for line in columns([("", "machine", "takes", "does"), *rows, *found]):
            self._say(line)

    def _start_ranks(self, crew: _Crew, command: Sequence[str]) -> None:
        """Start on every actor what torchrun would start there."""
        if self._needs.engines:
            self._weights.mkdir(parents=True, exist_ok=True)
        shared = {FOLDER_VARIABLE: str(self._weights)} if self._needs.engines else {}
        per_node = self._needs.per_node
        places = crew.ask("place")
        host, port, _ = places[0]
        environs = []
        for rank in range(len(places)):
            first = rank - rank % per_node
            cards = [card for place in places[first : first + per_node] for card in place[2]]
            environs.append(
                shared
                | environment()
                | {
                    "RANK": str(rank),
                    "WORLD_SIZE": str(len(places)),
                    "LOCAL_RANK": str(rank - first),
                    "LOCAL_WORLD_SIZE": str(per_node),
                    "MASTER_ADDR": host,
                    "MASTER_PORT": str(port),
                    "CUDA_VISIBLE_DEVICES": ",".join(cards),
                }
            )
        crew.start([sys.executable, *command], environs)


def _bundles(shares: Sequence[Share]) -> list[dict[str, float]]:
    return [{"CPU": s.cores, **({"GPU": s.cards} if s.cards else {})} for s in shares]


def _addresses(sandboxes: Sequence[Service], engines: Sequence[Service]) -> Iterator[str]:
    """Settings by which ranks find the services."""
    if sandboxes:
        yield "sandbox.executor=http"
        yield f"sandbox.endpoints={json.dumps([service.url for service in sandboxes])}"
    if engines:
        urls = json.dumps([service.url for service in engines])
        yield f"actor_rollout_ref.rollout.endpoints={urls}"


class _Crew:
    """The ranks of one attempt, in their order."""

    def __init__(self, ray: Any, say: Callable[[str], None]) -> None:
        self._ray = ray
        self._say = say
        self._actors: list[Any] = []

    def add(self, actor: Any) -> None:
        self._actors.append(actor)

    def ask(self, method: str) -> list[Any]:
        """The answer of every rank."""
        asked = [getattr(actor, method).remote() for actor in self._actors]
        return [self._get(rank, reference) for rank, reference in enumerate(asked)]

    def start(self, command: Sequence[str], environs: Sequence[Mapping[str, str]]) -> None:
        asked = [
            actor.start.remote(command, environ, os.getcwd())
            for actor, environ in zip(self._actors, environs, strict=True)
        ]
        for rank, reference in enumerate(asked):
            self._get(rank, reference)

    def watch(self, services: Sequence[Service]) -> None:
        """Print what ranks say until all have ended well. Raises :class:`Lost` for the cause."""
        asked = {actor.poll.remote(_POLL_S): rank for rank, actor in enumerate(self._actors)}
        losses: list[Lost] = []
        deadline = float("inf")
        with _gently(self._interrupt):
            while asked and time.monotonic() < deadline:
                ready, _ = self._ray.wait(list(asked), timeout=_POLL_S)
                for reference in ready:
                    rank = asked.pop(reference)
                    try:
                        if self._goes_on(rank, reference):
                            asked[self._actors[rank].poll.remote(_POLL_S)] = rank
                    except Lost as lost:
                        losses.append(lost)
                for service in services:
                    service.look_after()
                if losses and deadline == float("inf"):
                    final = losses[0].exitcode in FINAL
                    deadline = time.monotonic() + (0.0 if final else _ORIGIN_S)
        if losses:
            raise min(losses, key=_secondary)

    def _goes_on(self, rank: int, reference: Any) -> bool:
        report: Report = self._get(rank, reference)
        head = f"[rank {rank}] " if rank else ""
        for line in report.lines:
            self._say(f"{head}{line}")
        if report.exitcode:
            raise Lost(f"rank {rank}", ended(report.exitcode), report.exitcode)
        return report.exitcode is None

    def _interrupt(self) -> None:
        self._say("interrupted: the update under way is finished and saved (again: end at once)")
        for actor in self._actors:
            actor.signal.remote(int(signal.SIGINT))

    def _get(self, rank: int, reference: Any) -> Any:
        try:
            return self._ray.get(reference, timeout=_ANSWER_S)
        except self._ray.exceptions.RayError as error:
            said = str(error).strip().splitlines()[0]
            how = f"was lost with its machine or supervisor ({said})"
            raise Lost(f"rank {rank}", how, None) from None

    def end(self) -> None:
        end_all(self._actors)


def _secondary(lost: Lost) -> bool:
    """Whether a rank ended by itself, which it also does when it finds another one gone."""
    return lost.exitcode is not None and lost.exitcode > 0
