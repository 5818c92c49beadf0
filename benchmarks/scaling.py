"""Where the design saturates between 8 and 1,024 GPUs: a discrete simulation of its parts.

    python benchmarks/scaling.py --out docs/results/scaling.json --plot docs/results/scaling.svg

Qwen3-4B, all weights trained, trajectories of several turns with a tool. Every trajectory is
simulated on its own: it waits for the one controller, decodes in the batch of an engine replica
whose step takes longer the fuller it is, runs a program in a sandbox, and goes on. Groups are
admitted by the rule of the trainer (docs/scaling.md). ``MEASURED`` is taken from docs/results;
``ASSUMED`` could not be measured and is named as such wherever the result rests on it.
"""

import argparse
import heapq
import json
import math
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import simpy

MEASURED = {
    "update_tokens_s": 28_406 / 2,  # gpu.md: half of the layers give 28,406 on an H100
    "decode_ms": ((64, 8.2), (256, 18.6)),  # gpu.md: milliseconds a step by sequences
    "program_s": 0.0024,  # sandbox_throughput.md: processor time of a short program
    "heavy_program_s": 0.0144,  # sandbox_throughput.md: sympy
    "request_s": 0.09e-3,  # rollout_scale.md: processor time of the trainer per vLLM request
    "write_bytes_s": 538e6 / 0.19,  # rollout_scale.md: a version written over an older one
    "embedded_step_s": 5.3 / 40_000,  # docs/scaling.md: the controller with scripted engines
}
ASSUMED = {
    "prefill_tokens_s": 3 * MEASURED["update_tokens_s"],  # a forward pass is a third of an update
    "link_bytes_s": 40e9,  # 400 Gbit/s for every GPU
    "shared_bytes_s": 5e9,  # the shared file system, all readers together
    "cores_per_node": 64,
    "weights_bytes": 8e9,
    "slots": 256,
}


@dataclass(frozen=True)
class Case:
    """One cluster and one way to use it."""

    gpus: int
    staleness: int = 1
    prompts: int = 128
    siblings: int = 16
    turns: int = 4
    tokens: float = 500.0
    """Mean of a turn; log-normal with ``spread``, so that few are several times as long."""
    spread: float = 0.8
    share: float = 0.5
    """Of the GPUs that train; the others sample."""
    broadcast: bool = False
    """Weights over the GPUs' links in place of a file on a shared folder."""
    heavy: float = 0.1
    endless: float = 0.005
    """Share of programs that run into a limit of 10 s."""
    steps: int = 5

    @property
    def trainers(self) -> int:
        return max(1, round(self.gpus * self.share))

    @property
    def replicas(self) -> int:
        return max(1, self.gpus - self.trainers)


def decode_s(sequences: int) -> float:
    """Seconds of a decode step: the line through the two measured points, flat below."""
    (few, fast), (many, slow) = MEASURED["decode_ms"]
    return (fast + max(0, sequences - few) * (slow - fast) / (many - few)) / 1000


class Replica:
    """One engine: all of its sequences advance by a token a step; others wait for a slot."""

    def __init__(self, env: simpy.Environment) -> None:
        self.env = env
        self.steps = 0.0
        self.at = 0.0
        self.running: list[tuple[float, int, simpy.Event]] = []
        self.waiting: list[tuple[float, float, simpy.Event]] = []
        self.changed = env.event()
        self.count = 0
        self.pace_s = decode_s(1)
        self.paused = False
        self.prefill_s = 0.0
        """Prompts still to be computed, for which all sequences wait."""
        env.process(self.serve())

    def generate(self, tokens: float, fresh: float = 0.0) -> simpy.Event:
        """Ends when ``fresh`` tokens are computed and ``tokens`` sampled."""
        done = self.env.event()
        self.waiting.append((tokens, fresh, done))
        self._change()
        return done

    def pause(self, on: bool) -> None:
        self._advance()
        self.paused = on
        self._change()

    @property
    def load(self) -> int:
        return len(self.running) + len(self.waiting)

    def _change(self) -> None:
        if not self.changed.triggered:
            self.changed.succeed()

    def _advance(self) -> None:
        if not self.paused:
            passed = self.env.now - self.at
            filled = min(self.prefill_s, passed)
            self.prefill_s -= filled
            self.steps += (passed - filled) / self.pace_s
        self.at = self.env.now

    def serve(self) -> Iterator[simpy.Event]:
        while True:
            self._advance()
            while self.running and self.running[0][0] <= self.steps + 1e-6:
                heapq.heappop(self.running)[2].succeed()
            while self.waiting and len(self.running) < ASSUMED["slots"]:
                tokens, fresh, done = self.waiting.pop(0)
                self.prefill_s += fresh / ASSUMED["prefill_tokens_s"]
                self.count += 1
                heapq.heappush(self.running, (self.steps + tokens, self.count, done))
            self.pace_s = decode_s(max(1, len(self.running)))
            self.changed = self.env.event()
            waits = [self.changed]
            if self.running and not self.paused:
                left = (self.running[0][0] - self.steps) * self.pace_s + self.prefill_s
                waits.append(self.env.timeout(max(left, 1e-7)))
            yield self.env.any_of(waits)


