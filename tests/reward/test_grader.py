"""A reward function can do nothing that stops or spoils the run."""

import asyncio
import functools
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from agent_r1.errors import ConfigError, RegistryError, RewardError
from agent_r1.reward import Grader, score
from agent_r1.testing import make_trajectory
from agent_r1.types import Reward

GRADERS = Path(__file__).with_name("graders.py")
TRAJECTORY = make_trajectory([("<code>1</code>", "4"), r"\boxed{4}"], answer="4")


def path(name):
    return f"{GRADERS}:{name}"


def text(what):
    return make_trajectory([what])


@pytest.fixture(scope="module")
def grader():
    made = {}

    def make(name, **settings):
        key = (name, *sorted(settings.items()))
        if key not in made:
            made[key] = Grader(path(name), workers=1, **settings)
        return made[key]

    yield make
    for one in made.values():
        one.close()


def test_a_function_in_a_file_is_run_in_a_process():
    with Grader(path("length"), options={"scale": 2.0}, workers=1) as grader:
        assert grader.isolation == "process"
        assert grader.score(text("abc")) == Reward(6.0)
        assert asyncio.run(grader.ascore(text("abcd"))) == Reward(8.0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nan", "nan' is not finite"),
        ("nothing", "returned NoneType"),
        ("raises", r"failed: KeyError: 'missing' \(.*graders.py:\d+\)"),
        ("dies", r"its process died \(exit code 7\)"),
    ],
)
def test_what_goes_wrong_is_a_reward_error(grader, name, message):
    with pytest.raises(RewardError, match=message):
        grader(name).score(TRAJECTORY)
    graded = asyncio.run(grader(name).graded(TRAJECTORY))
    assert graded.reward is None
    assert "reward" in graded.error


@pytest.mark.parametrize("name", ["hangs", "hangs_in_c", "swallows_exceptions"])
def test_a_function_that_hangs_is_ended(grader, name):
    with pytest.raises(RewardError, match=r"took longer than 0.2 s \(reward.timeout_s\)"):
        grader(name, timeout_s=0.2).score(TRAJECTORY)


def test_after_a_hang_the_next_one_is_graded(grader):
    one = grader("hangs_on_request", timeout_s=2.0)
    first = one.score(text("a"))
    assert one.score(text("b")) == first  # the same warm process
    with pytest.raises(RewardError, match="took longer"):
        one.score(text("hang"))
    assert one.score(text("c")) == first  # interrupted, not killed


def test_after_a_process_had_to_be_killed_the_next_one_is_graded(grader):
    one = grader("hangs_hard_on_request", timeout_s=0.2)
    with pytest.raises(RewardError, match="took longer"):
        one.score(text("hang"))
    assert [one.score(text(t)).value for t in ("a", "bb", "ccc")] == [1.0, 2.0, 3.0]


def test_a_function_may_say_what_being_late_is_worth():
    with Grader(
        path("hangs_with_a_verdict"), timeout_s=0.2, workers=1, options={"wrong": -0.5}
    ) as one:
        assert one.score(TRAJECTORY) == Reward(-0.5, {"late": 1.0})


def test_prints_do_not_reach_the_answers(grader):
    assert grader("prints").score(TRAJECTORY) == Reward(1.0)


def test_a_grader_sees_everything_but_the_contexts(grader):
    assert grader("sees").score(TRAJECTORY).parts == {
        "prompt_ids": 0,
        "tokens": len("<code>1</code>") + len(r"\boxed{4}"),
        "calls": 1,
    }


def test_verls_signature_is_recognised(grader):
    reward = grader("compute_score").score(make_trajectory(["it is 7"], answer="7"))
    assert reward == Reward(1.0, {"acc": 1.0, "extra": 0.0})


