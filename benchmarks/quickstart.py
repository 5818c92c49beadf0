"""The quick start over seeds and algorithms: is it quick, and does it work every time?

    python benchmarks/quickstart.py                       # GRPO on five seeds
    python benchmarks/quickstart.py --seeds 0 --algorithms grpo gae reinforce_plus_plus
    python benchmarks/quickstart.py --out docs/results    # writes quickstart.md, pictures

Each run is a process of its own, as a user starts it, one after the other on all
processors; its wall-clock time includes the interpreter's start. A run whose report lies
in ``--runs`` already is not repeated, so that several sittings add up.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SUCCESS_BEFORE, SUCCESS_AFTER, SECONDS = 0.5, 0.9, 300.0
"""What every run has to stay within, reach, and take at most."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--algorithms", nargs="+", default=["grpo"])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "quickstart-benchmark")
    parser.add_argument("--out", type=Path, help="folder for quickstart.md and its pictures")
    parser.add_argument("overrides", nargs="*", help="settings for every run, dotted.key=value")
    options = parser.parse_args()
    results = []
    for algorithm in options.algorithms:
        for seed in options.seeds:
            folder = options.runs / f"{algorithm}-seed{seed}"
            results.append(run(folder, algorithm, seed, options.overrides))
            print(line(results[-1]), flush=True)
    if options.out:
        write_page(options.out, results, options.runs)
    missed = [r for r in results if not within_bars(r)]
    print(f"{len(results) - len(missed)} of {len(results)} runs are within the bars")
    sys.exit(1 if missed else 0)


def run(folder: Path, algorithm: str, seed: int, overrides: list[str]) -> dict[str, Any]:
    """One quick start; its report with the wall-clock seconds of the whole process."""
    wall = folder / "wall.json"
    if not wall.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        command = [sys.executable, "-m", "agent_r1", "quickstart"]
        command += [f"algorithm.adv_estimator={algorithm}", f"trainer.seed={seed}"]
        command += [f"trainer.default_local_dir={folder}", "trainer.logger=[]", *overrides]
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        wall.write_text(json.dumps({"wall_seconds": time.perf_counter() - started}))
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    facts = json.loads((folder / "rl" / "run.json").read_text())
    speed = sampled_per_second(folder / "rl" / "metrics.jsonl")
    return report | json.loads(wall.read_text()) | {"facts": facts, "tokens_per_second": speed}


def sampled_per_second(metrics: Path) -> float:
    """Tokens that the engine sampled, per second of sampling, tool calls included."""
    steps = [json.loads(line) for line in metrics.read_text().splitlines()]
    steps = [s for s in steps if "timing_s/gen" in s]
    trajectories = [s["response_length/mean"] * s["rollout/trajectories"] for s in steps]
    return float(sum(trajectories) / sum(s["timing_s/gen"] for s in steps))


def within_bars(result: dict[str, Any]) -> bool:
    before, after = result["before"], result["after"]
    return bool(
        before["success"] <= SUCCESS_BEFORE
        and after["success"] >= SUCCESS_AFTER
        and result["wall_seconds"] <= SECONDS
        and max(before["direct"], after["direct"]) < 0.01
    )