class World:
    """The parts of the design and the trajectories that go through them."""

    def __init__(self, case: Case, seed: int = 0) -> None:
        self.case = case
        self.random = random.Random(seed)
        self.env = simpy.Environment()
        self.controller = simpy.Resource(self.env, 1)
        cores = math.ceil(case.gpus / 8) * ASSUMED["cores_per_node"]
        self.sandbox = simpy.Resource(self.env, cores)
        self.replicas = [Replica(self.env) for _ in range(case.replicas)]
        self.finished = simpy.Store(self.env)
        self.busy = dict.fromkeys(("controller", "sandbox", "update", "transfer", "wait"), 0.0)
        self.ends: list[float] = []
        self.begun = self.trained = 0
        self.admit = self.env.event()

    def held(self, name: str, resource: simpy.Resource, seconds: float) -> Iterator[simpy.Event]:
        with resource.request() as turn:
            yield turn
            yield self.env.timeout(seconds)
        self.busy[name] += seconds / resource.capacity

    def trajectory(self) -> Iterator[simpy.Event]:
        case, chance = self.case, self.random
        replica = min(
            chance.sample(self.replicas, min(2, len(self.replicas))), key=lambda r: r.load
        )
        mu = math.log(case.tokens) - case.spread**2 / 2
        total = 0.0
        for turn in range(case.turns):
            turn_s = MEASURED["embedded_step_s"] + MEASURED["request_s"]
            yield from self.held("controller", self.controller, turn_s)
            tokens = min(4000.0, chance.lognormvariate(mu, case.spread))
            fresh = 400.0 if turn == 0 else 200.0
            yield replica.generate(tokens, fresh)
            total += tokens + fresh
            if turn + 1 < case.turns:
                yield from self.program()
        return total

    def program(self) -> Iterator[simpy.Event]:
        if self.random.random() < self.case.endless:
            yield self.env.timeout(10.0)  # it sleeps or loops on a core that others share
        heavy = self.random.random() < self.case.heavy
        seconds = MEASURED["heavy_program_s" if heavy else "program_s"]
        yield from self.held("sandbox", self.sandbox, seconds)

    def group(self) -> Iterator[simpy.Event]:
        members = [self.env.process(self.trajectory()) for _ in range(self.case.siblings)]
        done = yield self.env.all_of(members)
        yield self.finished.put(sum(done.values()))

    def sampler(self) -> Iterator[simpy.Event]:
        """At version v at most (v + staleness + 1) batches have been begun."""
        case = self.case
        while self.begun < case.steps * case.prompts:
            while self.begun >= (self.trained + case.staleness + 1) * case.prompts:
                self.admit = self.env.event()
                yield self.admit
            self.env.process(self.group())
            self.begun += 1

    def learner(self) -> Iterator[simpy.Event]:
        case = self.case
        for _ in range(case.steps):
            began = self.env.now
            tokens = 0.0
            for _ in range(case.prompts):
                tokens += yield self.finished.get()
            self.busy["wait"] += self.env.now - began
            seconds = update_s(case, tokens)
            yield self.env.timeout(seconds)
            self.busy["update"] += seconds
            seconds = transfer_s(case)
            for replica in self.replicas:
                replica.pause(True)
            yield self.env.timeout(seconds)
            for replica in self.replicas:
                replica.pause(False)
            self.busy["transfer"] += seconds
            self.trained += 1
            self.ends.append(self.env.now)
            if not self.admit.triggered:
                self.admit.succeed()


def update_s(case: Case, tokens: float) -> float:
    """Passes of at most 8,192 tokens a rank; each moves the weights twice and the gradients."""
    per_rank = tokens / case.trainers
    passes = max(1, math.ceil(per_rank / 8192))
    compute = per_rank / passes / MEASURED["update_tokens_s"]
    moved = 4 * ASSUMED["weights_bytes"] if case.trainers > 1 else 0.0
    return passes * max(compute, moved / ASSUMED["link_bytes_s"])


def transfer_s(case: Case) -> float:
    """From the trainer's shards into every replica, which waits meanwhile."""
    size = ASSUMED["weights_bytes"]
    gathered = size / ASSUMED["link_bytes_s"]
    if case.broadcast:
        return 2 * gathered
    nodes = math.ceil(case.replicas / 8)
    speed = MEASURED["write_bytes_s"] if nodes == 1 else ASSUMED["shared_bytes_s"]
    return gathered + size / MEASURED["write_bytes_s"] + nodes * size / speed


def simulate(case: Case) -> dict[str, float]:
    """Trajectories a second of the later steps, and how much of their time each part was busy."""
    world = World(case)
    world.env.process(world.sampler())
    done = world.env.process(world.learner())
    world.env.run(done)
    first = world.ends[0]
    seconds = (world.ends[-1] - first) / (case.steps - 1)
    whole = world.ends[-1]
    return {
        "step_s": seconds,
        "trajectories_s": case.prompts * case.siblings / seconds,
        **{name: value / whole for name, value in world.busy.items()},
    }


