"""Estimators and losses by name, open to packages that are not ours.

A function of your own is selected by its path (``my_package.my_module:my_function``), by
a name given with the decorator, or by an entry point of an installed package::

    @register_advantage("half")
    def half(inputs: AdvantageInputs, *, gamma: float = 1.0) -> AdvantageResult: ...

Keyword-only parameters are its options; :func:`bind` fills them from a configuration.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from agent_r1.errors import ConfigError
from agent_r1.registry import Registry, nearest

if TYPE_CHECKING:
    from agent_r1.algorithms.episodes import AdvantageResult
    from agent_r1.algorithms.losses import PolicyLossTerms

Result = TypeVar("Result")

_ADVANTAGES = "agent_r1.algorithms.advantages:"
_TURNS = "agent_r1.algorithms.turns:"
_LOSSES = "agent_r1.algorithms.losses:"

ADVANTAGES: Registry[Callable[..., AdvantageResult]] = Registry(
    "advantage estimator",
    group="agent_r1.advantages",
    builtin={
        "gae": _ADVANTAGES + "gae",
        "grpo": _ADVANTAGES + "grpo",
        "dr_grpo": _ADVANTAGES + "dr_grpo",
        "rloo": _ADVANTAGES + "rloo",
        "reinforce_plus_plus": _ADVANTAGES + "reinforce_plus_plus",
        "reinforce_plus_plus_baseline": _ADVANTAGES + "reinforce_plus_plus_baseline",
        "remax": _ADVANTAGES + "remax",
        "turn_gae": _TURNS + "turn_gae",
        "gigpo": _TURNS + "gigpo",
        "opd": "agent_r1.algorithms.distillation:opd",
    },
)
POLICY_LOSSES: Registry[Callable[..., PolicyLossTerms]] = Registry(
    "policy loss",
    group="agent_r1.policy_losses",
    builtin={
        "ppo": _LOSSES + "ppo",
        "vanilla": _LOSSES + "ppo",
        "gspo": _LOSSES + "gspo",
        "cispo": _LOSSES + "cispo",
        "reinforce": _LOSSES + "reinforce",
    },
)

register_advantage = ADVANTAGES.register
register_policy_loss = POLICY_LOSSES.register
resolve_advantage = ADVANTAGES.get
resolve_policy_loss = POLICY_LOSSES.get


def bind(
    function: Callable[..., Result],
    options: Mapping[str, Any] | None = None,
    shared: Mapping[str, Any] | None = None,
) -> Callable[..., Result]:
    """Fix a function's keyword-only options.

    ``options`` were written for this very function, so one that it does not take is an
    error. ``shared`` are settings that several functions read (``gamma``,
    ``clip_ratio_low``); those that this one does not take are dropped.

    Raises:
        ConfigError: an entry of ``options`` is no option of the function.
    """
    parameters = inspect.signature(function).parameters.values()
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    chosen = dict(options or {})
    for key in chosen:
        if key not in known and not takes_any:
            name = getattr(function, "__name__", "it")
            raise ConfigError(
                f"{name} has no option {key!r}{nearest(key, known)}; "
                f"its options: {', '.join(known) or 'none'}"
            )
    defaults = {k: v for k, v in (shared or {}).items() if takes_any or k in known}
    return functools.partial(function, **{**defaults, **chosen})
