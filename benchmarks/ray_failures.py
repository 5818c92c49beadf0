"""Runs over a Ray cluster of several nodes whose nodes and processes are killed at random moments.

    python benchmarks/ray_failures.py --runs 10 --out docs/results/ray_failures.json

A cluster of four nodes on this machine: a head without processors, two that a run of two ranks
takes, one to spare. One run is left alone. In each of the others, up to twice and at random
moments after the ranks were started, one of these is killed with SIGKILL: a rank, a rank's
supervisor (the Ray actor), a whole node (its raylet; a new one joins soon after). Afterwards every
run must have trained on the same trajectories, token
for token, in the same steps, none twice, and end with the same weights to the last bit.
"""

import argparse
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from safetensors.torch import load_file

from agent_r1.monitor.records import read_records
from agent_r1.recipes.tiny import build_tiny_model

SMALL = {"object_store_memory": 100 << 20, "include_dashboard": False}
RUN_SECONDS = 600
KILLS = 2
SETTINGS = """
data: {train_files: "generator:arithmetic", val_files: "generator:arithmetic",
       train_batch_size: 4, train_max_samples: 64, val_max_samples: 4,
       max_prompt_length: 32, max_response_length: 48}
actor_rollout_ref:
  actor: {ppo_mini_batch_size: 4, optim: {lr: 1.0e-3}}
  rollout: {n: 4}
reward: {name: arithmetic}
tool: {env: retool, tools: python, max_turns: 2}
trainer: {device: cpu, nnodes: 2, n_gpus_per_node: 1, save_freq: 1, max_ckpt_to_keep: 2,
          export_policy: end, test_freq: -1, logger: [], max_restarts: 50}
"""


@dataclass
class Disturbed:
    """One run: what was done to it, and what became of it."""

    kills: list[str] = field(default_factory=list)
    restarts: list[str] = field(default_factory=list)
    seconds: float = 0.0
    exitcode: int | None = None
    trained: int = 0
    twice: int = 0
    same_trajectories: bool = False
    same_weights: bool = False

    @property
    def good(self) -> bool:
        return not self.exitcode and not self.twice and self.same_trajectories and self.same_weights


class Field:
    """The cluster, and what can be killed in it."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, **SMALL}, shutdown_at_exit=False
        )
        for _ in range(3):
            self.add()
        self.cluster.wait_for_nodes()

    def add(self) -> None:
        self.cluster.add_node(num_cpus=1, **SMALL)

    def kill(self, kind: str, config: Path, chance: random.Random) -> bool:
        """Whether there was one of this kind to kill."""
        ranks = of_run(config)
        if not ranks:
            return False
        victim = chance.choice(ranks)
        if kind == "rank":
            os.kill(victim, signal.SIGKILL)
        elif kind == "supervisor":
            os.kill(parent(victim), signal.SIGKILL)
        else:
            raylet = parent(parent(victim))
            nodes = {node.all_processes["raylet"][0].process.pid: node for node in self.nodes()}
            if raylet not in nodes:
                return False
            self.cluster.remove_node(nodes[raylet], allow_graceful=False)
            self.add()
        return True

    def nodes(self) -> list:
        return list(self.cluster.worker_nodes)


def parent(pid: int) -> int:
    return int(re.search(r"PPid:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])


def of_run(config: Path) -> list[int]:
    """The processes that are ranks of a run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
            environ = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        named = str(config) in words and "agent_r1.distributed.tied" not in words
        if named and any(entry.startswith(b"RANK=") for entry in environ):
            found.append(int(folder.name))
    return found


def steps_of(config: Path) -> int:
    metrics = config.with_suffix("") / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.exists() else 0


