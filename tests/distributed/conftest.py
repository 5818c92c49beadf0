"""A Ray cluster of several nodes on this machine's loopback, ended by its own process ids."""

import os

import pytest
from trainer.conftest import toy_config, toy_model  # noqa: F401

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


@pytest.fixture(scope="session")
def two():
    """Two ranks, started once."""
    crew = Crew(2)
    yield crew
    crew.close()
