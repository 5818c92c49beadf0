"""Which machines of a cluster a run would take, worked out by hand."""

from agent_r1.config.load import load_config
from agent_r1.config.policy import VLLMConfig
from agent_r1.distributed.cluster import Node
from agent_r1.distributed.placement import Share, fit, needs_of, shortage
from agent_r1.distributed.services import engine_environment


def node(name, cores, cards):
    return Node(f"id-{name}", name, cores, cards)


def needs(*overrides, device="cuda"):
    return needs_of(load_config(None, overrides, environ={}), device)


TWO_OF_EIGHT = ("trainer.nnodes=2", "trainer.n_gpus_per_node=8")
ENGINES = (
    "trainer.layout=apart",
    "actor_rollout_ref.rollout.name=vllm",
    "actor_rollout_ref.rollout.vllm.replicas=3",
    "actor_rollout_ref.rollout.vllm.tensor_parallel_size=2",
)


def test_a_run_takes_a_card_and_a_processor_for_each_rank():
    found = needs(*TWO_OF_EIGHT)
    assert found.trainers == (Share("ranks 0 to 7", 8, 8), Share("ranks 8 to 15", 8, 8))
    assert found.engines == () and found.per_node == 8
    assert needs(*TWO_OF_EIGHT, device="cpu").trainers[0] == Share("ranks 0 to 7", 8, 0)


def test_engines_apart_take_the_cards_of_their_tensor_parallelism():
    assert needs(*TWO_OF_EIGHT, *ENGINES).engines == tuple(
        Share(f"engine {number}", 1, 2) for number in range(3)
    )


def test_trainers_get_machines_of_their_own_and_engines_what_is_left():
    nodes = [node("a", 96, 8), node("b", 96, 8), node("c", 96, 4), node("d", 8, 2)]
    found = fit(needs(*TWO_OF_EIGHT, *ENGINES), nodes)
    assert not found.missing
    assert {name: [share.name for share in shares] for name, shares in found.taken.items()} == {
        "a": ["ranks 0 to 7"],
        "b": ["ranks 8 to 15"],
        "c": ["engine 1", "engine 2"],
        "d": ["engine 0"],
    }


def test_two_trainers_never_share_a_machine_however_large_it_is():
    found = fit(needs(*TWO_OF_EIGHT), [node("big", 96, 16)])
    assert [share.name for share in found.missing] == ["ranks 8 to 15"]


def test_what_is_missing_is_a_table():
    nodes = [node("a", 96, 8), node("b", 96, 4)]
    assert shortage(fit(needs(*TWO_OF_EIGHT), nodes), nodes) == (
        "  a        8 GPUs  96 CPUs  ranks 0 to 7\n"
        "  b        4 GPUs  96 CPUs  nothing\n"
        "  missing  8 GPUs  8 CPUs   for ranks 8 to 15"
    )


def test_processors_count_too():
    found = fit(needs(*TWO_OF_EIGHT), [node("a", 7, 8), node("b", 96, 8)])
    assert [share.name for share in found.missing] == ["ranks 8 to 15"]


def test_an_engine_has_the_variables_of_its_settings_whatever_the_run_has(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", "/of/the/trainer")
    own = engine_environment(VLLMConfig(python="vllm", env={"OMP_NUM_THREADS": "4"}), "cpu")
    assert own["OMP_NUM_THREADS"] == "4"
    assert own["VLLM_SERVER_DEV_MODE"] == "1"
    assert own["PYTHONPATH"] == ""
    assert "PYTHONPATH" not in engine_environment(VLLMConfig(), "cpu")