def best(case: Case) -> tuple[Case, dict[str, float]]:
    """The share of training GPUs, of three, with which it is fastest."""
    tried = [replace(case, share=share) for share in (0.25, 0.5, 0.75)]
    found = [(one, simulate(one)) for one in tried]
    return max(found, key=lambda pair: pair[1]["trajectories_s"])


def limit(found: dict[str, float]) -> str:
    """What keeps it from being faster: the part that is busiest; else the engines."""
    parts = {name: found[name] for name in ("controller", "sandbox", "update", "transfer")}
    name = max(parts, key=lambda part: parts[part])
    return name if parts[name] > 0.5 else "sampling"


def check() -> list[dict[str, float | str]]:
    """What was measured, beside what the simulation says of the same work."""
    rows: list[dict[str, float | str]] = [
        {
            "what": f"two turns of {n} sequences on an H100, tokens/s (gpu.md)",
            "measured": measured,
            "simulated": n * 256 / two_turns_s(n),
        }
        for n, measured in ((64, 7734.0), (256, 13_242.0))
    ]
    rows.append(
        {
            "what": "40,000 steps of 10,000 trajectories, scripted engines, s (scaling.md)",
            "measured": 5.3,
            "simulated": scripted_s(10_000, 4),
        }
    )
    return rows


def two_turns_s(sequences: int) -> float:
    """Seconds of 128 tokens, 64 of a tool and 128 more, in every sequence at once."""
    env = simpy.Environment()
    replica = Replica(env)

    def one() -> Iterator[simpy.Event]:
        yield replica.generate(128)
        yield replica.generate(128, 64)

    env.run(env.all_of([env.process(one()) for _ in range(sequences)]))
    return float(env.now)


def scripted_s(trajectories: int, turns: int) -> float:
    """Seconds for the controller's own benchmark: answers after 50 to 150 ms."""
    env, chance = simpy.Environment(), random.Random(0)
    controller = simpy.Resource(env)

    def one() -> Iterator[simpy.Event]:
        for _ in range(turns):
            with controller.request() as turn:
                yield turn
                yield env.timeout(MEASURED["embedded_step_s"])
            yield env.timeout(chance.uniform(0.05, 0.15))

    env.run(env.all_of([env.process(one()) for _ in range(trajectories)]))
    return float(env.now)


def sweep(gpus: list[int]) -> list[dict]:
    """Staleness on the design as it is, then with one limit after the other taken away."""
    ways = [
        ("as it is, staleness 0", {"staleness": 0}),
        ("as it is, staleness 1", {"staleness": 1}),
        ("as it is, staleness 2", {"staleness": 2}),
        ("weights broadcast, staleness 1", {"staleness": 1, "broadcast": True}),
        ("and 4 times the batch", {"staleness": 1, "broadcast": True, "prompts": 512}),
    ]
    rows = []
    for name, options in ways:
        for count in gpus:
            case, found = best(Case(count, **options))
            rows.append({"way": name, "limit": limit(found), **asdict(case), **found})
            print(table(rows[-1:]), flush=True)
    return rows


def table(rows: list[dict]) -> str:
    return "\n".join(
        f"| {row['way']} | {row['gpus']:,} | {row['trainers_of']} | {row['trajectories_s']:.1f} "
        f"| {row['step_s']:.0f} | {row['controller']:.0%} | {row['sandbox']:.1%} "
        f"| {row['update']:.0%} | {row['transfer']:.0%} | {row['limit']} |"
        for row in ({**row, "trainers_of": f"{row['share']:.0%}"} for row in rows)
    )


def draw(rows: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.4), layout="constrained")
    marks = iter("ovs^DP")
    for way in dict.fromkeys(row["way"] for row in rows):
        own = [row for row in rows if row["way"] == way]
        axes.plot(
            [row["gpus"] for row in own],
            [row["trajectories_s"] for row in own],
            marker=next(marks),
            markersize=4,
            label=way,
        )
    first = max(row["trajectories_s"] for row in rows if row["gpus"] == rows[0]["gpus"])
    ideal = [row["gpus"] for row in rows if row["way"] == rows[0]["way"]]
    axes.plot(
        ideal, [first * n / ideal[0] for n in ideal], color="0.6", linestyle=":", label="linear"
    )
    axes.set(xscale="log", yscale="log", xlabel="GPUs", ylabel="trajectories a second")
    axes.set_xticks(ideal, [f"{n:,}" for n in ideal])
    axes.minorticks_off()
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 32, 128, 256, 512, 1024])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    asked = parser.parse_args()
    checks = check()
    for row in checks:
        print(f"| {row['what']} | {row['measured']:,.1f} | {row['simulated']:,.1f} |")
    rows = sweep(asked.gpus)
    if asked.out:
        told = {"measured": MEASURED, "assumed": ASSUMED, "checks": checks, "cases": rows}
        asked.out.write_text(json.dumps(told, indent=1) + "\n")
    if asked.plot:
        draw(rows, asked.plot)


if __name__ == "__main__":
    main()
