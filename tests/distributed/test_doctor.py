"""``agent-r1 doctor`` as it is run: here, and over a cluster of two nodes."""

import json
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent_r1.cli import cli
from agent_r1.distributed.facts import hash_model, taken_ports, try_folder
from agent_r1.models.load import load_tokenizer
from agent_r1.testing import byte_tokenizer


def doctor(*words):
    done = CliRunner().invoke(cli, ["doctor", *words])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    return done


def findings_of(done):
    told = json.loads(done.stdout)
    return told, {(f["node"], f["check"]): f for f in told["findings"]}


def test_this_machine_is_looked_at_without_ray(tmp_path):
    byte_tokenizer().save_pretrained(tmp_path / "model")
    done = doctor(
        "--json",
        f"actor_rollout_ref.model.path={tmp_path / 'model'}",
        f"trainer.default_local_dir={tmp_path / 'runs' / 'first'}",
        "trainer.device=cpu",
    )
    told, found = findings_of(done)
    (node,) = told["nodes"]
    digest, _ = hash_model(str(tmp_path / "model"))
    assert found[node["node"], "tokenizer"]["found"] == digest
    assert found[node["node"], f"folder {tmp_path}"]["state"] == "ok"
    assert not (tmp_path / "runs").exists()
    assert done.exit_code == (0 if told["fit"] else 1)


def test_a_port_in_use_and_a_missing_folder_make_it_fail(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        missing = tmp_path / "missing"
        done = doctor(
            "--port",
            str(port),
            "--shared",
            str(missing),
            "sandbox.executor=http",
            "sandbox.endpoints=[http://127.0.0.1:9]",
        )
    assert done.exit_code == 1
    assert f"taken: {port}" in done.stdout
    lines = done.stdout.splitlines()
    assert any(line.startswith("fail") and f"folder {missing}" in line for line in lines)
    assert "sandbox" not in done.stdout


def test_a_hash_tells_tokenizers_apart_and_not_their_files(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(tmp_path / "one")
    load_tokenizer(tmp_path / "one").save_pretrained(tmp_path / "again")
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(tmp_path / "two")
    one, again, two = (hash_model(str(tmp_path / name))[0] for name in ("one", "again", "two"))
    assert one == again != two
    digest, error = hash_model(str(tmp_path / "absent"))
    assert digest == "" and "absent" in error


def test_a_folder_that_cannot_be_written_says_why():
    assert try_folder(Path("/proc")).error
    assert try_folder(Path("/absent/folder")).error == "No such file or directory"


def test_a_free_port_is_not_taken():
    with socket.create_server(("", 0)) as held:
        port = held.getsockname()[1]
        assert taken_ports([port]) == (port,)
    assert taken_ports([port]) == ()


@pytest.mark.ray
def test_every_node_of_a_cluster_is_looked_at(two_nodes, tmp_path):
    done = doctor(
        "--json",
        f"ray.address={two_nodes.address}",
        "trainer.nnodes=3",
        "--shared",
        str(tmp_path),
    )
    told, found = findings_of(done)
    nodes = [node["node"] for node in told["nodes"]]
    assert len(set(nodes)) == 2
    assert found["", "nodes"]["state"] == "fail" and done.exit_code == 1
    for check in ("clocks", "network", f"folder {tmp_path}", "torch"):
        assert found["", check]["state"] == "ok"
    assert set(told["clocks"]) == set(nodes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.ray
def test_an_address_without_a_cluster_says_how_to_start_one():
    done = CliRunner().invoke(cli, ["doctor", "ray.address=127.0.0.1:1"])
    assert "ray start --head" in str(done.exception)
