"""What a reward function is, and how one is found by name.

A reward function takes a finished :class:`agent_r1.types.Trajectory` and returns a number
or a :class:`agent_r1.types.Reward`. It reads what the *model* wrote (``final_text``,
``model_text``) and the task's answer. What tools printed is no evidence of anything: a
model that prints the right number into its own context has not answered yet, and one that
could influence the grader through a tool would learn to.
"""

from __future__ import annotations

import functools
import inspect
import numbers
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from agent_r1.errors import ConfigError, RecordError, RewardError
from agent_r1.registry import Registry, nearest
from agent_r1.types import Reward, Trajectory

RewardFn: TypeAlias = Callable[[Trajectory], "Reward | float"]
AsyncRewardFn: TypeAlias = Callable[[Trajectory], Awaitable["Reward | float"]]
"""For graders that wait for a server; awaited in the event loop, many at once."""

SIBLINGS = "siblings"
"""Parameter by which a reward function asks for the trajectories that it is compared with."""

COMPUTE_SCORE = ("data_source", "solution_str", "ground_truth", "extra_info")
"""Parameters by which a function in verl's ``compute_score`` style is recognised."""


@dataclass(frozen=True, slots=True)
class Traits:
    """What is known of a registered reward function beyond its signature.

    ``inline``: it is quick on *any* text (no parser, no regular expression that can run
    away), so it needs no process of its own. ``on_timeout`` makes the reward of a
    trajectory that could not be graded in time, from the function's own keyword
    arguments; for graders where only the model's text can be the cause. ``prepare`` does
    once, and outside of every time limit, what the first call would otherwise do (imports:
    a module interrupted half-way stays broken). ``siblings`` tells from the function's own
    keyword arguments whether it compares siblings; without, every function with that parameter
    does.
    """

    inline: bool = False
    on_timeout: Callable[..., Reward] | None = None
    prepare: Callable[[], None] | None = None
    siblings: Callable[..., bool] | None = None


def _no_reward(entry: object) -> str | None:
    if not callable(entry) or isinstance(entry, type):
        return f"{entry!r} is not a function of a trajectory"
    return None


REWARDS: Registry[Callable[..., Any]] = Registry(
    "reward",
    group="agent_r1.rewards",
    builtin={
        "exact_match": "agent_r1.reward.builtin:exact_match",
        "numeric": "agent_r1.reward.builtin:numeric",
        "math": "agent_r1.reward.builtin:math",
        "retool": "agent_r1.reward.builtin:retool",
        "format": "agent_r1.reward.builtin:answer_format",
        "tool_use": "agent_r1.reward.builtin:tool_use",
        "agent": "agent_r1.reward.agent:agent",
        "environment": "agent_r1.reward.agent:environment",
        "judge": "agent_r1.reward.judge:judge",
        "qa_em": "agent_r1.reward.qa:qa_em",
        "qa_f1": "agent_r1.reward.qa:qa_f1",
        "weighted_sum": "agent_r1.reward.builtin:weighted_sum",
        "arithmetic": "agent_r1.recipes.arithmetic:arithmetic_reward",
    },
    check=_no_reward,
)
_TRAITS: dict[Callable[..., Any], Traits] = {}


