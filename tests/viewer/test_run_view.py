"""A large run is looked at while its trajectories are still being taken in."""

import threading
import time

import pytest

from agent_r1.config import Config
from agent_r1.monitor import RunFolder
from agent_r1.monitor.index import IndexFile
from agent_r1.monitor.query import Query
from agent_r1.testing import make_trajectory
from agent_r1.viewer.run_view import RunView


@pytest.fixture
def view(tmp_path):
    with RunFolder.open(Config(trainer={"default_local_dir": str(tmp_path), "logger": ()})) as run:
        run.store([make_trajectory([f"word{i} text"]) for i in range(1200)], step=1)
    view = RunView("key", tmp_path)
    yield view
    view.close()


def test_nobody_waits_for_what_is_being_taken_in(view, monkeypatch):
    add, main = IndexFile._add, threading.current_thread()
    waits, goes_on = threading.Event(), threading.Event()

    def held(self, entries, deadline):
        if threading.current_thread() is not main:
            waits.set()
            assert goes_on.wait(30)
        return add(self, entries, 0.0)  # one record a transaction, as on a slow machine

    monkeypatch.setattr(IndexFile, "_add", held)
    index = view.index()
    assert 0 < index.count < 1200 and index.pending
    assert waits.wait(30)  # the other thread holds the file's lock
    before = index.count
    assert view.index() is index and index.count == before
    assert index.page(Query(text="text")).total == before
    monkeypatch.setattr(IndexFile, "_add", add)
    goes_on.set()
    while view.index().pending:
        time.sleep(0.01)
    assert index.count == 1200 and index.page(Query(text="word7")).total == 1 + 10 + 100
