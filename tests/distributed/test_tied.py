"""What is started for a run ends with what started it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .crew import until

STARTER = """
import os, subprocess, sys
tie = [sys.executable, "-m", "agent_r1.distributed.tied", "--group", str(os.getpid())]
sys.exit(subprocess.Popen([*tie, "sh", "-c", sys.argv[1]], start_new_session=True).wait())
"""
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of this")


def started(script):
    return subprocess.Popen([sys.executable, "-c", STARTER, script], stdout=subprocess.PIPE)


def test_children_of_a_command_end_with_what_started_it_however_that_ends():
    with started("sleep 1000 & echo $! $$; wait") as starter:
        processes = starter.stdout.readline().split()
        starter.send_signal(signal.SIGKILL)
        until(lambda: not any(alive(number.decode()) for number in processes))


def alive(process):
    """Whether it is there and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(("script", "code"), [("exit 7", 7), ("kill -9 $$", -signal.SIGKILL)])
def test_the_end_of_the_command_is_told_as_it_was(script, code):
    with started(script) as starter:
        assert os.waitstatus_to_exitcode(os.waitpid(starter.pid, 0)[1]) == code % 256
