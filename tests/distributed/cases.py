"""One update after the other, by one process and by several ranks, on the same trajectories.

Functions here run on every rank of a crew. Rank 0 has both workers and compares them.
"""

import copy
import dataclasses
import random
import tempfile
from pathlib import Path

import torch

from agent_r1.config.policy import ActorConfig, CriticConfig, OptimConfig
from agent_r1.config.schema import AlgorithmConfig
from agent_r1.config.task import DistillationConfig
from agent_r1.distributed.shard import shard_model
from agent_r1.distributed.worker import RankWorker, ShardedWorker
from agent_r1.models.load import enable_packing, prepare_training
from agent_r1.models.lora import add_lora
from agent_r1.models.value import ValueModel
from agent_r1.testing import make_trajectory, tiny_model
from agent_r1.trainer.checkpoint import CheckpointStore, load_state, whole_state
from agent_r1.trainer.clock import Clock
from agent_r1.trainer.credit import CreditAssigner
from agent_r1.trainer.learner import Learner
from agent_r1.trainer.teacher import LocalTeacher
from agent_r1.trainer.worker import LocalWorker
from agent_r1.types import Reward

TIMEOUT_S = 60.0


@dataclasses.dataclass(frozen=True)
class Case:
    """What differs from the plain case. ``lengths`` are those of the groups, in trajectories."""

    algorithm: dict = dataclasses.field(default_factory=dict)
    actor: dict = dataclasses.field(default_factory=dict)
    optim: dict = dataclasses.field(default_factory=dict)
    distillation: dict = dataclasses.field(default_factory=dict)
    tied: bool = True
    groups: tuple = (3, 3, 3, 3)
    edited: bool = False
    lora: bool = False
    experts: int = 0
    fsdp_size: int = -1
    checkpointing: bool = False
    offload: bool = False
    reshard: bool = True
    sync: bool = True
    seed: int = 0


def words(draw, low, high):
    return "".join(chr(draw.randint(97, 122)) for _ in range(draw.randint(low, high)))


def trajectories(case, step=0):
    """Siblings of one prompt each with a tool's answer; every third history is edited."""
    draw = random.Random(100 * case.seed + step)
    made = []
    for group, size in enumerate(case.groups):
        prompt = words(draw, 4, 12)
        for index in range(size):
            turns = [(words(draw, 1, 12), words(draw, 1, 6)), words(draw, 1, 9)]
            one = make_trajectory(turns, prompt=prompt)
            per_turn = (draw.random(), draw.random())
            one = dataclasses.replace(
                one, group_id=str(group), index=index, reward=Reward(draw.random(), {}, per_turn)
            )
            if case.edited and index % 3 == 0:
                second = dataclasses.replace(one.turns[1], prompt_ids=(65, 66, 67))
                one = dataclasses.replace(one, turns=(one.turns[0], second))
            made.append(one)
    return made


def network(case, seed):
    model = tiny_model(seed=seed, tie_word_embeddings=case.tied, experts=case.experts)
    enable_packing(model)
    prepare_training(model, gradient_checkpointing=case.checkpointing)
    return model


def parts(case):
    """Policy, reference, critic and the worker's settings, the same on every rank."""
    torch.manual_seed(case.seed)
    policy = network(case, 0)
    if case.lora:
        add_lora(policy, rank=4, alpha=8.0)
    optim = {"lr": 1e-3, "eps": 1e-3, **case.optim}
    settings = {
        "total_steps": 20,
        "loss_divisor": 64,
        "critic_config": CriticConfig(optim=OptimConfig(**optim)),
    }
    actor = ActorConfig(
        optim=OptimConfig(**optim), **{"ppo_max_token_len_per_gpu": 80, **case.actor}
    )
    reference = None if case.lora else network(case, 1)
    return policy, reference, ValueModel(network(case, 2)), actor, settings


def one_process(case):
    policy, reference, critic, actor, settings = parts(case)
    return LocalWorker(policy, actor, reference=reference, critic=critic, **settings)


