"""Generators that are endless, slow, or several in one run."""

import itertools
import logging
import time

import pytest

from agent_r1.data.patience import told
from agent_r1.data.sources import ENDLESS, GENERATORS, load_tasks
from agent_r1.errors import DataError
from agent_r1.types import Task


def endless(split, seed, **options):
    for i in itertools.count():
        yield Task(f"{i}", f"{i}+1=")


def few(split, seed, **options):
    yield from (Task(f"{i}", f"{i}-1=") for i in range(2))


def twice(split, seed, **options):
    yield from (Task("same", "a"), Task("same", "b"))


HERE = f"generator:{__file__}:"


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_endless_generator_is_refused_with_the_setting_to_give(split):
    with pytest.raises(DataError, match=rf"data\.{split}_max_samples=10000"):
        load_tasks([f"{HERE}endless"], split=split)


@pytest.mark.parametrize("name", ["arithmetic", "episodes"])
def test_generators_that_never_end_are_refused_before_their_first_task(name, monkeypatch):
    def reading(*arguments):
        raise AssertionError("no task may be asked for")

    monkeypatch.setattr("agent_r1.data.sources.generate", reading)
    with pytest.raises(DataError, match=rf"generator:{name} never ends; .*train_max_samples"):
        load_tasks([f"generator:{name}"])


def test_an_endless_generator_is_read_as_far_as_is_asked():
    tasks = load_tasks([f"{HERE}endless"], max_samples=ENDLESS + 1).tasks
    assert len(tasks) == ENDLESS + 1
    assert tasks[-1].id == str(ENDLESS)


def test_no_task_beyond_the_last_is_asked_for():
    """The one after it may take for ever to come."""

    @GENERATORS.register("stops_giving")
    def stops_giving(split, seed, **options):
        yield Task("a", "a")
        raise AssertionError("one too many")

    assert len(load_tasks(["generator:stops_giving"], max_samples=1).tasks) == 1


def test_ids_of_several_generators_cannot_clash():
    sources = [f"{HERE}few", f"{HERE}few", f"{HERE}endless"]
    ids = [task.id for task in load_tasks(sources, max_samples=6).tasks]
    assert ids == ["0", "1", "few-2/0", "few-2/1", "endless/0", "endless/1"]


def test_two_equal_ids_of_one_generator_are_its_own_business():
    with pytest.raises(DataError, match="have the generator give each task an id of its own"):
        load_tasks([f"{HERE}twice"])


def test_a_slow_generator_is_named_while_it_is_waited_for(caplog):
    def slow():
        yield 1
        yield 2
        deadline = time.monotonic() + 60
        while not caplog.records and time.monotonic() < deadline:
            time.sleep(0.01)
        yield 3

    with caplog.at_level(logging.WARNING):
        assert list(told(slow(), "generator:mine", "Set this.", after_s=0.01)) == [1, 2, 3]
    assert caplog.messages[0].startswith("still reading generator:mine: ")
    assert caplog.messages[0].endswith(" Set this.")