def register_reward(
    name: str,
    *,
    inline: bool = False,
    on_timeout: Callable[..., Reward] | None = None,
    prepare: Callable[[], None] | None = None,
    siblings: Callable[..., bool] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: make a function available as ``reward.name=NAME``; see :class:`Traits`."""

    def add(fn: Callable[..., Any]) -> Callable[..., Any]:
        _TRAITS[fn] = Traits(inline, on_timeout, prepare, siblings)
        return REWARDS.register(name)(fn)

    return add


def traits_of(fn: Callable[..., Any]) -> Traits:
    """Traits of a function made by :func:`make_reward` or registered; defaults otherwise."""
    if isinstance(fn, functools.partial):
        found = traits_of(fn.func)
        if found.on_timeout is None:
            return found
        return replace(found, on_timeout=functools.partial(found.on_timeout, **fn.keywords))
    return _TRAITS.get(fn, Traits())


def wants_siblings(fn: Callable[..., Any]) -> bool:
    """Whether this reward, its options filled in, compares a trajectory with its siblings.

    Such a function has a keyword-only parameter ``siblings``: the trajectories of one group that
    are scored together, the one to score among them, in the order of their indices.
    """
    options: dict[str, Any] = {}
    while isinstance(fn, functools.partial):
        options = {**fn.keywords, **options}
        fn = fn.func
    if SIBLINGS not in inspect.signature(fn).parameters:
        return False
    decides = traits_of(fn).siblings
    return decides is None or decides(**options)


def make_reward(name: str, **options: Any) -> Callable[[Trajectory], Any]:
    """The reward function of this name or path, its keyword arguments filled in.

    A function whose parameters are verl's ``(data_source, solution_str, ground_truth,
    extra_info)`` is adapted (:func:`from_compute_score`).

    Raises:
        RegistryError: there is none.
        ConfigError: it does not take one of the options.
    """
    return with_options(REWARDS.get(name), name, options)


def with_options(
    fn: Callable[..., Any], name: str, options: Mapping[str, Any]
) -> Callable[[Trajectory], Any]:
    """Fill in keyword arguments, adapting verl's signature; a wrong one is a ConfigError."""
    parameters = inspect.signature(fn).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for option in options:
            if option not in parameters or option == SIBLINGS:
                known = [name for name in list(parameters)[1:] if name != SIBLINGS]
                raise ConfigError(
                    f"the reward {name!r} takes no {option!r}{nearest(option, known)}; it takes: "
                    f"{', '.join(known) or 'no options'}"
                )
    missing = [
        p.name
        for p in parameters.values()
        if p.kind is p.KEYWORD_ONLY
        and p.default is p.empty
        and p.name not in options
        and p.name != SIBLINGS
    ]
    if missing:
        raise ConfigError(
            f"the reward {name!r} needs {' and '.join(missing)}: set reward.kwargs.{missing[0]}"
        )
    if set(COMPUTE_SCORE[1:3]) <= set(parameters):
        return from_compute_score(fn, **options)
    return functools.partial(fn, **options) if options else fn


def from_compute_score(
    compute_score: Callable[..., Any], **options: Any
) -> Callable[[Trajectory], Reward]:
    """Use a ``compute_score(data_source, solution_str, ground_truth, extra_info)`` of verl.

    ``solution_str`` is everything that the model wrote and nothing that a tool wrote. A
    result dict gives its ``score``; its other numbers become parts.
    """
    return functools.partial(_compute_score, fn=compute_score, options=options)


def _compute_score(
    trajectory: Trajectory, *, fn: Callable[..., Any], options: Mapping[str, Any]
) -> Reward:
    given = dict(
        zip(
            COMPUTE_SCORE,
            (
                trajectory.task.data_source,
                trajectory.model_text,
                trajectory.task.answer,
                dict(trajectory.task.extra),
            ),
            strict=True,
        )
    )
    parameters = inspect.signature(fn).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        given = {name: value for name, value in given.items() if name in parameters}
    return normalise_reward(fn(**given, **options), getattr(fn, "__name__", "compute_score"))


def normalise_reward(raw: object, name: str) -> Reward:
    """Make a :class:`Reward` of what a reward function returned.

    Accepted: a ``Reward``; any real number, numpy's and 0-dimensional tensors included; a
    mapping with ``score``, whose other numbers become parts.

    Raises:
        RewardError: anything else, and values that are not finite.
    """
    try:
        if isinstance(raw, Reward):
            return raw
        if isinstance(raw, Mapping) and "score" in raw:
            parts = {str(k): _number(v) for k, v in raw.items() if k != "score"}
            value = _number(raw["score"])
            if value is not None:
                return Reward(value, {k: v for k, v in parts.items() if v is not None})
        value = _number(raw)
        if value is not None:
            return Reward(value)
    except RecordError as error:
        raise RewardError(f"the reward {name!r} is not finite: {error}") from error
    raise RewardError(
        f"the reward {name!r} returned {type(raw).__name__} {raw!r:.80}; it must return a finite "
        "number or a Reward"
    )


def _number(value: object) -> float | None:
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, numbers.Real):
        return float(value)
    return None


def grading_view(trajectory: Trajectory) -> Trajectory:
    """The trajectory as reward functions get it: without the contexts of its turns.

    ``prompt_ids`` of every turn are left out. They repeat the whole history once per turn,
    no grader needs them, and they would be most of what is sent to a grading process.
    """
    return replace(
        trajectory, turns=tuple(replace(turn, prompt_ids=()) for turn in trajectory.turns)
    )
