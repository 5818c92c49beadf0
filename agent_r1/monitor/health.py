"""Signs that a training run goes wrong, read from its metrics alone.

A check is a pure function of the metrics of the steps so far: the trainer's console and any
reader of ``metrics.jsonl`` come to the same findings. Each finding says what was measured,
what it may mean and what to try. The bounds are rules of thumb: a finding
is a reason to look, and never stops a run.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

Metrics = Mapping[str, float]

WINDOW = 5
"""Steps whose median is judged, so that one odd step raises no alarm."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that looks wrong. ``check`` names the check and ``metric`` what it read."""

    check: str
    metric: str
    value: float
    sentence: str


@dataclass(frozen=True, slots=True)
class Check:
    """``is_off`` judges the median of the last steps and that of the first ones.

    ``keys``: the first that exists is read. ``measured`` is formatted with both medians as
    ``now`` and ``first``. Steps in which ``unless`` is above 0 say nothing of it.
    """

    name: str
    keys: tuple[str, ...]
    is_off: Callable[[float, float], bool]
    measured: str
    advice: str
    unless: str = ""


def _above(bound: float) -> Callable[[float, float], bool]:
    return lambda now, first: now > bound


CHECKS = (
    Check(
        "entropy collapse",
        ("actor/entropy",),
        lambda now, first: first > 0.02 and now < 0.1 * first,
        "the entropy fell from {first:.3f} to {now:.3f} nats",
        "Samples hardly differ any more: groups give little signal; try a larger clip_ratio_high,"
        " a smaller learning rate, or a temperature of 1.",
    ),
    Check(
        "clip ratio",
        ("actor/pg_clipfrac",),
        _above(0.3),
        "{now:.0%} of the tokens are clipped",
        "Updates leave the trust region, and most of the batch gives no gradient; try a smaller"
        " learning rate, or fewer epochs over a batch.",
    ),
    Check(
        "KL of a step",
        ("actor/ppo_kl",),
        lambda now, first: abs(now) > 0.1,
        "the policy moves by {now:.3f} nats per token in one step",
        "Such steps forget more than they learn; try a smaller learning rate or a smaller"
        " grad_clip.",
    ),
    Check(
        "KL to the reference",
        ("actor/kl_loss", "actor/reward_kl_penalty"),
        _above(1.0),
        "the KL to the reference is {now:.2f}",
        "The policy may have left the language that it started from (a loss_agg_mode that adds up"
        " tokens makes the figure larger by itself); read some trajectories, and try a larger KL"
        " coefficient or an earlier checkpoint.",
    ),
    Check(
        "truncation",
        ("response_length/clip_ratio",),
        _above(0.25),
        "{now:.0%} of the trajectories used up their tokens",
        "Answers are cut before they are given; try a larger data.max_response_length, or look"
        " whether the model repeats itself.",
    ),
    Check(
        "tool errors",
        ("tool/success",),
        lambda now, first: now < 0.5,
        "only {now:.0%} of the tool calls succeed",
        "Either the model writes calls that cannot work or the tool itself fails; read the answers"
        " of the tool in some trajectories.",
    ),
    Check(
        "reward without spread",
        ("rollout/uniform_groups",),
        _above(0.8),
        "in {now:.0%} of the groups all members score the same",
        "Such groups have no advantage and teach nothing. With a high reward the tasks are solved,"
        " and harder ones would teach more; with a low one try easier tasks, or more members in a"
        " group.",
    ),
    Check(
        "failed trajectories",
        ("rollout/failed",),
        _above(0.1),
        "{now:.0%} of the trajectories ended as tool_error or engine_error",
        "They are left out of training; agent-r1 view shows the errors.",
    ),
    Check(
        "engine and trainer differ",
        ("training/logprob_diff_mean",),
        _above(0.05),
        "log-probabilities of engine and trainer differ by {now:.3f} nats on average",
        "The policy is then trained on what it did not sample; look at precision, the attention"
        " implementation and the engine's version, or correct for it by rollout_is.",
        unless="async/staleness/mean",  # older weights differ, as they were asked to
    ),
)


@dataclass(slots=True)
class HealthMonitor:
    """Told of every step, it tells what began to look wrong; what stays wrong is told once.

    Keeps the first and the last :data:`WINDOW` values of each check, however long the run.
    """

    _first: dict[str, list[float]] = field(default_factory=dict)
    _last: dict[str, deque[float]] = field(default_factory=dict)
    _standing: set[str] = field(default_factory=set)

    def add(self, metrics: Metrics) -> list[Finding]:
        """The findings that the step before did not have."""
        fresh, standing = [], set()
        for check in CHECKS:
            finding = self._judge(check, metrics)
            if finding is None:
                if check.name in self._standing and not _has(check, metrics):
                    standing.add(check.name)  # this step says nothing of it
                continue
            standing.add(check.name)
            if check.name not in self._standing:
                fresh.append(finding)
        self._standing = standing
        return fresh

    def _judge(self, check: Check, metrics: Metrics) -> Finding | None:
        key = _has(check, metrics)
        if key is None:
            return None
        first = self._first.setdefault(check.name, [])
        last = self._last.setdefault(check.name, deque(maxlen=WINDOW))
        last.append(metrics[key])
        if len(first) < WINDOW:
            first.append(metrics[key])
        if len(last) < WINDOW:
            return None
        now, before = median(last), median(first)
        if not check.is_off(now, before):
            return None
        measured = check.measured.format(now=now, first=before)
        return Finding(check.name, key, now, f"{check.name}: {measured}. {check.advice}")


def findings(steps: Sequence[Metrics]) -> list[tuple[int, Finding]]:
    """Each finding with the step at which it began; ``steps`` as ``load_metrics`` gives them."""
    monitor = HealthMonitor()
    return [(int(line["step"]), finding) for line in steps for finding in monitor.add(line)]


def _has(check: Check, metrics: Metrics) -> str | None:
    if metrics.get(check.unless, 0.0) > 0:
        return None
    return next((k for k in check.keys if math.isfinite(metrics.get(k, math.nan))), None)
