"""Sandbox services on every node of a Ray cluster: real ones, killed and stopped for real."""

import json
import os
import re
import secrets
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest
from trainer.conftest import TOY
from trainer.test_rl import assert_equal, final_state, lines

from agent_r1.config.load import load_config
from agent_r1.distributed.cluster import joined
from agent_r1.distributed.services import sandboxes_of
from agent_r1.sandbox.base import RunRequest, RunStatus
from agent_r1.sandbox.client import SandboxClient
from agent_r1.sandbox.isolation import LEVELS

from .conftest import SMALL

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200)]
TOKEN = "AGENT_R1_TEST_TOKEN"


@pytest.fixture(scope="module")
def isolation():
    from agent_r1.distributed.facts import strongest_isolation

    level, _ = strongest_isolation(LEVELS)
    return level


@contextmanager
def services(address, isolation, said):
    settings = ["sandbox.executor=ray", f"sandbox.isolation={isolation}", "sandbox.workers=4"]
    settings += [f"ray.address={address}", f"sandbox.token_env={TOKEN}"]
    with joined(address):
        made = sandboxes_of(load_config(None, settings, environ={}), said.append)
        try:
            for service in made:
                service.start()
            for service in made:
                until(lambda service=service: answers(service), made)
            yield made
        finally:
            for service in made:
                service.end()


def answers(service):
    try:
        return httpx.get(f"{service.url}/v1/ping", timeout=2).status_code < 500
    except httpx.TransportError:
        return False


def until(condition, made, patience_s=60.0):
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        for service in made:
            service.look_after()
        time.sleep(0.2)


def programs(client, count):
    """Run so many at once; the number that gave the right answer."""

    def one(number):
        done = client.run(RunRequest(code=f"print({number} * 7)"))
        return done.status is RunStatus.SUCCESS and done.stdout == f"{number * 7}\n"

    with ThreadPoolExecutor(16) as pool:
        return sum(pool.map(one, range(count)))


def ran(service):
    """Programs that this service has run since it started."""
    told = httpx.get(f"{service.url}/metrics", headers=bearer(), timeout=10).text
    return sum(float(n) for n in re.findall(r"^\w*runs_total\{[^}]*\} (\S+)", told, re.MULTILINE))


def bearer():
    return {"Authorization": f"Bearer {os.environ[TOKEN]}"}


def process_of(service):
    port = service.url.rpartition(":")[2]
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if "serve" in words and port in words and "agent_r1.distributed.tied" not in words:
            return int(folder.name)
    raise AssertionError(f"no process serves {service.url}")


@pytest.fixture
def both(two_nodes, isolation, monkeypatch):
    monkeypatch.setenv(TOKEN, secrets.token_hex(8))
    said = []
    with (
        services(two_nodes.address, isolation, said) as made,
        closing(SandboxClient([s.url for s in made], token=os.environ[TOKEN])) as client,
    ):
        yield made, client, said


def test_every_node_has_one_and_the_load_is_spread(both):
    made, client, _ = both
    assert len({service.node.id for service in made}) == 2
    assert programs(client, 60) == 60
    shares = [ran(service) for service in made]
    assert sum(shares) == 60
    assert min(shares) > 15


def test_a_killed_service_is_avoided_started_again_at_its_address_and_taken_back(both):
    made, client, said = both
    assert programs(client, 20) == 20
    os.kill(process_of(made[0]), signal.SIGKILL)
    assert programs(client, 40) == 40
    until(lambda: any("it is started again" in line for line in said), made)
    until(lambda: answers(made[0]), made)
    before = ran(made[0])
    until(lambda: programs(client, 20) == 20 and ran(made[0]) > before + 3, made)


def test_a_service_that_stands_still_is_avoided_and_taken_back(both):
    made, client, _ = both
    assert programs(client, 20) == 20
    stopped = process_of(made[1])
    os.kill(stopped, signal.SIGSTOP)
    try:
        before = ran(made[0])
        assert programs(client, 30) == 30
        assert ran(made[0]) == before + 30
    finally:
        os.kill(stopped, signal.SIGCONT)
    before = ran(made[1])
    until(lambda: programs(client, 20) == 20 and ran(made[1]) > before + 3, made)


def of_programs(run, at, isolation, tmp_path, instead):
    """Settings of a run whose tools are programs; at step ``at`` a service is killed."""
    options = {"at": at, "word": "serve", "mark": f"AGENT_R1_TEST_MARK={run}"}
    options |= {"killed": str(tmp_path / f"{run}.session"), "instead": instead}
    return [
        "sandbox.executor=ray",
        f"sandbox.isolation={isolation}",
        "tool.tools=[python]",
        "tool.timeout_s=250",
        f"tool.env={TOY}:ProgramEnv",
        f"tool.env_kwargs={json.dumps(options)}",
    ]


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("victim", ["service", "supervisor"])
def test_a_run_whose_sandbox_is_killed_under_a_program_has_the_trajectories_of_any_other(
    start, cluster, isolation, tmp_path, nodes, victim
):
    for _ in range(nodes):
        cluster.add_node(num_cpus=1, **SMALL)
    cluster.wait_for_nodes()
    said, instead = {}, None if victim == "service" else "actor"
    for run, at in (("whole", "never"), ("disturbed", "2.")):
        settings = of_programs(run, at, isolation, tmp_path, instead)
        _, process = start(run, *settings, f"ray.address={cluster.address}")
        said[run], _ = process.communicate(timeout=550)
        assert process.returncode == 0, said[run]
    assert (tmp_path / "disturbed.session").read_text()
    assert said["disturbed"].count("it is started again") == 1
    how = "was killed by signal 9" if victim == "service" else "was lost with its machine"
    assert how in said["disturbed"] and "started again" not in said["whole"]
    whole, disturbed = tmp_path / "whole", tmp_path / "disturbed"
    trajectories = lines(whole, "trajectories.jsonl")
    assert trajectories == lines(disturbed, "trajectories.jsonl")
    assert all(entry["outcome"] != "tool_error" for entry in trajectories)
    assert_equal(final_state(whole), final_state(disturbed))
