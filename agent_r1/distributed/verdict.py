"""From facts to findings: whether a machine or a cluster is fit for a run, with remedies.

Pure functions of records, so that clusters of any size can be judged in a test.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from agent_r1.distributed.facts import Facts
from agent_r1.sandbox.isolation import LEVELS

State = Literal["ok", "note", "fail"]

_CLOCK_NOTE: Final = 0.1
_CLOCK_FAIL: Final = 5.0
_LITTLE_DISK: Final = 10 << 30
_LITTLE_SHM: Final = 1 << 30
_BUSY_MIB: Final = 1024
_MUST_AGREE: Final = ("agent_r1", "torch", "transformers", "ray", "python")
_MAY_DIFFER: Final = ("vllm", "tokenizers", "numpy")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. ``node`` is empty for what concerns all of them."""

    node: str
    check: str
    state: State
    found: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the run needs. ``cards`` is ``None`` where a CPU does as well."""

    nodes: int = 1
    cards: int | None = None
    isolation: str | None = "strict"


@dataclass(frozen=True, slots=True)
class Observed:
    """A cluster: the facts of its nodes, and what only shows between them.

    ``clocks`` are (seconds ahead of this machine, uncertainty) by node; ``unseen`` names, by
    folder, pairs of nodes (reader, writer) of which one does not see what the other wrote;
    ``unreached`` pairs (from, to) without a connection; ``lost`` what nodes failed with.
    """

    facts: Sequence[Facts]
    clocks: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    unseen: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)
    unreached: Sequence[tuple[str, str]] = ()
    lost: Mapping[str, str] = field(default_factory=dict)


def judge(observed: Observed, wanted: Wanted) -> list[Finding]:
    """Every finding: those of each node first, then those about all of them together."""
    findings = [
        finding
        for facts in observed.facts
        for check in (_cards, _links, _memory, _folders, _sandbox, _model, _ports)
        for finding in check(facts, wanted)
    ]
    findings += [
        Finding(node, "node", "fail", error, "install the same environment on every node")
        for node, error in observed.lost.items()
    ]
    for check_all in (_nodes, _versions, _models_agree, _clocks, _same_folders, _reach):
        findings += check_all(observed, wanted)
    return findings


def _cards(facts: Facts, wanted: Wanted) -> Iterator[Finding]:
    names = Counter(f"{card.name} ({card.memory / 1024:.0f} GiB)" for card in facts.cards)
    found = ", ".join(f"{count} x {name}" for name, count in names.items()) or "none"
    drivers = sorted({card.driver for card in facts.cards})
    if drivers:
        found += f", driver {', '.join(drivers)}"
    if facts.torch_cards < len(facts.cards):
        remedy = "install a torch built for this driver, and look at CUDA_VISIBLE_DEVICES"
        text = f"{found}; torch sees {facts.torch_cards}"
        yield Finding(facts.node, "cards", "fail" if wanted.cards else "note", text, remedy)
    elif wanted.cards is not None and facts.torch_cards < wanted.cards:
        remedy = f"the run wants {wanted.cards} a node: lower trainer.n_gpus_per_node"
        yield Finding(facts.node, "cards", "fail", found, remedy)
    else:
        yield Finding(facts.node, "cards", "ok", found)
    busy = [f"{number}: {c.used} MiB" for number, c in enumerate(facts.cards) if c.used > _BUSY_MIB]
    if busy:
        remedy = "end what runs there; nvidia-smi lists it"
        yield Finding(facts.node, "cards in use", "note", ", ".join(busy), remedy)
    if len(names) > 1:
        remedy = "ranks wait for the slowest card and are sized for the smallest"
        yield Finding(facts.node, "cards differ", "note", found, remedy)


def _links(facts: Facts, wanted: Wanted) -> Iterator[Finding]:
    if len(facts.cards) > 1:
        slowest = facts.links[0] if facts.links else "unknown"
        nvlink = slowest.startswith("NV")
        remedy = "" if nvlink else "without NVLink between all cards sharding costs more time"
        text = ", ".join(facts.links) or "unknown"
        yield Finding(facts.node, "links", "ok" if nvlink else "note", text, remedy)
    down = [port for port in facts.fabric if " ACTIVE " not in port]
    if facts.fabric:
        remedy = "a port that is down makes NCCL fall back to slower ones" if down else ""
        state: State = "note" if down else "ok"
        yield Finding(facts.node, "fabric", state, "; ".join(facts.fabric), remedy)
    elif wanted.nodes > 1 and facts.cards:
        remedy = "between nodes NCCL uses TCP: keep the ranks of a run on one machine"
        yield Finding(facts.node, "fabric", "note", "no InfiniBand or RoCE adapter", remedy)


def _memory(facts: Facts, wanted: Wanted) -> Iterator[Finding]:
    text = f"{facts.cores} processors, {_gib(facts.memory)}, /dev/shm {_gib(facts.shm)} free"
    little = facts.shm < _LITTLE_SHM
    remedy = "give the container more: --shm-size=16g, or a memory volume" if little else ""
    yield Finding(facts.node, "machine", "note" if little else "ok", text, remedy)


def _folders(facts: Facts, wanted: Wanted) -> Iterator[Finding]:
    for folder in facts.folders:
        check = f"folder {folder.path}"
        if folder.error:
            remedy = "mount it on every node, writable for the user of the run"
            yield Finding(facts.node, check, "fail", folder.error, remedy)
        else:
            little = folder.free_bytes < _LITTLE_DISK
            remedy = "checkpoints need room: see agent-r1 memory for their size" if little else ""
            text = f"writable, {_gib(folder.free_bytes)} free"
            yield Finding(facts.node, check, "note" if little else "ok", text, remedy)


def _sandbox(facts: Facts, wanted: Wanted) -> Iterator[Finding]:
    if wanted.isolation is None:
        return
    got = facts.isolation
    if got and LEVELS.index(got) <= LEVELS.index(wanted.isolation):
        yield Finding(facts.node, "sandbox", "ok", got)
        return
    text = f"{got or 'none'}, wanted {wanted.isolation}"
    yield Finding(facts.node, "sandbox", "fail", text, facts.isolation_refused)


def _model(facts: Facts, wanted: Wanted) -> Iterator[Finding]:
    if facts.model_error:
        remedy = "put the model folder on every node, or on a shared one"
        yield Finding(facts.node, "tokenizer", "fail", facts.model_error, remedy)
    elif facts.model_hash:
        yield Finding(facts.node, "tokenizer", "ok", facts.model_hash)


def _ports(facts: Facts, wanted: Wanted) -> Iterator[Finding]:
    if facts.taken_ports:
        text = f"taken: {', '.join(map(str, facts.taken_ports))}"
        yield Finding(facts.node, "ports", "fail", text, "end what listens there, or choose others")


def _nodes(observed: Observed, wanted: Wanted) -> Iterator[Finding]:
    there = len(observed.facts)
    if there < wanted.nodes:
        remedy = "start the others (ray start --address=...), or lower trainer.nnodes"
        text = f"{there} of the {wanted.nodes} that the run wants"
        yield Finding("", "nodes", "fail", text, remedy)
    elif there > 1:
        yield Finding("", "nodes", "ok", str(there))


def _versions(observed: Observed, wanted: Wanted) -> Iterator[Finding]:
    for package in (*_MUST_AGREE, *_MAY_DIFFER):
        where: dict[str, list[str]] = {}
        for facts in observed.facts:
            where.setdefault(facts.versions.get(package, "absent"), []).append(facts.node)
        if len(where) == 1:
            version = next(iter(where))
            if version != "absent":
                yield Finding("", package, "ok", version)
        elif where:
            text = "; ".join(f"{version} on {_some(nodes)}" for version, nodes in where.items())
            state: State = "fail" if package in _MUST_AGREE else "note"
            yield Finding("", package, state, text, "install the same environment on every node")


def _models_agree(observed: Observed, wanted: Wanted) -> Iterator[Finding]:
    where: dict[str, list[str]] = {}
    for facts in observed.facts:
        if facts.model_hash:
            where.setdefault(facts.model_hash, []).append(facts.node)
    if len(where) > 1:
        text = "; ".join(f"{digest} on {_some(nodes)}" for digest, nodes in where.items())
        remedy = "ids would mean different text: copy one model folder to every node"
        yield Finding("", "tokenizers", "fail", text, remedy)


def _clocks(observed: Observed, wanted: Wanted) -> Iterator[Finding]:
    if not observed.clocks:
        return
    certain = {n: max(0.0, abs(ahead) - err) for n, (ahead, err) in observed.clocks.items()}
    node = max(certain, key=lambda name: certain[name])
    worst = certain[node]
    state: State = "fail" if worst > _CLOCK_FAIL else "note" if worst > _CLOCK_NOTE else "ok"
    text = f"at most {max(abs(a) for a, _ in observed.clocks.values()):.3f} s apart"
    if state != "ok":
        text = f"{node} is {observed.clocks[node][0]:+.2f} s off"
    yield Finding("", "clocks", state, text, "" if state == "ok" else "run an NTP client there")


def _same_folders(observed: Observed, wanted: Wanted) -> Iterator[Finding]:
    for folder, pairs in observed.unseen.items():
        if pairs:
            text = "; ".join(f"{r} does not see what {w} wrote" for r, w in pairs[:3])
            remedy = "it is a folder of each node's own: mount one file system there on all nodes"
            yield Finding("", f"folder {folder}", "fail", text, remedy)
        else:
            yield Finding("", f"folder {folder}", "ok", "the same on all nodes")


def _reach(observed: Observed, wanted: Wanted) -> Iterator[Finding]:
    if observed.unreached:
        text = "; ".join(f"{a} cannot connect to {b}" for a, b in observed.unreached[:3])
        remedy = "open the ports 1024 to 65535 between the nodes: torch and NCCL choose freely"
        yield Finding("", "network", "fail", text, remedy)
    elif len(observed.facts) > 1:
        yield Finding("", "network", "ok", "every node reaches every other")


def _some(nodes: Sequence[str]) -> str:
    shown = ", ".join(nodes[:3])
    return shown if len(nodes) <= 3 else f"{shown} and {len(nodes) - 3} more"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
