"""The examples for Slurm and Kubernetes: run with stand-ins of the commands, and read."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from agent_r1.config.load import load_config
from agent_r1.distributed.cluster import Node
from agent_r1.distributed.placement import fit, needs_of

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "cluster"
SLURM = EXAMPLES / "slurm.sh"
STAND_INS = {
    "scontrol": '[[ $1 = show ]] && printf "%s\\n" ${3//,/ } || echo "scontrol $*" >>"$CALLS"',
    "srun": 'echo "srun $*" >>"$CALLS"; [[ ${*: -2:1} != hostname ]] || echo "10.0.0.7 fe80::1"',
    "agent-r1": 'echo "agent-r1 $*" >>"$CALLS"; [[ $1 != train ]] || exit "${TRAIN_CODE:-0}"',
    "ray": 'echo "not through srun" >>"$CALLS"',
    "sleep": "",
}


@pytest.fixture
def submit(tmp_path):
    """``submit(nodes, *words, train_code=0)``: the exit code and what was called."""
    for name, body in STAND_INS.items():
        file = tmp_path / name
        file.write_text(f"#!/usr/bin/env bash\n{body}\n")
        file.chmod(0o755)

    def run(nodes, *words, train_code=0):
        calls = tmp_path / "calls"
        calls.unlink(missing_ok=True)
        environ = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "AGENT_R1_BIN": str(tmp_path),
            "CALLS": str(calls),
            "SLURM_SUBMIT_DIR": str(tmp_path),
            "SLURM_JOB_ID": "17",
            "SLURM_JOB_NODELIST": ",".join(nodes),
            "SLURM_JOB_NUM_NODES": str(len(nodes)),
            "SLURM_CPUS_PER_TASK": "64",
            "SLURM_GPUS_ON_NODE": "8",
            "TRAIN_CODE": str(train_code),
        }
        done = subprocess.run(
            ["bash", str(SLURM), *words], env=environ, capture_output=True, text=True, timeout=30
        )
        told = calls.read_text().replace(f"{tmp_path}/", "") if calls.exists() else ""
        return done.returncode, told.splitlines()

    return run


def test_slurm_starts_ray_on_all_nodes_and_trains_on_them(submit):
    code, calls = submit(["n1", "n2", "n3"], "run.yaml", "trainer.seed=3")
    assert code == 0
    starts = sorted(call for call in calls if "ray start" in call)
    resources = "--block --num-cpus=64 --num-gpus=8"
    assert starts == [
        f"srun --overlap --nodes=1 --ntasks=1 --nodelist=n1 ray start {resources}"
        " --head --node-ip-address=10.0.0.7 --port=6379",
        f"srun --overlap --nodes=2 --ntasks=2 --nodelist=n2,n3 ray start {resources}"
        " --address=10.0.0.7:6379",
    ]
    settings = "--config run.yaml ray.address=10.0.0.7:6379 trainer.nnodes=3"
    settings += " trainer.n_gpus_per_node=8 trainer.seed=3"
    assert f"agent-r1 doctor {settings}" in calls and f"agent-r1 train {settings}" in calls


def test_slurm_on_one_node_has_a_head_alone(submit):
    _, calls = submit(["n1"], "run.yaml")
    assert sum("ray start" in call for call in calls) == 1


@pytest.mark.parametrize(("ended", "requeued"), [(1, False), (130, True)])
def test_slurm_submits_again_what_was_interrupted_and_hands_on_what_failed(submit, ended, requeued):
    code, calls = submit(["n1"], "run.yaml", train_code=ended)
    assert code == ended
    assert ("scontrol requeue 17" in calls) == requeued


def test_slurm_without_a_configuration_says_so(submit):
    code, calls = submit(["n1"])
    assert code != 0 and not calls


def test_slurm_asks_for_what_the_script_reads():
    asked = {
        line.split("=")[0].removeprefix("#SBATCH --")
        for line in SLURM.read_text().splitlines()
        if line.startswith("#SBATCH --")
    }
    assert {"nodes", "gpus-per-node", "cpus-per-task", "ntasks-per-node"} <= asked


def pods(job):
    """Each group's name, number of pods and pod."""
    cluster = job["spec"]["rayClusterSpec"]
    yield "head", 1, cluster["headGroupSpec"]["template"]["spec"]
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        yield group["groupName"], group["replicas"], group["template"]["spec"]


def test_kuberay_gives_the_run_what_it_takes():
    job = yaml.safe_load((EXAMPLES / "kuberay.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:4] == ["agent-r1", "train", "--config", "/shared/run.yaml"]
    config = load_config(None, words[4:], environ={})
    nodes = [
        Node(f"{name}-{i}", f"{name}-{i}", float(limits["cpu"]), float(limits["nvidia.com/gpu"]))
        for name, count, pod in pods(job)
        for limits in [container["resources"]["limits"] for container in pod["containers"]]
        for i in range(count)
        if "nvidia.com/gpu" in limits
    ]
    assert not fit(needs_of(config, "cuda"), nodes).missing
    assert fit(needs_of(config, "cuda"), nodes[:-1]).missing


def test_kuberay_mounts_only_what_there_is_and_shares_the_runs():
    job = yaml.safe_load((EXAMPLES / "kuberay.yaml").read_text())
    for _, _, pod in pods(job):
        volumes = {volume["name"] for volume in pod["volumes"]}
        (container,) = pod["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert set(mounts) == volumes and mounts["shared"] == "/shared"
        wanted = container["resources"]
        assert wanted["requests"] == wanted["limits"]
