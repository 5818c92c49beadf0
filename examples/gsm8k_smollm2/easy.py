"""Tasks that a weak policy solves now and then: ``python easy.py TRACES TASKS OUT MOST``.

A group of samples that all fail teaches nothing. GSM8K says how many calculations each
problem takes; this keeps the tasks of ``TASKS`` whose trace in ``TRACES`` has at most
``MOST`` of them.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pyarrow.parquet as parquet

from agent_r1.data.traces import read_traces

_ASSIGNMENT = re.compile(r"^x\d+ = ", re.MULTILINE)


def main(traces: Path, tasks: Path, out: Path, most: int) -> None:
    easy = {
        trace.prompt[-1]["content"]
        for trace in read_traces(traces)
        if len(_ASSIGNMENT.findall(trace.text)) <= most
    }
    table = parquet.read_table(tasks)
    kept = [row["prompt"][-1]["content"] in easy for row in table.to_pylist()]
    parquet.write_table(table.filter(kept), out)
    print(f"{sum(kept):,} of {len(kept):,} tasks take at most {most} calculations: {out}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
