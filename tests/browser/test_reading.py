"""Every view: its width, its contrast and names, and that the keyboard is enough."""

from dataclasses import replace

import pytest

from agent_r1.config import Config
from agent_r1.monitor import RunFolder
from agent_r1.testing import byte_tokenizer, make_trajectory
from agent_r1.types import Completion, Finish, Turn
from agent_r1.viewer.catalog import Catalog
from agent_r1.viewer.server import Server

from .conftest import NARROW, WIDE, overflow, show, until, view_addresses

pytestmark = pytest.mark.browser

CONTROLS = "a[href], button:not(:disabled), select:not(:disabled), input:not(:disabled), summary"
SERIOUS = {"serious", "critical"}


def visible_controls(page):
    return page.evaluate(
        f"""[...document.querySelectorAll("{CONTROLS}")].filter(each => each.checkVisibility())
            .map((each, i) => (each.dataset.number = i))"""
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_no_view_scrolls_sideways_or_has_a_serious_fault(opened, plain, size, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found = {}
    with opened(plain, size, scheme, bypass_csp=True) as page:
        page.wait_for_selector(".run-table")
        for address in view_addresses(page):
            show(page, address)
            if address.endswith("key=0"):
                for mode in ("Text", "Tokens"):
                    page.click(f"button:has-text('{mode}')")
                    check(page, f"{address} {mode}", axe, found)
            check(page, address, axe, found)
        page.keyboard.press("?")
        check(page, "help", axe, found)
    assert found == {}


def check(page, name, axe, found):
    if wider := overflow(page):
        found[name, "wider"] = wider
    for fault in axe.run(page).response["violations"]:
        if fault["impact"] in SERIOUS:
            found[name, fault["id"]] = [node["html"][:200] for node in fault["nodes"]][:3]


def test_the_colours_follow_the_system_and_the_reader(opened, plain):
    background = "getComputedStyle(document.body).backgroundColor"
    with opened(plain, scheme="light") as light, opened(plain, scheme="dark") as dark:
        light.wait_for_selector(".run-table")
        dark.wait_for_selector(".run-table")
        bright, deep = light.evaluate(background), dark.evaluate(background)
        assert bright != deep
        light.keyboard.press("d")
        until(light, f"{background} === '{deep}'")
        light.reload()
        until(light, f"{background} === '{deep}'")


def test_tab_reaches_every_control_and_shows_where_it_is(opened, plain):
    with opened(plain) as page:
        page.wait_for_selector(".run-table")
        for address in view_addresses(page):
            show(page, address)
            page.evaluate("document.activeElement.blur()")
            wanted, reached, blind = set(visible_controls(page)), set(), []
            for _ in range(2 * len(wanted) + 20):
                page.keyboard.press("Tab")
                number, shown = page.evaluate(
                    """(() => { const at = document.activeElement, style = getComputedStyle(at);
                       return [at.dataset.number, style.outlineStyle !== 'none']; })()"""
                )
                if number is not None:
                    reached.add(int(number))
                    blind += [] if shown else [number]
            assert wanted <= reached, (address, wanted - reached)
            assert blind == []


def test_the_keys_lead_from_the_runs_to_a_token_and_back(opened, plain):
    with opened(plain) as page:
        page.wait_for_selector(".run-table")
        press = page.keyboard.press
        press("?")
        page.wait_for_selector("dialog[open]")
        press("Escape")
        page.wait_for_selector("dialog", state="detached")
        press("j")
        press("Enter")
        page.wait_for_selector(".histogram")
        heading = page.locator("h1:has-text('Step')")
        assert heading.inner_text() == "Step 2"
        press("[")
        page.wait_for_selector("h1:text-is('Step 1')")
        press("g")
        press("f")
        page.wait_for_selector(".row")
        press("/")
        page.keyboard.type("SyntaxError")
        page.wait_for_selector("strong:text-is('4 trajectories')")
        press("Escape")
        press("j")
        press("Enter")
        page.wait_for_selector(".said.model")
        first = page.url
        press("j")
        until(page, f"location.href !== '{first}'")
        press("t")
        page.wait_for_selector(".tokens span")
        press("m")
        assert page.locator("label:has-text('Colour') select").input_value() != "probability"
        press("u")
        page.wait_for_selector("strong:text-is('4 trajectories')")
        for key, there in (("c", ".settings"), ("a", "h1:text-is('Alerts')"), ("r", ".run-table")):
            press("g")
            press(key)
            page.wait_for_selector(there)


@pytest.fixture
def long(tmp_path):
    """The address of a run of one trajectory, whose second turn has 5,000 tokens."""
    ids = tuple(byte_tokenizer().encode("ab" * 2500, add_special_tokens=False))
    first = make_trajectory(["<code>1</code>"]).turns[0]
    said = Completion(ids, tuple(-i / 5000 for i in range(5000)), Finish.EOS)
    turns = (first, Turn(first.next_prompt_ids, said, "ab" * 2500))
    with RunFolder(tmp_path / "run", Config(), seeds={"trainer.seed": 0}) as out:
        out.store([replace(make_trajectory(["x"]), turns=turns)], step=1)
    byte_tokenizer().save_pretrained(tmp_path / "model")
    with Server(Catalog([tmp_path / "run"]), tokenizer=tmp_path / "model") as server:
        yield server.address


def test_tokens_of_a_long_turn_are_shown_in_parts(opened, long):
    drawn = "[...document.querySelectorAll('.said.model')].at(-1).querySelectorAll('.tokens span')"
    with opened(long) as page:
        page.wait_for_selector(".run-table")
        show(page, next(a for a in view_addresses(page) if "trajectory" in a))
        page.keyboard.press("t")
        until(page, f"{drawn}.length === 4000")
        page.click("button:has-text('show more of 1000 further tokens')")
        until(page, f"{drawn}.length === 5000")
        last = page.evaluate(f"{drawn}[4999].title")
        assert "token 4999" in last and "log-probability: -1" in last
