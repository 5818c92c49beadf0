from dataclasses import replace

from agent_r1.data.traces import Author
from agent_r1.testing.records import make_trajectory
from agent_r1.trainer.harvest import Choice, harvest
from agent_r1.types import Outcome, Reward

CALL = ("<code>\nprint(4)\n</code>", "\n<interpreter>\n4\n</interpreter>\n")


def sampled(*turns, right=True, task="t", **options):
    made = make_trajectory(turns, answer="4", **options)
    named = replace(made.task, id=task, prompt=({"role": "user", "content": "2 + 2?"},))
    return replace(made, task=named, reward=Reward(float(right)))


def test_a_right_trajectory_becomes_a_trace_with_the_tasks_own_prompt():
    [trace] = harvest([sampled(CALL, "It is \\boxed{4}.")], Choice()).traces
    assert trace.prompt == ({"role": "user", "content": "2 + 2?"},)
    assert [part.author for part in trace.segments] == [Author.MODEL, Author.TOOL, Author.MODEL]
    assert trace.text == "".join(CALL) + "It is \\boxed{4}."


def test_everything_else_is_counted_by_its_reason():
    found = harvest(
        [
            sampled(CALL, "A \\boxed{4}"),
            sampled(CALL, "A \\boxed{4}"),
            sampled(CALL, "B \\boxed{4}"),
            sampled(CALL, "C \\boxed{4}"),
            sampled(CALL, "\\boxed{5}", right=False),
            sampled("\\boxed{4}", task="u"),
            sampled(CALL, "\\boxed{4}", task="u", calls=[[False], []]),
            sampled(CALL, "\\boxed{4}", task="v", outcome=Outcome.LENGTH),
        ],
        Choice(per_task=2),
    )
    assert (len(found.traces), found.tasks) == (2, 3)
    assert found.counts == {
        "kept": 2,
        "the same as another": 1,
        "more than enough of its task": 1,
        "not right": 1,
        "called no tool": 1,
        "its last call failed": 1,
        "ended by length": 1,
    }


def test_recovered_errors_and_direct_answers_are_a_choice():
    recovered = sampled(CALL, CALL, "\\boxed{4}", calls=[[False], [True], []])
    direct = sampled("\\boxed{4}", task="u")
    assert len(harvest([recovered, direct], Choice()).traces) == 1
    assert not harvest([recovered], Choice(allow_failed_calls=False)).traces
    assert len(harvest([recovered, direct], Choice(require_tool=False)).traces) == 2


def test_one_environment_of_several_can_be_chosen():
    one, other = sampled(CALL, "\\boxed{4}"), sampled(CALL, "\\boxed{4}", task="u")
    other = replace(other, task=replace(other.task, env="math"))
    found = harvest([one, other], Choice(env="math"))
    assert found.counts == {"kept": 1, "of another environment": 1} and found.tasks == 1
