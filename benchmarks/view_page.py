"""A large run in a browser: how long until something is seen, and until a filter has answered.

    python benchmarks/view_page.py runs/large --out page.json

Starts ``agent-r1 view`` and Chromium on a run that is indexed already, ``--rounds`` times, and
tells medians and the slowest, in milliseconds. ``first paint`` counts from the request for the
page, ``rows`` until the first trajectories stand there. A question counts from the choice in the
page until its rows are drawn; for text the page first waits 200 ms for more letters, which is
included. Needs Chromium (``CHROMIUM`` names it) and ``agent-r1[browser]``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]

QUESTIONS = {
    "outcome": ("select", "Outcome", "length"),
    "success too": ("select", "Success", "true"),
    "order by reward too": ("select", "Order", "reward true"),
    "text of all too": ("#find-text", "", "ubiquitous"),
    "text of 1,000 too": ("#find-text", "", "needle3"),
}

ASK = """([kind, label, value]) => new Promise(done => {
  const named = each => each.firstChild?.textContent === label;
  const field = kind === "select"
    ? [...document.querySelectorAll(".filters label")].find(named).querySelector("select")
    : document.querySelector(kind);
  const asked = performance.getEntriesByType("resource").length;
  const began = performance.now();
  field.value = value;
  field.dispatchEvent(new Event(kind === "select" ? "change" : "input", {bubbles: true}));
  const look = () => {
    const entries = performance.getEntriesByType("resource").slice(asked);
    const answer = entries.find(each => each.name.includes("api/trajectories"));
    if (!answer) return requestAnimationFrame(look);
    requestAnimationFrame(() => requestAnimationFrame(() => done({
      page: performance.now() - began, server: answer.duration,
      total: document.querySelector(".find [role=status] strong").textContent,
    })));
  };
  look();
})"""

SEEN = """() => ({
  paint: performance.getEntriesByName("first-contentful-paint")[0]?.startTime,
  rows: performance.now(),
})"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    taken: dict[str, list[float]] = defaultdict(list)
    told: dict[str, Any] = {}
    for _ in range(options.rounds):
        look(options.folder, taken, told)
    report = told | {
        "median_ms": {name: round(statistics.median(all_), 1) for name, all_ in taken.items()},
        "slowest_ms": {name: round(max(all_), 1) for name, all_ in taken.items()},
    }
    text = json.dumps(report, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


def look(folder: Path, taken: dict[str, list[float]], told: dict[str, Any]) -> None:
    """One server and one browser, both new."""
    from playwright.sync_api import sync_playwright

    command = [sys.executable, "-m", "agent_r1", "view", str(folder), "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = address_of(server)
            with sync_playwright() as playwright:
                program = os.environ.get("CHROMIUM") or shutil.which("chromium")
                browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
                visit(browser.new_page(), address, taken, told)
                browser.close()
            status = Path(f"/proc/{server.pid}/status").read_text()
            told["server_megabytes"] = int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) // 1024
        finally:
            server.terminate()


def address_of(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    for line in server.stdout:
        if found := re.search(r"http://\S+", line):
            return found[0]
    raise SystemExit("agent-r1 view ended without an address")


def visit(page: Any, address: str, taken: dict[str, list[float]], told: dict[str, Any]) -> None:
    complaints: list[str] = []
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(address)
    page.wait_for_selector(".run-table")
    key = page.evaluate("fetch('api/runs').then(r => r.json()).then(a => a.runs[0].key)")
    taken["first paint"].append(page.evaluate(SEEN)["paint"])
    page.goto("about:blank")
    page.goto(f"{address}#/run/{key}/find")  # the server has the run open by the next round
    page.wait_for_selector(".row", timeout=60_000)
    seen = page.evaluate(SEEN)
    taken["first paint of Find"].append(seen["paint"])
    taken["rows, run not open yet"].append(seen["rows"])
    page.reload()
    page.wait_for_selector(".row")
    taken["rows"].append(page.evaluate(SEEN)["rows"])
    for name, question in QUESTIONS.items():
        answer = page.evaluate(ASK, list(question))
        taken[name].append(answer["page"])
        taken[f"{name}, server"].append(answer["server"])
        told.setdefault("found", {})[name] = answer["total"]
    told["complaints"] = complaints


if __name__ == "__main__":
    main()
