"""check_tool_env finds what is wrong with an environment, and only that."""

import threading

import pytest

from agent_r1.errors import EnvironmentContractError
from agent_r1.testing import check_tool_env
from agent_r1.tool.base import BaseToolEnv, call_context
from agent_r1.types import Task


class Good(BaseToolEnv):
    """Runs what stands after ``call:`` by repeating it."""

    stop_strings = (";",)

    def step(self, raw_response):
        calls = self.extract_tool_calls(raw_response)
        return (self.format_tool_response(calls), [True] * len(calls), bool(calls))

    def extract_tool_calls(self, raw_response):
        return [part.split(";")[0] for part in raw_response.split("call:")[1:]]


TEXTS = ["call:a;", "call:a; call:b;", "nothing"]


def test_a_good_environment_passes():
    report = check_tool_env(Good(), TEXTS)
    assert (report.calls, report.warnings) == (3, ())
    assert report.steps == len(TEXTS) + 10


def test_a_stateful_environment_that_is_made_per_trajectory_passes():
    class Counter(BaseToolEnv):
        count = 0

        def for_trajectory(self, task):
            return Counter()

        def step(self, raw_response):
            assert self.count == 0, "an environment was used for two trajectories"
            self.count += 1
            return str(self.count), [], False

    assert check_tool_env(Counter()).calls == 0


def variant(**members):
    return type("Variant", (Good,), members)()


def step_returning(*result):
    return variant(step=lambda self, raw: result)


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (step_returning("x", True, True), r"broke its word: Variant.step returned \('x', True"),
        (step_returning("x", []), "broke its word"),
        (variant(step=lambda self, raw: raw[0]), "raised IndexError"),
        (variant(stop_strings=";"), "stop_strings must be a tuple"),
        (variant(stop_strings=("",)), "stop_strings must be a tuple"),
        (variant(for_trajectory=lambda self, task: None), "for_trajectory must return an env"),
        (variant(process_responses_ids=lambda self, t, rows: [[1]]), "process_responses_ids: brok"),
        (variant(process_responses_ids=lambda self, t, rows: 1 / 0), "raised ZeroDivisionError"),
        (variant(batch_step=lambda self, raws: ([], [], [])), "batch_step must return three list"),
        (variant(batch_step=lambda self, raws: 1 / 0), "batch_step raised ZeroDivisionError"),
    ],
)
def test_a_violation_is_named(env, message):
    with pytest.raises(
        EnvironmentContractError, match=r"(?s)Variant breaks the contract.*" + message
    ):
        check_tool_env(env, TEXTS)


def test_every_violation_is_listed():
    with pytest.raises(EnvironmentContractError) as error:
        check_tool_env(variant(stop_strings=(), for_trajectory=lambda s, t: 1, batch_step=None), [])
    assert "1. for_trajectory" in str(error.value)
    with pytest.raises(EnvironmentContractError, match=r"\n  13\. step"):
        check_tool_env(variant(step=lambda self, raw: None), TEXTS)


def test_astep_must_agree_with_step():
    async def astep(self, raw_response):
        return "", [], False

    with pytest.raises(EnvironmentContractError, match=r"astep\('call:a;'\) gave \(\[\], False\)"):
        check_tool_env(variant(astep=astep), TEXTS)


def test_a_hanging_step_is_found():
    released = threading.Event()

    class Hangs(Good):
        def step(self, raw_response):
            if "call:" in raw_response:
                released.wait()
            return "", [], False

    with pytest.raises(EnvironmentContractError, match=r"did not return within 0\.05 s"):
        check_tool_env(Hangs(), TEXTS, timeout_s=0.05)
    released.set()


def test_shared_state_between_threads_is_found():
    others = threading.active_count()  # what earlier tests of this process left behind

    class Racy(Good):
        """Keeps the text in the shared object while other threads come and go."""

        together = threading.Barrier(13)

        def step(self, raw_response):
            self.text = raw_response
            if threading.active_count() > others + 9:  # only when all are stepped at once
                self.together.wait(timeout=30)
            return super().step(self.text)

    with pytest.raises(EnvironmentContractError, match="it is not thread-safe"):
        check_tool_env(Racy(), TEXTS)


def test_the_context_is_there_and_stop_is_compared():
    class Contrary(Good):
        def step(self, raw_response):
            assert call_context.get().trajectory_id == "check/0"
            return super().step(raw_response)

        def stop(self, raw_response):
            return "call:" in raw_response

    warnings = check_tool_env(Contrary(), TEXTS).warnings
    assert "stop('call:a;') is True but step says active=True" in warnings


def test_texts_that_call_nothing_are_pointed_out():
    (warning,) = check_tool_env(Good(), ["<call>a</call>"]).warnings
    assert warning.startswith("no text called a tool")


def test_an_environment_that_needs_an_answer_says_so_and_how_to_give_one():
    class Counting(BaseToolEnv):
        def __init__(self, left=0):
            self.left = left

        def for_trajectory(self, task):
            return Counting(int(task.answer))

        def step(self, raw_response):
            return "", [], False

    with pytest.raises(EnvironmentContractError, match=r"check_tool_env\(env, task=Task\(") as e:
        check_tool_env(Counting())
    assert "raised TypeError" in str(e.value)
    check_tool_env(Counting(), task=Task("a", "b", "3"))
