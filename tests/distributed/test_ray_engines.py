"""``trainer.layout=apart``: real vLLM servers that Ray places beside the ranks, and their deaths.

``VLLM_PYTHON=…/bin/python pytest -m "ray and vllm"``; a server takes a minute or more to start.
"""

import json

import pytest
from rollout.vllm_kit import model_folder, python
from trainer.conftest import TOY
from trainer.test_rl import lines

from agent_r1.trainer.build import train

from .conftest import SMALL
from .crew import of_session, until

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(1200)]
SERVER = "vllm.entrypoints.openai.api_server"
STEPS = 4
INSTEAD = {"server": None, "core": "child", "supervisor": "actor"}
HOW = {"server": "was killed by signal 9", "core": "", "supervisor": "was lost with its machine"}


@pytest.fixture
def settings(tmp_path):
    """``make(replicas)``: settings of a run whose engines are apart."""
    interpreter = python()
    model = model_folder(tmp_path / "model")

    def make(replicas):
        return [
            f"actor_rollout_ref.model.path={model}",
            "actor_rollout_ref.model.dtype=float32",
            "actor_rollout_ref.rollout.response_length=60",
            "actor_rollout_ref.rollout.stop_token_ids=[0,1,2,3]",
            "data.max_response_length=160",
            f"trainer.total_training_steps={STEPS}",
            "trainer.layout=apart",
            "actor_rollout_ref.rollout.name=vllm",
            f"actor_rollout_ref.rollout.vllm.replicas={replicas}",
            f"actor_rollout_ref.rollout.vllm.python={interpreter}",
            "actor_rollout_ref.rollout.vllm.args=[--block-size,'32']",
            "actor_rollout_ref.rollout.vllm.env={VLLM_CPU_OMP_THREADS_BIND: '0-1'}",
        ]

    return make


@pytest.fixture
def nodes(cluster):
    """``make(*cpus)``: a cluster of nodes with so many processors each."""

    def make(*cpus):
        for count in cpus:
            cluster.add_node(num_cpus=count, **SMALL)
        cluster.wait_for_nodes()

    return make


def killing(run, tmp_path, victim):
    mark, killed = f"AGENT_R1_TEST_MARK={run}", tmp_path / "killed.session"
    options = {"at": "2.", "mark": mark, "killed": str(killed)}
    options |= {"word": SERVER, "instead": INSTEAD[victim]}
    return [f"tool.env={TOY}:EngineKillingEnv", f"tool.env_kwargs={json.dumps(options)}"]


def check(run, toy_config, model):
    """Every step has the trajectories of an undisturbed run, sampled by its own policy."""
    records = lines(run, "trajectories.jsonl")
    config = toy_config(
        f"actor_rollout_ref.model.path={model}",
        f"trainer.total_training_steps={STEPS}",
        run="undisturbed",
    )
    train(config)
    expected = lines(config.trainer.run_dir, "trajectories.jsonl")
    assert [(r["step"], r["id"]) for r in records] == [(r["step"], r["id"]) for r in expected]
    assert sum(r["split"] == "train" for r in records) == 16 * STEPS
    steps = [entry for entry in lines(run, "metrics.jsonl") if "rollout/trajectories" in entry]
    assert [step["weights/version"] for step in steps] == [*range(1, STEPS + 1)]
    for step in steps:
        assert step["rollout/trajectories"] == 16 and step["rollout/failed"] == 0
        assert step["training/logprob_diff_max"] < 1e-3
    assert all(step["actor/grad_norm"] > 0 for step in steps)


def test_ranks_on_two_nodes_train_with_an_engine_on_a_third(
    start, nodes, settings, toy_config, tmp_path
):
    nodes(1, 1, 1)
    run, process = start("apart", *settings(1), "trainer.nnodes=2", "trainer.n_gpus_per_node=1")
    weights = run.with_name("apart.weights")
    until(lambda: list(weights.rglob("version-*.safetensors")), 600.0)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    table = [line.split() for line in said.splitlines()[2:5]]
    assert [row[:2] for row in table] == [["rank", "0"], ["rank", "1"], ["engine", "0"]]
    assert len({row[2] for row in table}) == 3
    assert not weights.exists()
    assert "Application startup complete" in (run / "vllm-0.log").read_text()
    check(run, toy_config, tmp_path / "model")


@pytest.mark.parametrize(("victim", "replicas"), [("server", 1), ("core", 1), ("supervisor", 2)])
def test_an_engine_killed_in_mid_flight_is_replaced_and_its_trajectories_are_sampled_again(
    start, nodes, settings, toy_config, tmp_path, victim, replicas
):
    nodes(1, replicas)
    disturbance = killing("killed", tmp_path, victim)
    run, process = start("killed", *settings(replicas), *disturbance)
    said, _ = process.communicate(timeout=1100)
    assert process.returncode == 0, said
    session = (tmp_path / "killed.session").read_text()
    assert session and not of_session(session)  # not even of its children anything is left
    assert said.count("it is started again") == 1 and HOW[victim] in said
    assert sum(line.startswith("lost http") for line in said.splitlines()) == 1
    check(run, toy_config, tmp_path / "model")
