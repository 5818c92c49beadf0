"""Clusters that nobody owns, judged: each property alone makes one thing fail."""

from dataclasses import replace

import pytest

from agent_r1.distributed.cards import Card
from agent_r1.distributed.facts import Facts, Folder
from agent_r1.distributed.verdict import Observed, Wanted, judge

H100 = Card("NVIDIA H100", 81559, 4, "570.86")
FIT = Facts(
    node="a",
    host="a",
    cores=104,
    memory=1 << 40,
    shm=1 << 36,
    cards=(H100,) * 8,
    links=("NV18",),
    fabric=("mlx5_0/1 ACTIVE 400 Gb/sec",),
    torch_cards=8,
    versions={"python": "3.12.3", "torch": "2.11.0", "agent_r1": "0.1.0", "vllm": "0.33.0"},
    folders=(Folder("/runs", "", 1 << 42),),
    isolation="strict",
    isolation_refused="",
    model_hash="c0ffee",
    model_error="",
    taken_ports=(),
)
WANTED = Wanted(nodes=2, cards=8)


def pair(**changes):
    """Two fit nodes, the second with changes."""
    return Observed(
        [FIT, replace(FIT, node="b", host="b", **changes)],
        clocks={"a": (0.001, 0.002), "b": (-0.003, 0.002)},
        unseen={"/runs": []},
    )


def failing(observed, wanted=WANTED):
    return [(f.node, f.check) for f in judge(observed, wanted) if f.state == "fail"]


def noted(observed, wanted=WANTED):
    return [(f.node, f.check) for f in judge(observed, wanted) if f.state == "note"]


def test_a_fit_cluster_has_nothing_to_remark():
    assert failing(pair()) == noted(pair()) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"torch_cards": 7}, ("b", "cards")),
        ({"torch_cards": 4, "cards": (H100,) * 4}, ("b", "cards")),
        ({"isolation": "landlock"}, ("b", "sandbox")),
        ({"isolation": ""}, ("b", "sandbox")),
        ({"folders": (Folder("/runs", "Read-only file system", 0),)}, ("b", "folder /runs")),
        ({"model_hash": "", "model_error": "no such folder"}, ("b", "tokenizer")),
        ({"model_hash": "decade"}, ("", "tokenizers")),
        ({"taken_ports": (29500,)}, ("b", "ports")),
        ({"versions": FIT.versions | {"torch": "2.12.0"}}, ("", "torch")),
        ({"versions": {"python": "3.12.3", "torch": "2.11.0", "vllm": "0.33.0"}}, ("", "agent_r1")),
    ],
)
def test_what_keeps_a_run_from_working_fails_where_it_is(changes, expected):
    assert failing(pair(**changes)) == [expected]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"links": ("SYS", "NV18")}, ("b", "links")),
        ({"fabric": ("mlx5_0/1 DOWN 400 Gb/sec",)}, ("b", "fabric")),
        ({"fabric": ()}, ("b", "fabric")),
        ({"shm": 64 << 20}, ("b", "machine")),
        ({"folders": (Folder("/runs", "", 1 << 30),)}, ("b", "folder /runs")),
        ({"versions": FIT.versions | {"vllm": "0.32.0"}}, ("", "vllm")),
        ({"cards": (*(H100,) * 7, replace(H100, used=70_000))}, ("b", "cards in use")),
        ({"cards": (*(H100,) * 7, replace(H100, name="NVIDIA L4"))}, ("b", "cards differ")),
    ],
)
def test_what_only_costs_is_a_note(changes, expected):
    assert failing(pair(**changes)) == []
    assert noted(pair(**changes)) == [expected]


def test_a_weaker_isolation_that_was_asked_for_is_enough():
    assert failing(pair(isolation="landlock"), replace(WANTED, isolation="landlock")) == []
    assert failing(pair(isolation=""), replace(WANTED, isolation=None)) == []


def test_without_a_wish_for_cards_a_machine_without_any_is_fit():
    bare = replace(FIT, cards=(), torch_cards=0, links=(), fabric=())
    assert failing(Observed([bare]), Wanted()) == []
    assert failing(Observed([bare]), Wanted(cards=1)) == [("a", "cards")]


@pytest.mark.parametrize(
    ("ahead", "uncertain", "failed", "noticed"),
    [
        (0.05, 0.0, False, False),
        (-0.5, 0.0, False, True),
        (0.5, 0.45, False, False),  # half a second that may be the network's
        (6.0, 0.1, True, False),
    ],
)
def test_a_clock_is_judged_by_what_is_certain(ahead, uncertain, failed, noticed):
    observed = replace(pair(), clocks={"a": (0.0, 0.0), "b": (ahead, uncertain)})
    assert (("", "clocks") in failing(observed)) is failed
    assert (("", "clocks") in noted(observed)) is noticed


def test_what_shows_only_between_nodes():
    assert failing(replace(pair(), unseen={"/runs": [("a", "b")]})) == [("", "folder /runs")]
    assert failing(replace(pair(), unreached=[("a", "b")])) == [("", "network")]
    assert failing(replace(pair(), lost={"c": "No module named 'agent_r1'"})) == [("c", "node")]
    assert failing(pair(), replace(WANTED, nodes=3)) == [("", "nodes")]
