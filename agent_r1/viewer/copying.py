"""One trajectory as something to paste: Markdown, a trace to learn from, a test."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from agent_r1.data.traces import as_row, trace_of
from agent_r1.errors import DataError
from agent_r1.monitor.records import decode_trajectory
from agent_r1.types import Trajectory
from agent_r1.viewer.shown import messages_of

FORMS = ("markdown", "trace", "test")


def copied(record: Mapping[str, Any], form: str) -> str:
    """The trajectory of a stored record in one of :data:`FORMS`.

    Raises:
        DataError: another form, or a trajectory that has no turn.
    """
    trajectory = decode_trajectory(record)
    if form == "markdown":
        return _markdown(trajectory, record)
    if form == "trace":
        return json.dumps(as_row(trace_of(trajectory)), ensure_ascii=False, default=str) + "\n"
    if form == "test":
        return _test(trajectory, record)
    raise DataError(f"a trajectory is copied as {', '.join(FORMS)}, not as {form!r}")


def _markdown(trajectory: Trajectory, record: Mapping[str, Any]) -> str:
    reward = trajectory.reward
    facts = [
        f"step {record['step']} ({record['split']})",
        f"outcome {trajectory.outcome.value}",
        "not scored" if reward is None else f"reward {reward.value:g}",
        f"answer {trajectory.task.answer}",
    ]
    lines = [f"### Trajectory {trajectory.id}", "", ", ".join(facts), ""]
    for message in messages_of(trajectory.task.prompt):
        lines += [f"**{message['role']}**", "", _fenced(message["text"]), ""]
    for number, turn in enumerate(trajectory.turns, start=1):
        lines += [f"**turn {number}, the model**", "", _fenced(turn.text), ""]
        if turn.observation_text:
            lines += ["**the environment**", "", _fenced(turn.observation_text), ""]
    return "\n".join(lines)


def _fenced(text: str) -> str:
    """A fence longer than any that the text holds."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text.removesuffix(chr(10))}\n{fence}"


def _test(trajectory: Trajectory, record: Mapping[str, Any]) -> str:
    """Python that makes the trajectory again. Texts are escaped to ASCII: all of them show."""
    task, reward = trajectory.task, trajectory.reward
    name = re.sub(r"\W+", "_", trajectory.id, flags=re.ASCII).strip("_").lower()
    turns = [
        ascii((turn.text, turn.observation_text) if turn.observation_text else turn.text)
        for turn in trajectory.turns
    ]
    calls = [[call.success for call in turn.tool_calls] for turn in trajectory.turns]
    prompt = "\n\n".join(message["text"] for message in messages_of(trajectory.task.prompt))
    value = "None" if reward is None else repr(reward.value)
    return "\n".join(
        [
            "from agent_r1.testing import make_trajectory",
            "from agent_r1.types import Outcome",
            "",
            "",
            f"def test_trajectory_{name or 'one'}():",
            f'    """Step {record["step"]}: the reward was {value} when it was stored."""',
            "    trajectory = make_trajectory(",
            "        [",
            *(f"            {turn}," for turn in turns),
            "        ],",
            f"        answer={task.answer!a},",
            f"        prompt={prompt!a},",
            f"        outcome=Outcome.{trajectory.outcome.name},",
            f"        calls={calls!r},",
            f"        data_source={task.data_source!a},",
            "    )",
            f"    assert my_reward(trajectory).value == {value}  # put your reward function here",
            "",
        ]
    )
