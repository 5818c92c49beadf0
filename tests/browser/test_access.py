"""What other pages of the same browser get of a run: nothing."""

import http.server
import threading

import pytest

pytestmark = pytest.mark.browser

TRY = """async base => {
  const got = {};
  const fetched = options => fetch(base + "/api/runs", options).then(r => r.text()).catch(() => "");
  got.fetched = await fetched({credentials: "include"});
  got.blind = await fetched({credentials: "include", mode: "no-cors"});
  got.posted = await fetched({method: "POST", body: "x", credentials: "include"});
  const loads = (name, attributes) => new Promise(done => {
    const node = Object.assign(document.createElement(name), attributes);
    node.onload = () => done("loaded"); node.onerror = () => done("");
    document.body.append(node);
  });
  got.script = await loads("script", {src: base + "/assets/app.js"});
  got.picture = await loads("img", {src: base + "/assets/icon.svg"});
  return got;
}"""


@pytest.fixture
def foreign():
    """A page of another server on this machine: another origin, though the same site."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = b"<!doctype html><title>foreign</title><link rel=icon href='data:,'>"
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_a_foreign_page_reads_and_loads_nothing(browser, plain, foreign, name):
    context = browser.new_context()
    mine = context.new_page()
    mine.goto(plain)
    mine.wait_for_selector(".run-table")  # the cookie is there
    page = context.new_page()
    page.goto(f"http://{name}:{foreign}/")
    assert set(page.evaluate(TRY, plain.split("/?")[0]).values()) == {""}
    mine.reload()
    mine.wait_for_selector(".run-table")
    context.close()


def test_a_frame_of_a_foreign_page_stays_empty(browser, plain, foreign):
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"http://127.0.0.1:{foreign}/")
    page.evaluate(
        """to => new Promise(done => { const frame = document.createElement("iframe");
           frame.onload = done; frame.src = to; document.body.append(frame); })""",
        plain,
    )
    assert page.frames[1].locator("#app").count() == 0
    context.close()


def test_without_the_token_there_is_an_explanation_and_no_run(browser, plain):
    context = browser.new_context()
    page = context.new_page()
    answer = page.goto(plain.split("?")[0])
    assert answer.status == 401 and "token" in page.inner_text("body")
    context.close()


def test_everything_comes_from_the_server_itself(browser, plain):
    context = browser.new_context()
    page, asked = context.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(plain)
    page.wait_for_selector(".chart canvas")
    base = plain.split("/?")[0]
    assert asked and all(url.startswith(base + "/") for url in asked)
    context.close()
