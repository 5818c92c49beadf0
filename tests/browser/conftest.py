"""A browser, runs to look at, and what every page must satisfy."""

import time
from contextlib import contextmanager
from dataclasses import replace

import pytest

from agent_r1.config import Config
from agent_r1.monitor import RunFolder, rollout_metrics
from agent_r1.testing import byte_tokenizer, make_trajectory
from agent_r1.testing.chromium import chromium_program, launch_chromium
from agent_r1.types import Outcome, Reward, Task
from agent_r1.viewer.catalog import Catalog
from agent_r1.viewer.server import Server

WIDE, NARROW = (1280, 900), (390, 844)


@pytest.fixture(scope="session")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[browser]'")
    if chromium_program() is None:
        pytest.skip("no Chromium: apt-get install chromium, or set CHROMIUM to its path")
    with api.sync_playwright() as playwright:
        chromium = launch_chromium(playwright)
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser):
    """``with opened(address) as page``; a complaint on the console fails the test."""

    @contextmanager
    def open_page(address, size=WIDE, scheme="light", **options):
        width, height = size
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, **options
        )
        page, complaints = context.new_page(), []
        page.set_default_timeout(15_000)
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(address)
        yield page
        assert complaints == []
        context.close()

    return open_page


def numbered(base, task, index, value):
    return replace(
        base,
        task=task,
        group_id=f"g:{task.id}",
        index=index,
        reward=None if value is None else Reward(value, {"accuracy": value}),
    )


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    """The address of two runs of two steps, with groups, failures, code, thinking, tokens."""
    root = tmp_path_factory.mktemp("plain")
    for name in ("one", "two"):
        with RunFolder(root / name, Config(), seeds={"trainer.seed": 0}) as out:
            for step in (1, 2):
                batch = [
                    numbered(base, Task(f"sum {i}", "What is 2+3?", 5, "sums"), index, value)
                    for i in range(2)
                    for index, (base, value) in enumerate(plain_texts(i))
                ]
                out.store(batch, step=step)
                out.log(rollout_metrics(batch) | SHOWN | {"actor/entropy": 1.0 / step}, step=step)
                out.log({"val-core/sums/accuracy/mean@1": 0.5}, step=step)
    byte_tokenizer().save_pretrained(root / "model")
    with Server(Catalog([root / "one", root / "two"]), tokenizer=root / "model") as server:
        yield server.address


SHOWN = {"timing_s/step": 2.0, "timing_s/gen": 1.5, "critic/rewards/mean": 0.5}


def plain_texts(i):
    called = ("<think>Add them.</think><code>print(2 + 3)</code>", "<output>5</output>")
    failed = ("<code>print(</code>", "<output>SyntaxError</output>")
    yield make_trajectory([called, "<answer>5</answer>"]), 1.0
    yield make_trajectory([failed, "<answer>4</answer>"], calls=[[False], []]), 0.0
    yield make_trajectory(["no answer"], outcome=Outcome.LENGTH), None if i else 0.0


def view_addresses(page):
    """The page's views, as addresses after ``#``, of the first run that has trajectories."""
    key = page.evaluate("fetch('api/runs').then(r => r.json()).then(a => a.runs[0].key)")
    places = ("step", "find", "trajectory?key=0", "settings")
    return ["/", "/alerts", *(f"/run/{key}/{place}" for place in places)]


READY = {
    "step": ".histogram",
    "find": ".row",
    "trajectory": ".said.model",
    "settings": ".settings",
    "alerts": "h1",
    "": ".chart canvas",
}


def show(page, address):
    """Go there and wait until it is drawn."""
    page.evaluate("to => { location.hash = to; }", address)
    page.wait_for_selector(READY[address.split("?")[0].rsplit("/", 1)[-1]])
    until(page, "!document.querySelector('.trajectory.old')")


def until(page, expression, seconds=15.0):
    """Wait until a JavaScript expression is true (the page's policy forbids ``eval``)."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"{expression} stayed false"
        page.wait_for_timeout(50)


def overflow(page):
    """By how many pixels the page is wider than the window."""
    return page.evaluate("document.documentElement.scrollWidth - innerWidth")