HEADER = (
    "| algorithm | seed | solved: cold start | **solved: after RL** | without the tool: before, "
    "after | calls the tool: before, after | cold start s | RL s | all s | tokens/s |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def line(result: dict[str, Any]) -> str:
    before, after, seconds = result["before"], result["after"], result["seconds"]
    cells = [
        result["algorithm"],
        str(result["seed"]),
        f"{before['success']:.3f}",
        f"**{after['success']:.3f}**",
        f"{before['direct']:.3f}, {after['direct']:.3f}",
        f"{before['tool_call_share']:.2f}, {after['tool_call_share']:.2f}",
        f"{seconds['cold start']:.0f}",
        f"{seconds['reinforcement learning']:.0f}",
        f"{result['wall_seconds']:.0f}",
        f"{result['tokens_per_second']:,.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


PAGE = """# The quick start, measured

`agent-r1 quickstart` (or `make quickstart`) builds a model of {parameters:.2f} million
parameters, fine-tunes it on {traces:,} traces of which six in ten are wrong on purpose, and trains
it by reinforcement learning for {steps} steps of {trajectories} trajectories with a Python tool
in the embedded sandbox. Solved means: of {problems} held-out problems, none of which occurs
in training, sampled at temperature 1, the share whose final answer is exactly right. *Without
the tool* is the same with the model made to answer at once.

{header}
{rows}

*All* is the wall-clock time of the whole command, from the start of the interpreter to the
report; *tokens/s* is what the engine sampled per second of rollouts, tool calls included.

![Course of seed {seed}](quickstart_curve.png)

![One held-out problem before and after](quickstart_trajectory.png)

Made by `python benchmarks/quickstart.py {arguments}` on {hardware}; Python {python},
torch {torch}, transformers {transformers}; {date}.
"""


def write_page(out: Path, results: list[dict[str, Any]], runs: Path) -> None:
    """``quickstart.md``, and two pictures of the first run."""
    out.mkdir(parents=True, exist_ok=True)
    first = results[0]
    facts = first["facts"]
    run_dir = runs / f"{first['algorithm']}-seed{first['seed']}" / "rl"
    shutil.copyfile(run_dir / "curve.png", out / "quickstart_curve.png")
    draw_example(run_dir, out / "quickstart_trajectory.png")
    hardware = facts["hardware"]
    page = PAGE.format(
        parameters=first["parameters"] / 1e6,
        traces=first["traces"],
        steps=first["rl_steps"],
        trajectories=first["trajectories"] // first["rl_steps"],
        problems=first["before"]["problems"],
        header=HEADER,
        rows="\n".join(map(line, results)),
        seed=first["seed"],
        arguments=" ".join(sys.argv[1:]),
        hardware=f"{hardware['cpu_cores']} cores of {hardware['cpu']}",
        python=facts["python"],
        torch=facts["packages"]["torch"],
        transformers=facts["packages"]["transformers"],
        date=facts["created"][:10],
    )
    (out / "quickstart.md").write_text(page)


MODEL_INK, TOOL_INK, FRAMES = "#1f2937", "#0e7490", ("#dc2626", "#059669")


def draw_example(run_dir: Path, target: Path) -> None:
    """One held-out problem before and after, the tool's words in another colour."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from agent_r1.recipes.quickstart import telling_example, validations

    _, before, after = validations(run_dir)
    example = telling_example(before, after)
    if example is None:
        return
    episodes = [lines_of(example.before), lines_of(example.after)]
    height = 0.24 * max(map(len, episodes)) + 1.0
    figure = Figure(figsize=(9, height), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    question = example.before.task.prompt[-1]["content"]
    title = f"{question}   (right: {example.before.task.answer})"
    figure.text(0.02, 1 - 0.25 / height, title, weight="bold", color=MODEL_INK, va="center")
    for column, (name, lines) in enumerate(zip(("before", "after"), episodes, strict=True)):
        box = [0.02 + 0.49 * column, 0.1 / height, 0.47, 1 - 0.75 / height]
        axis = figure.add_axes(box, xticks=[], yticks=[])
        axis.spines[:].set_color(FRAMES[column])
        axis.set_title(name, loc="left", fontsize=9, color=FRAMES[column], pad=3)
        for number, (text, ink) in enumerate(lines):
            y = 1 - (0.24 * number + 0.18) / (height * box[3])
            axis.text(0.03, y, text, family="monospace", fontsize=9, color=ink, va="center")
    figure.savefig(target)


def lines_of(trajectory: Any) -> list[tuple[str, str]]:
    """Each line of an episode with the colour of who wrote it."""
    lines = []
    for turn in trajectory.turns:
        lines += [(text, MODEL_INK) for text in turn.text.splitlines()]
        lines += [(text, TOOL_INK) for text in turn.observation_text.strip("\n").splitlines()]
    return lines


if __name__ == "__main__":
    main()
