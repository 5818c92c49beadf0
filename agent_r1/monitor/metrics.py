"""What a batch of trajectories says about the policy, in the names the field uses."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean, pstdev

from agent_r1.types import Outcome, Trajectory


def succeeded(trajectory: Trajectory) -> bool:
    """The task was solved: the reward's part ``accuracy`` if it has one, else its sign."""
    reward = trajectory.reward
    if reward is None:
        return False
    return reward.parts["accuracy"] > 0 if "accuracy" in reward.parts else reward.value > 0


def source_of(trajectory: Trajectory) -> str:
    """The data source of its task, behind the environment's name where a run has several."""
    task = trajectory.task
    return f"{task.env}/{task.data_source}" if task.env else task.data_source


def rollout_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Metrics of the trajectories sampled in one step; empty for none.

    Rewards and success are those of scored trajectories; those that failed or could not be
    scored are counted apart (``rollout/failed``, ``rollout/unscored``), not as rewards of 0.
    Lengths count the tokens that the model wrote, never a tool's.
    """
    if not trajectories:
        return {}
    whole = [t for t in trajectories if not t.outcome.failed]
    scored = [t for t in whole if t.reward is not None]
    metrics = {
        "rollout/trajectories": float(len(trajectories)),
        "rollout/failed": 1 - len(whole) / len(trajectories),
        "rollout/unscored": _share(t.reward is None for t in whole) if whole else 0.0,
    }
    metrics |= _outcome_shares(trajectories)
    if whole:
        metrics |= _length_metrics(whole) | _tool_metrics(whole) | _time_metrics(whole)
    if scored:
        metrics |= _reward_metrics(scored)
    return metrics | _environment_metrics(trajectories)


def _environment_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """``env/<name>/...`` for each environment of a run with several."""
    by_env: dict[str, list[Trajectory]] = defaultdict(list)
    for trajectory in trajectories:
        by_env[trajectory.task.env].append(trajectory)
    by_env.pop("", None)
    metrics: dict[str, float] = {}
    for name, members in by_env.items():
        whole = [t for t in members if not t.outcome.failed]
        scored = [t.reward.value for t in whole if t.reward is not None]
        metrics[f"env/{name}/share"] = len(members) / len(trajectories)
        metrics[f"env/{name}/failed"] = 1 - len(whole) / len(members)
        if whole:
            metrics[f"env/{name}/num_turns/mean"] = fmean(len(t.turns) for t in whole)
            metrics[f"env/{name}/response_length/mean"] = fmean(t.response_length for t in whole)
        if scored:
            metrics[f"env/{name}/reward/mean"] = fmean(scored)
            metrics[f"env/{name}/success"] = _share(
                succeeded(t) for t in whole if t.reward is not None
            )
    return metrics


def _outcome_shares(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    counts = Counter(t.outcome for t in trajectories)
    return {f"outcome/{o.value}": counts[o] / len(trajectories) for o in Outcome}


def _reward_metrics(scored: Sequence[Trajectory]) -> dict[str, float]:
    rewards = [t.reward for t in scored if t.reward is not None]
    values = [reward.value for reward in rewards]
    metrics = {"rollout/success": _share(map(succeeded, scored))}
    metrics |= _spread("critic/rewards", values)
    metrics["critic/rewards/std"] = pstdev(values)
    for name in sorted({name for reward in rewards for name in reward.parts}):
        having = [reward.parts[name] for reward in rewards if name in reward.parts]
        metrics[f"reward/{name}/mean"] = fmean(having)
    groups: dict[str, set[float]] = defaultdict(set)
    for trajectory, value in zip(scored, values, strict=True):
        groups[trajectory.group_id].add(value)
    metrics["rollout/uniform_groups"] = _share(len(seen) == 1 for seen in groups.values())
    return metrics


def _length_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    with_turns = [t for t in trajectories if t.turns]
    metrics = _spread("response_length", [t.response_length for t in trajectories])
    metrics["response_length/clip_ratio"] = _share(
        t.outcome is Outcome.LENGTH for t in trajectories
    )
    metrics |= _spread("num_turns", [len(t.turns) for t in trajectories])
    if with_turns:
        prompts = [len(t.turns[0].prompt_ids) for t in with_turns]
        tools = [sum(len(turn.observation_ids) for turn in t.turns) for t in with_turns]
        metrics |= _spread("prompt_length", prompts)
        metrics["observation_length/mean"] = fmean(tools)
    return metrics


def _tool_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Shares are of trajectories; ``tool/success`` is of calls and absent without any."""
    calls = [call for t in trajectories for call in t.tool_calls]
    metrics = {
        "rollout/tool_call_share": _share(bool(t.tool_calls) for t in trajectories),
        "tool/calls/mean": len(calls) / len(trajectories),
    }
    if calls:
        metrics["tool/success"] = _share(call.success for call in calls)
        metrics["tool/seconds/mean"] = fmean(call.seconds for call in calls)
        metrics["tool/seconds/max"] = max(call.seconds for call in calls)
    return metrics


def _time_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    return _spread("rollout/seconds", [t.seconds for t in trajectories])


def _spread(name: str, values: Sequence[float]) -> dict[str, float]:
    return {
        f"{name}/mean": fmean(values),
        f"{name}/max": float(max(values)),
        f"{name}/min": float(min(values)),
    }


def _share(truths: Iterable[bool]) -> float:
    listed = list(truths)
    return sum(listed) / len(listed)