def of_ranks(case, ranks):
    """This rank's worker, and on rank 0 what leads all of them."""
    policy, reference, critic, actor, settings = parts(case)
    shell = copy.deepcopy(policy) if ranks.rank == 0 else None
    for module in (policy, reference, critic):
        if module is not None:
            shard_model(
                module,
                ranks.mesh(case.fsdp_size),
                offload=case.offload,
                reshard_after_forward=case.reshard,
                reduce_every_pass=case.sync,
            )
    own = RankWorker(policy, actor, reference=reference, critic=critic, ranks=ranks, **settings)
    return own, None if shell is None else ShardedWorker(own, shell, None, TIMEOUT_S)


def together(ranks, case, lead, *arguments):
    """``lead(case, sharded worker, *arguments)`` on rank 0, which the others serve."""
    own, whole = of_ranks(case, ranks)
    if whole is None:
        own.serve(TIMEOUT_S)
        return None
    try:
        return lead(case, whole, *arguments)
    finally:
        ranks.let_go()


def learner(case, worker):
    settings = DistillationConfig(teacher="a folder", **case.distillation)
    asked = case.algorithm.get("adv_estimator") == "opd" or case.distillation
    algorithm = {"adv_estimator": "grpo", **case.algorithm}
    if asked:
        algorithm["distillation"] = settings
    credit = CreditAssigner(AlgorithmConfig(**algorithm))
    teacher = LocalTeacher(network(case, 3), temperature=1.0, max_tokens=100)
    told = teacher if asked else None
    use_kl_loss = case.actor.get("use_kl_loss", False)
    return Learner(worker, credit, 0, use_kl_loss, 0, told, settings)


def train(case, worker, steps=3, first=0):
    """The metrics of every step."""
    student = learner(case, worker)
    found = []
    for step in range(first, first + steps):
        greedy = {str(group): 0.5 for group in range(len(case.groups))}
        found.append(student.learn(trajectories(case, step), greedy, step, Clock()).metrics)
    return found


def largest_difference(first, second):
    """Of two trees of tensors and numbers with the same names."""
    if isinstance(first, torch.Tensor):
        return float((first.double() - second.double()).abs().max()) if first.numel() else 0.0
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        return max((largest_difference(first[k], second[k]) for k in first), default=0.0)
    if isinstance(first, list | tuple):
        assert len(first) == len(second)
        return max(map(largest_difference, first, second), default=0.0)
    if isinstance(first, int | float) and not isinstance(first, bool):
        return 0.0 if first == second else abs(first - second)
    assert first == second
    return 0.0


def checkpoint(worker, folder):
    """A whole checkpoint of a worker of any kind, in a new folder; returns it."""
    store = CheckpointStore(Path(folder))
    step = len(store.list()) + 1
    draft = store.begin(step)
    snapshot = worker.snapshot(draft)
    state = {"worker": snapshot.state}
    if snapshot.written is None:
        return store.finish(draft, state, lambda path: None)
    store.finish_later(draft, state, snapshot.written, None)
    store.wait()
    return store.latest()


def state_of(worker):
    """What a worker writes into a checkpoint, as one process reads it."""
    with tempfile.TemporaryDirectory() as folder:
        path = checkpoint(worker, folder)
        return whole_state(load_state(path), path)["worker"]


def compare(case, whole):
    """Largest difference of log-probabilities, metrics, weights and moments after 3 steps."""
    alone = one_process(case)
    metrics = (train(case, whole), train(case, alone))
    for step in metrics[0]:
        assert step.pop("perf/token_imbalance") >= 0.0
    batch_of = learner(case, alone)
    from agent_r1.data.batch import Batch

    batch = Batch.from_trajectories(trajectories(case, 9), batch_of.pad_id)
    states = state_of(whole), alone.state_dict()
    return {
        "logprobs": largest_difference(whole.logprobs(batch), alone.logprobs(batch)),
        "reference": largest_difference(whole.ref_logprobs(batch), alone.ref_logprobs(batch)),
        "metrics": largest_difference(*metrics),
        "weights": largest_difference(states[0]["actor"]["module"], states[1]["actor"]["module"]),
        "critic": largest_difference(states[0]["critic"]["module"], states[1]["critic"]["module"]),
        "optimizer": largest_difference(
            states[0]["actor"]["optimizers"], states[1]["actor"]["optimizers"]
        ),
        "moved": largest_difference(
            states[1]["actor"]["module"], one_process(case).state_dict()["actor"]["module"]
        ),
    }


def compared(ranks, case):
    """To be run by a crew."""
    return together(ranks, case, compare)
