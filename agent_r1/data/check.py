"""Whether a reward agrees with the data: every reference answer, graded as an answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from agent_r1.config.environments import environment_configs
from agent_r1.config.schema import Config
from agent_r1.config.task import RewardConfig
from agent_r1.data.split import look
from agent_r1.errors import RewardError
from agent_r1.reward.sums import make_grader
from agent_r1.types import Completion, Finish, Outcome, Task, Trajectory, Turn

_SHOWN = 20
_OF_THE_EPISODE = ("environment", "agent")
"""Rewards that no answer can be given to, as the environment or the agent says them."""


def check_answers(config: Config, split: str) -> Iterator[str]:
    r"""Lines about the tasks whose own answer, in a ``\boxed{}``, is not graded as right.

    Right means that the reward's part ``accuracy`` is 1, or where it has none that the
    reward is positive. A list of answers stands for its first. In a run with several
    environments each is graded by its own reward.

    Raises:
        DataError: the data cannot be read.
    """
    found, _ = look(config, split)
    for env in environment_configs(config):
        if env.name in found:
            where = f"{env.name}: " if env.name else ""
            yield from _checked(env.config.reward, found[env.name], where)


def _checked(reward: RewardConfig, tasks: Sequence[Task], where: str) -> Iterator[str]:
    if reward.name in _OF_THE_EPISODE:
        yield f"{where}{reward.name!r} is said by the episode itself and grades no answers"
        return
    problems: list[str] = []
    options = dict(reward.kwargs)
    with make_grader(reward.name, timeout_s=reward.timeout_s, options=options) as grader:
        for task in tasks:
            try:
                graded = grader.score(_answering(task))
            except RewardError as error:
                problems.append(f"{task.id}: {error}")
                continue
            if graded.parts.get("accuracy", float(graded.value > 0)) != 1:
                problems.append(f"{task.id}: {task.answer!r} gets {graded.value:g}")
    good = len(tasks) - len(problems)
    told = f"{good:,} of {len(tasks):,} reference answers are graded as right by {reward.name!r}"
    yield where + told
    yield from (f"  {problem}" for problem in problems[:_SHOWN])
    if len(problems) > _SHOWN:
        yield f"  ... and {len(problems) - _SHOWN:,} more"


def _answering(task: Task) -> Trajectory:
    """An episode in which the model says the reference answer at once."""
    answer = task.answer[0] if isinstance(task.answer, list) and task.answer else task.answer
    text = f"<answer>\n\\boxed{{{answer}}}\n</answer>"
    turn = Turn((), Completion((), (), Finish.EOS), text)
    return Trajectory(task, task.id, 0, (turn,), Outcome.FINISHED)