def test_many_threads_share_few_processes(grader):
    one = grader("length")
    results = {}

    def work(n):
        results[n] = one.score(text("x" * n)).value

    threads = [threading.Thread(target=work, args=(n,)) for n in range(1, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: float(n) for n in range(1, 20)}


def test_how_a_function_is_run_follows_from_what_it_is():
    def closure(trajectory):
        return len(trajectory.model_text)

    with Grader("exact_match") as named, Grader("math") as parsing, Grader(closure) as local:
        assert named.isolation == "inline"
        assert parsing.isolation == "process"
        assert local.isolation == "thread"
        assert local.score(text("abc")) == Reward(3.0)
        assert asyncio.run(local.ascore(text("abcd"))) == Reward(4.0)
    from agent_r1.reward.builtin import weighted_sum

    with Grader(weighted_sum, options={"rewards": {"exact_match": 1}}, workers=1) as importable:
        assert importable.isolation == "process"
        assert importable.score(TRAJECTORY).value == 1.0


def test_a_closure_that_hangs_is_abandoned():
    released = threading.Event()

    def closure(trajectory):
        released.wait()
        return 0.0

    with Grader(closure, timeout_s=0.05) as one, pytest.raises(RewardError, match="took longer"):
        one.score(TRAJECTORY)
    released.set()


def test_async_functions_wait_in_the_event_loop():
    with Grader(path("waits"), timeout_s=0.05) as grader:
        assert grader.isolation == "async"

        async def many():
            return await asyncio.gather(*(grader.graded(text(t)) for t in ("a", "b", "")))

        *good, late = asyncio.run(many())
    assert [t.reward for t in good] == [Reward(0.5), Reward(0.5)]
    assert late.reward is None and "took longer than 0.05 s" in late.error


@pytest.mark.parametrize(("name", "wrong"), [("math", 0.0), ("retool", -1.0)])
def test_an_answer_that_explodes_the_parser_is_wrong_and_the_run_goes_on(name, wrong):
    explosive = make_trajectory([r"\boxed{" + "(" * 300 + "1" + ")" * 300 + "}"], answer="7")
    with Grader(name, timeout_s=1.5, workers=1) as grader:
        reward = grader.score(explosive)
        assert reward.value == wrong
        assert reward.parts["accuracy"] == 0.0
        again = make_trajectory([r"\boxed{\frac{14}{2}}"], answer="7")
        assert grader.score(again).value == 1.0


def test_the_value_of_what_is_not_graded_in_time_follows_the_options():
    from agent_r1.reward.base import make_reward, traits_of

    on_timeout = traits_of(make_reward("math", wrong=-0.25)).on_timeout
    assert on_timeout() == Reward(-0.25, {"accuracy": 0.0, "grading_timeout": 1.0})


def test_what_cannot_be_loaded_fails_when_it_is_made():
    with pytest.raises(RegistryError, match="did you mean 'length'"):
        Grader(path("lenght"))
    with pytest.raises(ConfigError, match="did you mean 'scale'"):
        Grader(path("length"), options={"scael": 1})


def test_a_closed_grader_says_so_and_leaves_no_process(grader):
    one = Grader(path("hangs_on_request"), workers=1)
    pid = int(one.score(TRAJECTORY).value)
    one.close()
    one.close()
    assert not Path(f"/proc/{pid}").exists()
    with pytest.raises(RewardError, match="closed"):
        one.score(TRAJECTORY)


def test_a_single_score():
    assert score(TRAJECTORY, "math").value == 1.0
    assert score(TRAJECTORY, lambda trajectory: 0.25) == Reward(0.25)


def rank(trajectory, *, siblings, scale=1.0):
    """The share of siblings whose text is shorter."""
    shorter = [len(t.final_text) < len(trajectory.final_text) for t in siblings]
    return scale * sum(shorter) / len(siblings)


def test_a_function_with_siblings_compares_them():
    siblings = [replace(make_trajectory([text]), index=i) for i, text in enumerate(("a", "bb"))]
    local = functools.partial(rank)
    for fn in (rank, lambda trajectory, *, siblings: rank(trajectory, siblings=siblings), local):
        with Grader(fn, workers=1) as grader:
            assert grader.wants_siblings
            assert [grader.score(t, siblings).value for t in siblings] == [0.0, 0.5]
            assert grader.score(siblings[1]).value == 0.0  # alone among its siblings
            assert asyncio.run(grader.graded(siblings[1], siblings)).reward.value == 0.5
    with pytest.raises(ConfigError, match=r"takes no 'siblings'.*it takes: scale"):
        Grader(rank, options={"siblings": ()})
