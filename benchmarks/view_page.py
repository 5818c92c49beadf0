"""A large run in a browser: how long until something is seen, and until a filter has answered.

    python benchmarks/view_page.py runs/large --out page.json
    python benchmarks/view_page.py runs/large --against ../before/.venv/bin/python

Starts ``agent-r1 view`` and Chromium on a run that is indexed already, ``--rounds`` times, and
tells medians and the slowest, in milliseconds. ``first paint`` counts from the request for the
page until anything is painted, ``table of runs`` until its rows are, ``rows`` until the first
trajectories stand there. A question counts from the choice in the page until its rows are drawn;
a text comes at once, as if it were pasted, and then typed, a letter every 120 ms, which counts from
its last letter, with all that the page waits for more of them. ``--against`` takes turns with
another checkout. Needs Chromium (``CHROMIUM`` names it) and ``agent-r1[browser]``.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from agent_r1.testing.chromium import launch_chromium

QUESTIONS = {
    "outcome": ("select", "Outcome", "length"),
    "success too": ("select", "Success", "true"),
    "order by reward too": ("select", "Order", "reward true"),
    "text of all too": ("#find-text", "", "ubiquitous"),
    "text of 1,000 too": ("#find-text", "", "needle3"),
    "typed, text of all": ("typed", "", "problem"),
    "typed, text of 1,000": ("typed", "", "needle7"),
}
LETTER_MS = 120
"""From one letter to the next: 100 words a minute."""
PAUSE_MS = 1000
"""Before a text, so that it is no continuation of the one before."""

ASK = """async ([kind, label, value, pause]) => {
  const named = each => each.firstChild?.textContent === label, isText = kind !== "select";
  const field = isText ? document.querySelector("#find-text")
    : [...document.querySelectorAll(".filters label")].find(named).querySelector("select");
  const put = text => {
    field.value = text;
    field.dispatchEvent(new Event(isText ? "input" : "change", {bubbles: true}));
  };
  if (kind === "typed") {
    for (let end = 1; end < value.length; end++) {
      put(value.slice(0, end));
      await new Promise(next => setTimeout(next, pause));
    }
  }
  const asked = performance.getEntriesByType("resource").length;
  const began = performance.now();
  put(value);
  const fits = each => each.name.includes("api/trajectories") &&
    (!isText || new URL(each.name).searchParams.get("text") === value);
  return new Promise(done => {
    const look = () => {
      const answer = performance.getEntriesByType("resource").slice(asked).find(fits);
      if (!answer) return requestAnimationFrame(look);
      requestAnimationFrame(() => requestAnimationFrame(() => done({
        page: performance.now() - began, server: answer.duration,
        total: document.querySelector(".find [role=status] strong").textContent,
      })));
    };
    look();
  });
}"""

KEY = """fetch("api/runs").then(answer => answer.json())
  .then(({runs}) => runs.findLast(run => run.has_trajectories).key)"""

TABLE = """() => new Promise(done => {
  const look = () => document.querySelector(".run-table tbody tr")
    ? requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now())))
    : requestAnimationFrame(look);
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
    parser.add_argument("--against", help="The interpreter of another checkout.")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    pythons = {"": sys.executable} | ({"against": options.against} if options.against else {})
    taken: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in pythons}
    told: dict[str, dict[str, Any]] = {name: {} for name in pythons}
    for _ in range(options.rounds):
        for name, python in pythons.items():
            look(python, options.folder, taken[name], told[name])
    report = reported(taken[""], told[""])
    if options.against:
        report["against"] = reported(taken["against"], told["against"])
    text = json.dumps(report, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


def reported(taken: dict[str, list[float]], told: dict[str, Any]) -> dict[str, Any]:
    return told | {
        "median_ms": {name: round(statistics.median(all_), 1) for name, all_ in taken.items()},
        "slowest_ms": {name: round(max(all_), 1) for name, all_ in taken.items()},
    }


def look(python: str, folder: Path, taken: dict[str, list[float]], told: dict[str, Any]) -> None:
    """One server and one browser, both new."""
    from playwright.sync_api import sync_playwright

    command = [python, "-m", "agent_r1", "view", str(folder.resolve()), "--no-browser"]
    # In another folder, so that the interpreter's own checkout is imported and not this one.
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd="/") as server:
        try:
            address = address_of(server)
            with sync_playwright() as playwright:
                browser = launch_chromium(playwright)
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
    page.goto(address, wait_until="commit")
    taken["table of runs"].append(page.evaluate(TABLE))
    key = page.evaluate(KEY)
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
        if question[0] != "select":
            page.wait_for_timeout(PAUSE_MS)
        answer = page.evaluate(ASK, [*question, LETTER_MS])
        taken[name].append(answer["page"])
        taken[f"{name}, server"].append(answer["server"])
        told.setdefault("found", {})[name] = answer["total"]
    told["complaints"] = complaints


if __name__ == "__main__":
    main()
