"""docs/tutorials/retool.md does what it says, from top to bottom."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agent_r1.data.prepare.catalogue import SOURCES
from agent_r1.data.prepare.download import Downloader

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "tutorials" / "retool.md"
DATA = ROOT.parent / "shared" / "data"
PUBLISHED = {
    SOURCES["retool"].train[-1]: "rl_math/dapo_math_17k.parquet",
    SOURCES["gsm8k"].train[0]: "gsm8k/train.jsonl",
    SOURCES["gsm8k"].test[0]: "gsm8k/test.jsonl",
    SOURCES["math500"].test[0]: "math/math500.jsonl",
    SOURCES["aime24"].test[0]: "competition/aime24.jsonl",
    SOURCES["aime25"].test[0]: "competition/aime25.jsonl",
}


def blocks():
    """The fenced blocks of the page as ``(language, text)``, in order."""
    return re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(), re.DOTALL)


def downloaded(cache):
    """Put copies of the published files where a download would have left them."""
    for address, name in PUBLISHED.items():
        place = Downloader(cache / "agent-r1" / "data")._place(address)
        place.parent.mkdir(parents=True)
        shutil.copyfile(DATA / name, place)


def test_every_python_block_is_python_and_every_link_leads_somewhere():
    for kind, text in blocks():
        if kind == "python":
            compile(text, str(PAGE), "exec")
    for link in re.findall(r"\]\(([^)#:]+)\)", PAGE.read_text()):
        assert (PAGE.parent / link).exists(), link


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not DATA.is_dir(), reason="the data sets are not here")
def test_the_page_can_be_followed(tmp_path):
    downloaded(tmp_path / "cache")
    shutil.copy(ROOT / "examples/trainer/run_ppo_retool.sh", tmp_path)
    scripts = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    for kind, text in blocks():
        if kind not in ("python", "bash"):
            continue
        if text.startswith("# counting.py"):
            (tmp_path / "counting.py").write_text(text)
        command = [sys.executable, "-c", text] if kind == "python" else ["bash", "-ec", text]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    (report,) = json.loads((tmp_path / "results" / "results.json").read_text())
    assert report["tasks"] == 8
    assert (tmp_path / "my-agent" / "model.safetensors").is_file()
