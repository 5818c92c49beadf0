"""A Ray cluster of several nodes on this machine's loopback, ended by its own process ids."""

import os
import subprocess
import sys

import pytest
from trainer.conftest import toy_config, toy_model  # noqa: F401

from agent_r1.config.load import to_yaml

from .crew import Crew

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # loopback addresses, everywhere
SMALL = {"object_store_memory": 100 << 20, "include_dashboard": False}


@pytest.fixture
def cluster():
    """Makes nodes on demand; everything that was started is gone afterwards."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    made = Cluster(shutdown_at_exit=False)
    try:
        yield made
    finally:
        if ray.is_initialized():
            ray.shutdown()
        made.shutdown()


@pytest.fixture
def two_nodes(cluster):
    """A cluster whose nodes have two processors and one."""
    for cpus in (2, 1):
        cluster.add_node(num_cpus=cpus, **SMALL)
    cluster.wait_for_nodes()
    return cluster


@pytest.fixture
def start(toy_config, cluster, tmp_path):  # noqa: F811
    """``start(run, *settings)``: the run folder and the process of its driver.

    Processes of the run have ``AGENT_R1_TEST_MARK=run`` in their environment.
    """
    drivers = []

    def begin(run, *settings):
        config = toy_config(*settings, run=run)
        file = tmp_path / f"{run}.yaml"
        file.write_text(to_yaml(config))
        words = [sys.executable, "-m", "agent_r1", "train", "--config", str(file)]
        process = subprocess.Popen(
            [*words, f"ray.address={cluster.address}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"AGENT_R1_TEST_MARK": run},
            start_new_session=True,
        )
        drivers.append(process)
        return config.trainer.run_dir, process

    yield begin
    for process in drivers:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def two():
    """Two ranks, started once."""
    crew = Crew(2)
    yield crew
    crew.close()
