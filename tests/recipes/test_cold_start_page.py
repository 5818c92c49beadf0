"""docs/tutorials/cold_start.md does what it says, from top to bottom."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from agent_r1.data.traces import read_traces, trace_from_row

PAGE = Path(__file__).parents[2] / "docs" / "tutorials" / "cold_start.md"


def blocks():
    """The fenced blocks of the page as ``(language, text)``, in order."""
    return re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_both_ways_to_write_a_trace_mean_the_same():
    shown = [trace_from_row(json.loads(text)) for kind, text in blocks() if kind == "json"]
    assert len(shown) == 2
    assert (shown[0].prompt, shown[0].segments) == (shown[1].prompt, shown[1].segments)


@pytest.mark.slow
def test_the_page_can_be_followed(tmp_path):
    scripts = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    for kind, text in blocks():
        if kind == "json":
            continue
        command = [sys.executable, "-c", text] if kind == "python" else ["bash", "-ec", text]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{text}\n{done.stderr}"
    assert len(list(read_traces(tmp_path / "traces.jsonl"))) == 8
    assert (tmp_path / "runs/agent_r1/first/policy/model.safetensors").is_file()
    assert list((tmp_path / "runs/agent_r1/second/checkpoints").glob("step-*/policy"))
