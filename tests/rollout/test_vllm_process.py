"""A server that the trainer starts ends with it, with all that it started itself."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent_r1.rollout.engines import vllm_process
from agent_r1.rollout.engines.vllm_process import VLLMProcess

SERVER = """
import os, signal, subprocess, sys, time
folder, stubborn = sys.argv[1], sys.argv[2] == "stubborn"

def told(*_):
    open(f"{folder}/told", "w").close()
    if not stubborn:
        os.killpg(0, signal.SIGKILL)

signal.signal(signal.SIGTERM, told)
child = subprocess.Popen([sys.executable, "-c", "import signal, time\\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\\ntime.sleep(600)"])
open(f"{folder}/pids.part", "w").write(f"{os.getpid()} {child.pid}")
os.rename(f"{folder}/pids.part", f"{folder}/pids")
while True:
    time.sleep(600)
"""
TRAINER = """
import sys, time
from pathlib import Path
from agent_r1.rollout.engines import vllm_process
vllm_process._GRACE_S = 0.5
server, folder, kind = sys.argv[1:]
command = [sys.executable, "-c", server, folder, kind]
process = vllm_process.VLLMProcess(command, {}, Path(folder, "log"))
process.start()
time.sleep(600)
"""


def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("kind", ["stubborn", "willing"])
def test_however_the_trainer_dies_its_server_and_that_ones_children_end(tmp_path, kind):
    trainer = subprocess.Popen([sys.executable, "-c", TRAINER, SERVER, tmp_path, kind])
    until((tmp_path / "pids").exists)
    pids = (tmp_path / "pids").read_text().split()
    assert all(map(alive, pids))
    trainer.kill()
    trainer.wait()
    until(lambda: not any(map(alive, pids)))
    assert (tmp_path / "told").exists()


def test_a_server_that_is_stopped_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_process, "_GRACE_S", 0.2)
    command = [sys.executable, "-c", SERVER, str(tmp_path), "stubborn"]
    process = VLLMProcess(command, dict(os.environ), tmp_path / "log")
    process.start()
    until((tmp_path / "pids").exists)
    pids = [*(tmp_path / "pids").read_text().split(), process._guard.pid]
    os.kill(process._guard.pid, signal.SIGTERM)  # does not end it
    asyncio.run(process.stop())
    until(lambda: not any(map(alive, pids)))
