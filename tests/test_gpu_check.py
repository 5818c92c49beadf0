"""The GPU check, rehearsed: the very stages, with tiny shapes, on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_every_stage_runs_and_leaves_its_figures(tmp_path):
    done = subprocess.run(
        [
            "bash",
            ROOT / "scripts/gpu_check.sh",
            "--rehearse",
            "--short",
            "--output",
            tmp_path,
            "--python",
            sys.executable,
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    rows = {
        name: json.loads((tmp_path / f"{name}.json").read_text())["rows"]
        for name in ("ceilings", "update", "rollout", "step")
    }
    assert not [row for found in rows.values() for row in found if "error" in row]
    assert {row["what"] for row in rows["ceilings"]} == {"copy", "matmul_bf16"}
    assert all(row["grad_norm"] > 0 and row["planned_bytes"] > 0 for row in rows["update"])
    assert all(row["logprob_diff_max"] < 1e-4 for row in rows["rollout"])
    assert [len(row["steps"]) for row in rows["step"]] == [2]
    assert all(step["actor/grad_norm"] > 0 for step in rows["step"][0]["steps"])


def test_an_unknown_option_is_an_error_that_says_where_to_look():
    done = subprocess.run(
        ["bash", ROOT / "scripts/gpu_check.sh", "--nonsense"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and "--nonsense" in done.stderr
