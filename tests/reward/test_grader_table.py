"""The bars of the grader's table: a wrong answer that counts as right costs most."""

import importlib.util
import sys
import time
from pathlib import Path

import pytest

from agent_r1.reward.answers import load_verifier

FILE = Path(__file__).parents[2] / "benchmarks" / "grader.py"


@pytest.fixture(scope="module")
def table():
    spec = importlib.util.spec_from_file_location("grader_benchmark", FILE)
    module = sys.modules["grader_benchmark"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_grader_meets_its_bars(table):
    load_verifier()
    pairs = table.read_pairs()
    assert len(pairs) >= 400
    assert len({(p.text, p.reference) for p in pairs}) == len(pairs)
    judged = [(pair, table.ours(pair)) for pair in pairs]
    positives = [p for p, verdict in judged if verdict and not p.right]
    negatives = [p for p, verdict in judged if p.right and not verdict]
    assert len(positives) <= 0.005 * sum(not p.right for p in pairs), positives
    assert len(negatives) <= 0.03 * sum(p.right for p in pairs), negatives


@pytest.mark.parametrize("kind", ["made to please"])
def test_no_answer_made_to_please_the_parser_counts(table, kind):
    load_verifier()
    for pair in table.read_pairs():
        if pair.kind == kind:
            started = time.process_time()
            assert not table.ours(pair), pair
            assert time.process_time() - started < 30  # the limit is 5 s of processor time
