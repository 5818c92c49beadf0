"""Very long trajectories in the application: how long the server takes to answer, and how much.

    python benchmarks/view_trajectory.py --shapes 4x1000000 60x50000 400x2000

Each shape is turns x tokens of the model in a turn; the environment answers with a tenth as many.
Told are the seconds and megabytes of the first answer, of a second one, and of the first 4,000
tokens of the second turn, and the most memory that the server's process took. Memory to make them:
about 100 bytes a token, and 8 for each token of each turn's context.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from agent_r1.monitor.arrows import ArrowFile
from agent_r1.monitor.records import Stored
from agent_r1.testing import byte_tokenizer
from agent_r1.types import Completion, Finish, Outcome, Reward, Task, ToolCall, Trajectory, Turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["4x1000000", "60x50000", "400x2000"])
    parser.add_argument("--folder", type=Path, help="Where they are kept, or were made before.")
    parser.add_argument("--only", choices=["write", "ask"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = options.folder or Path(made)
        if options.only != "ask":
            write(folder, [tuple(map(int, shape.split("x"))) for shape in options.shapes])
        if options.only != "write":
            print(json.dumps(ask(folder), indent=2))


def write(folder: Path, shapes: list[tuple[int, ...]]) -> None:
    (folder / "run").mkdir(parents=True, exist_ok=True)
    byte_tokenizer().save_pretrained(folder / "model")
    rng = np.random.default_rng(0)
    file = ArrowFile(folder / "run" / "trajectories.arrows")
    for step, (turns, tokens) in enumerate(shapes, start=1):
        file.append([Stored(trajectory(rng, turns, tokens), step, "train")])
    file.close()


def trajectory(rng: np.random.Generator, count: int, tokens: int) -> Trajectory:
    turns: list[Turn] = []
    context: tuple[int, ...] = (65, 66)
    for _ in range(count):
        said, seen = (rng.integers(97, 123, n).tolist() for n in (tokens, tokens // 10))
        sure = (-np.abs(rng.standard_normal(tokens).astype(np.float32))).tolist()
        turn = Turn(
            prompt_ids=context,
            completion=Completion(tuple(said), tuple(sure), Finish.STOP),
            text=bytes(said).decode(),
            observation_ids=tuple(seen),
            observation_text=bytes(seen).decode(),
            tool_calls=(ToolCall(True, 0.1),),
        )
        turns.append(turn)
        context = turn.next_prompt_ids
    task = Task("long", "a question", "1", "made")
    return Trajectory(task, f"{count}", 0, tuple(turns), Outcome.FINISHED, Reward(1.0))


def ask(folder: Path) -> dict[str, Any]:
    from starlette.testclient import TestClient

    from agent_r1.viewer.catalog import Catalog
    from agent_r1.viewer.server import make_app

    app = make_app(Catalog([folder / "run"]), "token", folder / "model")
    found: dict[str, Any] = {}
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        client.get("/?token=token")
        run = client.get("/api/runs").json()["runs"][0]["key"]
        listed = client.get("/api/trajectories", params={"run": run, "descending": "false"})
        for row in listed.json()["rows"]:
            asked = {"run": run, "key": row["key"]}
            tokens = asked | {"turn": 1, "end": 4000}
            found[f"{row['turns']} turns, {row['tokens']} tokens"] = {
                "first": timed(client, "trajectory", asked),
                "again": timed(client, "trajectory", asked),
                "tokens": timed(client, "tokens", tokens),
            }
    status = Path("/proc/self/status").read_text()
    return found | {"memory_megabytes": int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) // 1024}


def timed(client: Any, name: str, asked: dict[str, Any]) -> dict[str, float]:
    began = time.perf_counter()
    answer = client.get(f"/api/{name}", params=asked)
    return {
        "seconds": round(time.perf_counter() - began, 3),
        "megabytes": round(len(answer.content) / 1e6, 2),
        "status": answer.status_code,
    }


if __name__ == "__main__":
    main()
