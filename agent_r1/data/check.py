"""Whether a reward agrees with the data: every reference answer, graded as an answer."""

from __future__ import annotations

from collections.abc import Iterator

from agent_r1.config.task import DataConfig, RewardConfig
from agent_r1.data.sources import load_configured
from agent_r1.errors import RewardError
from agent_r1.reward.sums import make_grader
from agent_r1.types import Completion, Finish, Outcome, Task, Trajectory, Turn

_SHOWN = 20


def check_answers(data: DataConfig, reward: RewardConfig, split: str, seed: int) -> Iterator[str]:
    r"""Lines about the tasks whose own answer, in a ``\boxed{}``, is not graded as right.

    Right means that the reward's part ``accuracy`` is 1, or where it has none that the
    reward is positive. A list of answers stands for its first.

    Raises:
        DataError: the data cannot be read.
    """
    loaded = load_configured(data, split, seed)
    problems: list[str] = []
    options = dict(reward.kwargs)
    with make_grader(reward.name, timeout_s=reward.timeout_s, options=options) as grader:
        for task in loaded.tasks:
            try:
                graded = grader.score(_answering(task))
            except RewardError as error:
                problems.append(f"{task.id}: {error}")
                continue
            if graded.parts.get("accuracy", float(graded.value > 0)) != 1:
                problems.append(f"{task.id}: {task.answer!r} gets {graded.value:g}")
    tasks, good = len(loaded.tasks), len(loaded.tasks) - len(problems)
    yield f"{good:,} of {tasks:,} reference answers are graded as right by {reward.name!r}"
    yield from (f"  {problem}" for problem in problems[:_SHOWN])
    if len(problems) > _SHOWN:
        yield f"  ... and {len(problems) - _SHOWN:,} more"


def _answering(task: Task) -> Trajectory:
    """An episode in which the model says the reference answer at once."""
    answer = task.answer[0] if isinstance(task.answer, list) and task.answer else task.answer
    text = f"<answer>\n\\boxed{{{answer}}}\n</answer>"
    turn = Turn((), Completion((), (), Finish.EOS), text)
    return Trajectory(task, task.id, 0, (turn,), Outcome.FINISHED)
