"""Tasks that a policy solves now and then: ``python solvable.py TRAJECTORIES TASKS OUT``.

A group of samples that all fail, or all succeed, teaches nothing, and sampling it costs as
much as any other. This keeps the tasks of ``TASKS`` that some trajectory of ``TRAJECTORIES``
(of an evaluation on these tasks) has solved.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow.parquet as parquet

from agent_r1.monitor.metrics import succeeded
from agent_r1.monitor.records import load_trajectories


def main(trajectories: Path, tasks: Path, out: Path) -> None:
    tried: dict[str, bool] = {}
    for trajectory in load_trajectories(trajectories):
        prompt = trajectory.task.prompt
        assert not isinstance(prompt, str)
        question = prompt[-1]["content"]
        tried[question] = tried.get(question, False) or succeeded(trajectory)
    table = parquet.read_table(tasks)
    kept = [tried.get(row["prompt"][-1]["content"], False) for row in table.to_pylist()]
    parquet.write_table(table.filter(kept), out)
    print(f"{sum(kept):,} of {len(tried):,} tasks that were tried can be solved: {out}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
