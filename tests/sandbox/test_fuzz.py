"""A short run of the fuzz; ``benchmarks/sandbox_fuzz.py`` is the long one."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize(
    ("part", "seconds"), [("parsers", 2), pytest.param("service", 15, marks=pytest.mark.slow)]
)
def test_nothing_that_is_sent_breaks_the_sandbox(part, seconds):
    command = [sys.executable, "sandbox_fuzz.py", "--part", part, "--seconds", str(seconds)]
    done = subprocess.run(
        command, cwd=BENCHMARKS, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0 and "nothing wrong" in done.stdout, done.stdout + done.stderr
