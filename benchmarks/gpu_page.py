"""Write the figures of ``scripts/gpu_check.sh`` into ``docs/results/gpu.md``.

    python benchmarks/gpu_page.py DIR      # DIR: what gpu_check.sh wrote

The text around the figures stays; they stand between two comments of the page. The JSON files
are copied to ``docs/results/gpu/``, so that the page can be made again.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/results/gpu.md"
KEPT = ROOT / "docs/results/gpu"
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"


def read(folder: Path, name: str) -> Any:
    file = folder / f"{name}.json"
    return json.loads(file.read_text()) if file.exists() else None


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    titles = list(head)
    return [
        "| " + " | ".join(titles) + " |",
        "|" + "---|" * len(titles),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


def gib(count: float | None) -> str:
    return "" if count is None else f"{count / 2**30:.1f}"


def environment(folder: Path) -> list[str]:
    found, limits = read(folder, "environment"), read(folder, "ceilings")
    card = found["card"]
    ceilings = {row["what"]: row for row in limits["rows"]}
    return [
        f"{card['name']} ({gib(card['memory_bytes'])} GiB), {found['cpus']} processors, "
        f"torch {found['torch']}, transformers {found['transformers']}, Python {found['python']}. "
        f"Ceilings: {ceilings['copy']['bytes_per_second'] / 1e12:.2f} TB/s (copy, read and "
        f"written), {ceilings['matmul_bf16']['flops'] / 1e12:.0f} TFLOP/s (bfloat16 product of "
        "8192 x 8192 matrices).",
        "",
    ]


def updates(folder: Path) -> list[str]:
    rows = []
    for row in read(folder, "update")["rows"]:
        if told := row.get("error") or row.get("skipped"):
            rows.append([row["variant"], row["shape"], "", told, "", "", ""])
            continue
        rows.append(
            [
                row["variant"],
                row["shape"],
                f"{row['token_budget']:,}",
                f"{row['tokens_per_second']:,.0f}",
                f"{row['share_of_ceiling']:.1%}",
                gib(row["peak_bytes"]),
                gib(row.get("planned_bytes")),
            ]
        )
    head = ["what is trained", "shape", "tokens a pass", "tokens/s", "share of the ceiling"]
    return ["### One policy update", "", *table([*head, "peak GiB", "planned GiB"], rows)]


def rollouts(folder: Path) -> list[str]:
    rows = []
    for row in read(folder, "rollout")["rows"]:
        if "error" in row:
            rows.append([row["shape"], str(row["sequences"]), row["error"], "", "", "", "", ""])
            continue
        rows.append(
            [
                row["shape"],
                str(row["sequences"]),
                "recorded" if row["graphs"] else "launched one by one",
                f"{row['first_tokens_per_second']:,.0f}",
                f"{row['tokens_per_second']:,.0f}",
                f"{1e3 * row['seconds_per_step']:.1f}",
                f"{row['logprob_diff_mean']:.4f}",
                f"{row['logprob_diff_max']:.3f}",
            ]
        )
    head = ["shape", "sequences", "decode steps", "tokens/s, first round", "tokens/s, later"]
    head += ["ms a step", "mean difference", "largest"]
    return ["### Rollouts of two turns", "", *table(head, rows)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=KEPT)
    folder = parser.parse_args().folder
    if folder.resolve() != KEPT.resolve():
        KEPT.mkdir(parents=True, exist_ok=True)
        for file in [*folder.glob("*.json"), *folder.glob("profile_*.txt")]:
            shutil.copyfile(file, KEPT / file.name)
    figures = [*environment(KEPT), *updates(KEPT), *rollouts(KEPT)]
    block = f"{BEGIN}\n" + "\n".join(figures) + END
    page = PAGE.read_text()
    PAGE.write_text(re.sub(f"{BEGIN}.*?{END}", lambda _: block, page, flags=re.S))
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
