"""User ids for programs: a block belongs to one holder at a time, in whatever process."""

import os
import subprocess
import sys

import pytest

from agent_r1.errors import SandboxUnavailable
from agent_r1.sandbox import userids

pytestmark = pytest.mark.skipif(userids.shared() is None, reason="not root, or with few user ids")


def span(ids: userids.Ids | None) -> set[int]:
    assert ids is not None
    return set(range(ids.first, ids.first + ids.count))


def test_blocks_are_disjoint_and_come_back() -> None:
    first, second = userids.reserve(), userids.reserve()
    assert first is not None and second is not None
    try:
        assert not span(first) & span(second)
        assert not span(userids.shared()) & (span(first) | span(second))
        first.release()
        again = userids.reserve()
        assert again is not None
        again.release()
        assert again.first == first.first
    finally:
        first.release()
        second.release()


def test_a_block_of_another_process_is_taken_until_that_ends() -> None:
    code = (
        "from agent_r1.sandbox import userids\n"
        "ids = userids.reserve()\nprint(ids.first, flush=True)\ninput()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        theirs = int(holder.stdout.readline())
        ours = userids.reserve()
        assert ours is not None and theirs not in span(ours)
        ours.release()
        holder.kill()
    after = userids.reserve()
    assert after is not None and after.first <= theirs
    after.release()


def test_a_block_with_a_living_process_in_it_is_passed_over() -> None:
    free = userids.reserve()
    assert free is not None
    free.release()
    user = free.first + 7
    drop = f"import os; os.setresuid({user}, {user}, {user}); print(flush=True); input()"
    left = subprocess.Popen(
        [sys.executable, "-c", drop], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with left:
        assert left.stdout is not None
        left.stdout.readline()
        ours = userids.reserve()
        assert ours is not None and user not in span(ours)
        ours.release()
        left.kill()


def test_without_a_free_block_there_is_no_weaker_executor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(userids, "_take", lambda first: None)
    with pytest.raises(SandboxUnavailable, match="every block"):
        userids.reserve()


def test_an_ordinary_user_has_only_himself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert userids.shared() is None and userids.reserve() is None
