"""Exact match and F1 as SQuAD and HotpotQA compute them; values worked by hand."""

import pytest

from agent_r1.errors import RewardError
from agent_r1.reward import make_reward, score
from agent_r1.reward.qa import exact, f1, normalise
from agent_r1.types import Completion, Finish, Outcome, Task, Trajectory, Turn


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Beatles!", "beatles"),
        ("an apple, a day", "apple day"),
        ("Anthem", "anthem"),
        ("U.S.A.", "usa"),
        ("rock-and-roll", "rockandroll"),
        ("\u00c9mile Zola", "\u00e9mile zola"),
        ("the", ""),
    ],
)
def test_normalisation(text, expected):
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("answer", "reference", "em", "overlap"),
    [
        ("the Chief of Protocol", "Chief of Protocol", 1.0, 1.0),
        # given: chief, of, protocol, usa; wanted: chief, of, protocol: 2 * 3 / (4 + 3)
        ("Chief of Protocol (USA)", "Chief of Protocol", 0.0, 6 / 7),
        # a word counts as often as both have it: 2 * 1 / (3 + 1)
        ("Paris Paris Paris", "Paris", 0.0, 1 / 2),
        ("yes", "Yes.", 1.0, 1.0),
        ("yes, they were", "yes", 0.0, 0.0),
        ("no", "no way", 0.0, 0.0),
        ("Rome", "Paris", 0.0, 0.0),
        ("the", "a", 1.0, 1.0),
        ("the", "Paris", 0.0, 0.0),
    ],
)
def test_exact_match_and_f1(answer, reference, em, overlap):
    assert exact(answer, reference) == em
    assert f1(answer, reference) == pytest.approx(overlap)
    assert f1(reference, answer) == pytest.approx(overlap)


def trajectory(text, answer=("Shirley Temple", "Shirley Temple Black"), observation=""):
    searched = Turn(
        (1,), Completion((1,), (0.0,), Finish.STOP), "<search>x</search>", (2,), observation
    )
    last = Turn((1,), Completion((1,), (0.0,), Finish.EOS), text)
    return Trajectory(Task("t", "q", list(answer)), "g", 0, (searched, last), Outcome.FINISHED)


def test_the_best_reference_counts_and_the_last_answer():
    said = trajectory("<answer>no</answer> wait <answer>Temple Black</answer>")
    # against "shirley temple black": 2 * 2 / (2 + 3); against "shirley temple": 2 * 1 / (2 + 2)
    reward = score(said, "qa_f1")
    assert reward.value == pytest.approx(0.8)
    assert reward.parts == {"accuracy": 0.0, "em": 0.0, "f1": pytest.approx(0.8)}
    assert score(said, "qa_em").value == 0.0
    assert score(trajectory("<answer>shirley temple.</answer>"), "qa_em").value == 1.0


@pytest.mark.parametrize("text", ["Shirley Temple", "<answer>Shirley Temple", "<answer></answer>"])
def test_without_an_answer_there_is_no_reward(text):
    assert score(trajectory(text), "qa_f1").value == 0.0


def test_an_answer_that_lists_everything_gains_nothing():
    listing = "<answer>" + "Shirley Temple " * 300 + "</answer>"
    assert score(trajectory(listing), "qa_f1").value == 0.0


def test_shaping_is_for_wrong_answers_only():
    options = {"format_score": 0.1, "retrieval_score": 0.2}
    seen = "<information>Shirley Temple was an actress</information>"

    reward = make_reward("qa_em", **options)

    def value(text, observation):
        return score(trajectory(text, observation=observation), reward).value

    assert value("<answer>Rome</answer>", seen) == pytest.approx(0.3)
    assert value("<answer>Rome</answer>", "<information>Rome</information>") == pytest.approx(0.1)
    assert value("I give up", seen) == pytest.approx(0.2)
    assert value("<answer>Shirley Temple</answer>", seen) == 1.0


def test_a_question_without_a_reference_is_a_fault_of_the_data():
    with pytest.raises(RewardError, match="has no reference answer"):
        score(trajectory("<answer>x</answer>", answer=()), "qa_em")
