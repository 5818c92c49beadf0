"""Cold-start traces from supporting titles: ``python traces.py QUESTIONS CORPUS OUT [COUNT]``.

Each question says which articles its answer rests on. A trace looks them up one after the other
and answers. The searches are really run, so the passages between the queries are those that
training will see; a trace whose passages do not hold the answer is left out.
"""

from __future__ import annotations

import json
import sys

import pyarrow.parquet

from agent_r1.data.traces import Trace, model, tool, write_traces
from agent_r1.reward.qa import normalise
from agent_r1.tool.envs.search import SearchR1Env
from agent_r1.tool.tools.search import SearchTool


def main(questions: str, corpus: str, out: str, count: int) -> None:
    env = SearchR1Env([SearchTool(corpus, k=2)], max_tool_response_length=700)
    rows = pyarrow.parquet.read_table(questions).to_pylist()[:count]
    traces = [trace for row in rows if (trace := played(env, row)) is not None]
    print(f"{write_traces(out, traces)} traces of {len(rows)} questions in {out}")


def played(env: SearchR1Env, row: dict) -> Trace | None:
    answer = row["reward_model"]["ground_truth"][0]
    titles = json.loads(row["extra_info"]["supporting_titles"])
    segments, seen = [], ""
    for title in titles:
        query = f"<search>{title}</search>"
        observation, (success,), _ = env.step(query)
        if not success:
            return None
        seen += observation
        segments += [model(query), tool(observation)]
    if normalise(answer) not in ("yes", "no") and normalise(answer) not in normalise(seen):
        return None
    return Trace(tuple(row["prompt"]), (*segments, model(f"<answer>{answer}</answer>")), "hotpotqa")


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]) if len(sys.argv) > 4 else None)
