"""A run that trains while the page is open."""

import os
import subprocess
import sys

import pytest

from agent_r1.viewer.catalog import Catalog
from agent_r1.viewer.server import Server

from .conftest import overflow, until

pytestmark = pytest.mark.browser

TRAIN = """
from agent_r1.recipes.quickstart import quickstart
quickstart(None, ["trainer.total_training_steps=200", "trainer.test_freq=0",
                  "data.val_max_samples=4", "data.train_batch_size=4",
                  "actor_rollout_ref.actor.ppo_mini_batch_size=4",
                  "actor_rollout_ref.rollout.n=4"],
           ["trainer.total_training_steps=4", "data.val_max_samples=4"])
"""


@pytest.fixture
def training(tmp_path):
    """A quick start with a short cold start, under way in ``tmp_path``."""
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", TRAIN],
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        yield process
        process.kill()
        process.wait()


def test_new_runs_and_steps_appear_by_themselves(opened, tmp_path, training):
    with Server(Catalog([tmp_path])) as server, opened(server.address) as page:
        page.set_default_timeout(120_000)
        page.wait_for_selector("tr:has-text('cold-start')")
        row = page.locator("tr:has(:text-matches('rl$'))")
        row.wait_for()
        assert training.poll() is None, (tmp_path / "log").read_text()
        page.wait_for_selector(".state.training")
        until(
            page,
            "[...document.querySelectorAll('tr')].some(row => /rl$/.test(row.querySelector('.name')"
            "?.textContent) && parseInt(row.querySelector('[data-name=Step]').textContent) >= 2)",
            120,
        )
        row.locator("button.name").click()
        page.wait_for_selector(".note:has-text('follows the run')")
        step = "Number(document.querySelector('h1').textContent.match(/\\d+/))"
        first = page.evaluate(step)
        until(page, f"{step} >= {first + 2}", 120)
        assert page.evaluate("document.querySelectorAll('.group .sibling').length") == 16
        page.keyboard.press("g")
        page.keyboard.press("f")
        total = "parseInt(document.querySelector('[role=status] strong').textContent)"
        until(page, f"{total} > 0")
        found = page.evaluate(total)
        until(page, f"{total} > {found}", 60)
        assert overflow(page) == 0
