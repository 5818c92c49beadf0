"""Searching while one types: what is asked, what is given up, and what stands in the field."""

from urllib.parse import parse_qs, urlsplit

import pytest

from .conftest import show, until, view_addresses

pytestmark = pytest.mark.browser

FIELD = "document.getElementById('find-text').value"
TOTAL = "parseInt(document.querySelector('.find [role=status] strong').textContent)"


def text_of(request):
    return parse_qs(urlsplit(request.url).query).get("text", [""])[0]


def find(page):
    show(page, next(a for a in view_addresses(page) if a.endswith("/find")))
    page.evaluate("document.getElementById('find-text').focus()")


def test_the_first_letter_is_asked_at_once_and_given_up_for_the_word(opened, plain):
    """The answer to the first letter never comes, and that to the word is shown all the same."""
    with opened(plain) as page:
        find(page)
        every = page.evaluate(TOTAL)
        asked, given_up = [], []

        def answer(route):
            asked.append(text_of(route.request))
            if asked[-1] != "p":
                route.continue_()

        page.route("**/api/trajectories?*", answer)
        page.on("requestfailed", lambda request: given_up.append(text_of(request)))
        page.keyboard.press("p")
        until(page, "location.hash.endsWith('text=p')")
        page.keyboard.type("rint")
        until(page, "location.hash.endsWith('text=print')")
        until(page, f"{TOTAL} < {every}")
        until(page, f"{FIELD} === 'print'")
        assert asked[0] == "p" and asked[-1] == "print"
        assert "p" in given_up and "print" not in given_up
        page.unroute_all(behavior="ignoreErrors")


def test_no_letter_is_lost_and_the_address_wins_over_the_field(opened, plain):
    with opened(plain) as page:
        find(page)
        page.keyboard.type("answer", delay=40)
        until(page, "location.hash.endsWith('text=answer')")
        assert page.evaluate(FIELD) == "answer"
        page.get_by_role("link", name="Clear").click()
        until(page, f"{FIELD} === '' && !location.hash.includes('text')")
        page.keyboard.press("/")
        page.keyboard.type("five")
        until(page, "location.hash.endsWith('text=five')")
