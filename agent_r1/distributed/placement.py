"""What a run takes of a cluster, and whether the cluster has it. Nothing here starts anything."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from agent_r1.config.schema import Config
from agent_r1.distributed.cluster import Node


@dataclass(frozen=True, slots=True)
class Share:
    """What one part of a run takes of one machine; ``name`` says which part."""

    name: str
    cores: int
    cards: int

    def fits(self, cores: float, cards: float) -> bool:
        return cores >= self.cores and cards >= self.cards

    def __str__(self) -> str:
        cards = f"{self.cards} GPUs, " if self.cards else ""
        return f"{cards}{self.cores} CPUs"


@dataclass(frozen=True, slots=True)
class Needs:
    """Shares of a run. Each of ``trainers`` has a machine of its own; ``engines`` may share."""

    trainers: tuple[Share, ...]
    engines: tuple[Share, ...]
    per_node: int
    """Ranks of each trainer's machine."""


def needs_of(config: Config, device: str) -> Needs:
    """Shares of a run on ``device`` (``cuda`` or ``cpu``): a processor a rank, and a GPU."""
    trainer, rollout = config.trainer, config.actor_rollout_ref.rollout
    count, on_cards = trainer.n_gpus_per_node, device == "cuda"
    trainers = tuple(
        Share(f"ranks {node * count} to {(node + 1) * count - 1}", count, count * on_cards)
        for node in range(trainer.nnodes)
    )
    engines: tuple[Share, ...] = ()
    if trainer.layout == "apart":
        cards = rollout.vllm.tensor_parallel_size
        engines = tuple(
            Share(f"engine {number}", 1, cards * on_cards)
            for number in range(rollout.vllm.replicas)
        )
    return Needs(trainers, engines, count)


@dataclass(frozen=True, slots=True)
class Fit:
    """Which node could take which shares, and the shares for which there is none."""

    taken: dict[str, list[Share]]
    missing: list[Share]


def fit(needs: Needs, nodes: Sequence[Node]) -> Fit:
    """Give every share a node: trainers the largest ones, engines what is left, fullest first."""
    left = {node.name: (node.cores, node.cards) for node in nodes}
    taken: dict[str, list[Share]] = {node.name: [] for node in nodes}
    missing: list[Share] = []

    def take(share: Share, candidates: Iterable[str]) -> None:
        able = [name for name in candidates if share.fits(*left[name])]
        if not able:
            missing.append(share)
            return
        best = min(able, key=lambda name: (left[name][1], left[name][0]))
        cores, cards = left[best]
        left[best] = (cores - share.cores, cards - share.cards)
        taken[best].append(share)

    for share in needs.trainers:
        take(share, [name for name, shares in taken.items() if not shares])
    for share in needs.engines:
        take(share, list(left))
    return Fit(taken, missing)


def shortage(found: Fit, nodes: Sequence[Node]) -> str:
    """A table of what each node has and would take, and of what finds no room."""
    rows = [
        (node.name, f"{node.cards:g} GPUs", f"{node.cores:g} CPUs", _names(found.taken[node.name]))
        for node in nodes
    ]
    rows += [
        ("missing", f"{share.cards} GPUs", f"{share.cores} CPUs", f"for {share.name}")
        for share in found.missing
    ]
    return "\n".join(columns(rows))


def _names(shares: Sequence[Share]) -> str:
    return ", ".join(share.name for share in shares) or "nothing"


def columns(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Rows as aligned text; every row has the same number of cells."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield f"  {'  '.join(cells).rstrip()}"
