"""The simulation behind docs/scaling.md, against times worked out by hand."""

import importlib.util
from pathlib import Path

import pytest

simpy = pytest.importorskip("simpy")
FILE = Path(__file__).resolve().parents[1] / "benchmarks" / "scaling.py"


@pytest.fixture(scope="module")
def scaling():
    import sys

    spec = importlib.util.spec_from_file_location("scaling", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["scaling"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["scaling"]


def served(scaling, *asked):
    """When each of these (tokens, new prompt tokens) is done, all asked at once."""
    env = simpy.Environment()
    replica = scaling.Replica(env)
    ends = []

    def one(tokens, fresh):
        yield replica.generate(tokens, fresh)
        ends.append(env.now)

    for tokens, fresh in asked:
        env.process(one(tokens, fresh))
    env.run(until=1000)
    return ends


def test_sequences_of_a_replica_advance_together_at_the_measured_pace(scaling):
    assert scaling.decode_s(1) == scaling.decode_s(64) == pytest.approx(0.0082)
    assert scaling.decode_s(256) == pytest.approx(0.0186)
    assert served(scaling, *[(100, 0)] * 64) == pytest.approx([0.82] * 64, rel=1e-3)
    assert served(scaling, (100, 0), (300, 0)) == pytest.approx([0.82, 2.46], rel=1e-3)


def test_a_prompt_holds_all_sequences_of_a_replica_up(scaling):
    prefill = 1000 / scaling.ASSUMED["prefill_tokens_s"]
    assert served(scaling, (100, 0), (200, 1000)) == pytest.approx(
        [0.82 + prefill, 1.64 + prefill], rel=1e-3
    )


def test_more_than_the_slots_wait(scaling):
    ends = served(scaling, *[(100, 0)] * 257)
    assert max(ends) == pytest.approx(1.86 + 0.82, rel=1e-3)


def test_an_update_of_few_tokens_takes_as_long_as_its_weights_travel(scaling):
    case = scaling.Case(64, share=0.5)
    assert scaling.update_s(case, 32 * 8192) == pytest.approx(0.8)
    assert scaling.update_s(case, 32 * 100) == pytest.approx(0.8)
    alone = scaling.Case(2, share=0.5)
    assert scaling.update_s(alone, 14_203 * 10) == pytest.approx(10.0)


def test_no_more_is_begun_than_the_bound_on_staleness_allows(scaling):
    case = scaling.Case(4, staleness=1, prompts=4, siblings=2, steps=3, endless=0.0)
    world = scaling.World(case)
    seen = []

    def look():
        while True:
            seen.append((world.begun, world.trained))
            yield world.env.timeout(0.1)

    world.env.process(world.sampler())
    world.env.process(look())
    world.env.run(world.env.process(world.learner()))
    assert all(begun <= (trained + 2) * 4 for begun, trained in seen)
    assert {begun for begun, trained in seen if trained == 0} >= {8}
    assert world.trained == 3