def run(field_: Field, config: Path, seed: int | None, every_s: float) -> Disturbed:
    """Train to the end; with a seed, with kills on the way."""
    done, chance = Disturbed(), random.Random(seed)
    log = config.with_suffix(".log")
    words = [sys.executable, "-m", "agent_r1", "train", "--config", str(config)]
    words.append(f"ray.address={field_.cluster.address}")
    began = time.monotonic()
    with log.open("w") as out:
        driver = subprocess.Popen(words, stdout=out, stderr=subprocess.STDOUT)
        try:
            known: list[int] = []
            moment, due = float("inf"), 0
            while driver.poll() is None and time.monotonic() - began < RUN_SECONDS:
                time.sleep(0.1)
                if seed is None or len(done.kills) >= KILLS:
                    continue
                if not known and (known := of_run(config)):
                    moment = time.monotonic() + chance.uniform(0.0, every_s)
                    due = steps_of(config) + chance.choice([0, 1, 2, 4])
                if time.monotonic() < moment or steps_of(config) < due:
                    continue
                kind = chance.choice(["rank", "supervisor", "node"])
                try:
                    killed = field_.kill(kind, config, chance)
                except OSError:  # it ended by itself meanwhile
                    killed = False
                if killed:
                    after = time.monotonic() - began
                    done.kills.append(f"{kind} after {after:.1f} s, {steps_of(config)} steps done")
                known, moment = [], float("inf")
        finally:
            driver.kill() if driver.poll() is None else None
    done.exitcode, done.seconds = driver.wait(), time.monotonic() - began
    said = log.read_text()
    done.restarts = re.findall(r"^(rank .*); restart \d+ of", said, re.MULTILINE)
    return done


KEPT = ("prompt_ids", "token_ids", "logprobs", "versions", "finish", "observation_ids")
"""What a digest is made of: everything of a turn that is no wall-clock reading."""


def trajectories(folder: Path) -> tuple[dict[str, str], int]:
    """By step, group and member, a digest of what was trained on; and how many came twice."""
    found: dict[str, str] = {}
    twice = 0
    for record in read_records(folder):
        if record["split"] != "train":
            continue
        name = f"{record['step']}/{record['group_id']}/{record['index']}"
        turns = [[turn[key] for key in KEPT] for turn in record["turns"]]
        said = json.dumps([turns, record["reward"], record["loss_mask"]])
        twice += name in found
        found[name] = hashlib.sha256(said.encode()).hexdigest()
    return found, twice


def weights(folder: Path):
    (newest,) = sorted((folder / "checkpoints").glob("step-*/policy/model.safetensors"))[-1:]
    return load_file(newest)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument(
        "--every",
        type=float,
        default=10.0,
        help="most seconds from start to kill; steps are waited for on top",
    )
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    field_ = Field()
    try:
        good = measure(asked, field_)
    finally:
        field_.cluster.shutdown()
    print(f"{good} of {asked.runs} disturbed runs ended like the one that was left alone")


def measure(asked: argparse.Namespace, field_: Field) -> int:
    """How many of the disturbed runs were as they should be."""
    results = []
    with tempfile.TemporaryDirectory() as root:
        model = build_tiny_model(Path(root) / "model")
        for number in range(asked.runs + 1):
            folder = Path(root) / f"run-{number}"
            config = Path(root) / f"run-{number}.yaml"
            own = {"actor_rollout_ref": {"model": {"path": str(model)}}}
            own["trainer"] = {
                "default_local_dir": str(folder),
                "total_training_steps": asked.steps,
            }
            config.write_text(merged(own))
            done = run(field_, config, number or None, asked.every)
            if done.exitcode:
                print(config.with_suffix(".log").read_text()[-3000:])
            else:
                (found, done.twice), end = trajectories(folder), weights(folder)
                if number == 0:
                    whole, whole_end = found, end
                done.trained = len(found)
                done.same_trajectories = found == whole
                done.same_weights = end.keys() == whole_end.keys() and all(
                    bool((end[name] == whole_end[name]).all()) for name in end
                )
            results.append(asdict(done) | {"good": done.good})
            print(number, json.dumps(results[-1]), flush=True)
            if asked.out:
                asked.out.write_text(json.dumps(results, indent=1) + "\n")
            if number == 0 and done.exitcode:
                raise SystemExit(1)
    return sum(result["good"] for result in results[1:])


def merged(own: dict) -> str:
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.merge(OmegaConf.create(SETTINGS), own))


if __name__ == "__main__":
    main()
