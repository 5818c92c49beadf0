"""Trajectories made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agent_r1.types import Completion, Finish, Outcome, Task, ToolCall, Trajectory, Turn


def make_trajectory(
    turns: Sequence[str | tuple[str, str]],
    *,
    answer: Any = None,
    prompt: str = "question",
    outcome: Outcome = Outcome.FINISHED,
    calls: Sequence[Sequence[bool]] | None = None,
    data_source: str = "test",
    extra: dict[str, Any] | None = None,
) -> Trajectory:
    """A trajectory of these texts, for testing rewards and everything that reads text.

    Each turn is what the model wrote, or a pair of that and the tool's answer (then it
    counts one successful call, unless ``calls`` says otherwise). Token ids are code
    points, so every length is right although no tokenizer is involved.
    """
    made: list[Turn] = []
    context: tuple[int, ...] = tuple(map(ord, prompt))
    for i, turn in enumerate(turns):
        text, observation = (turn, "") if isinstance(turn, str) else turn
        flags = calls[i] if calls is not None else [True] * bool(observation)
        ids = tuple(map(ord, text))
        made.append(
            Turn(
                prompt_ids=context,
                completion=Completion(ids, (-1.0,) * len(ids), Finish.EOS),
                text=text,
                observation_ids=tuple(map(ord, observation)),
                observation_text=observation,
                tool_calls=tuple(ToolCall(flag, 0.0) for flag in flags),
            )
        )
        context = made[-1].next_prompt_ids
    task = Task("task", prompt, answer, data_source, extra or {})
    return Trajectory(task, "group", 0, tuple(made), outcome)
