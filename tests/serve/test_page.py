"""The page of `first-cpp serve`, in headless Chromium."""

from __future__ import annotations

import shutil
import time

import httpx
import pytest
from routers_files import routed_model
from server import NO_END, serving

from first_cpp.serve.app import PAGE, PAGE_ROUTES

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
in_chromium = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")


@pytest.fixture(scope="module")
def server(tiny, models):
    with serving(routed_model(tiny, models, seed=41), "--chat-format", "chatml", "--max-skip", 0.5, "-c", 512) as started:
        yield started


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1100,800"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


class Page:
    """The page, with what a person does on it."""

    def __init__(self, browser, url: str) -> None:
        self.browser = browser
        browser.get(url)
        self.until(lambda: self.find("#model").text)

    def find(self, selector: str):
        return self.browser.find_element("css selector", selector)

    def all(self, selector: str):
        return self.browser.find_elements("css selector", selector)

    def until(self, condition, timeout: float = 20.0):
        end = time.monotonic() + timeout
        while not (found := condition()):
            assert time.monotonic() < end, self.browser.page_source
            time.sleep(0.02)
        return found

    def type(self, *keys: str) -> None:
        self.find("#text").send_keys(*keys)

    def ask(self, text: str) -> str:
        """Send a message and return the answer's text once it is complete."""
        count = len(self.all(".answer"))
        self.type(text, "\ue007")
        self.until(lambda: len(self.all(".answer")) > count and self.find("#send").is_displayed())
        return self.all(".answer")[-1].find_element("css selector", ".text").text

    def script(self, code: str, *arguments):
        return self.browser.execute_script(code, *arguments)

    def errors(self) -> list[str]:
        return [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.fixture
def page(browser, server):
    """Answers are made by a stand-in where a test sets `window.answer`, so that their text is known."""
    opened = Page(browser, server.url)
    yield opened
    assert opened.errors() == []


def answer_with(page: Page, *parts: str, wait: int = 0, told: str = "null") -> None:
    """Let /v1/chat/completions answer with these parts; the bodies it gets are kept in window.asked."""
    page.script(
        """
        const [parts, wait, told] = arguments;
        window.asked = [];
        const real = window.real ??= window.fetch;
        window.fetch = (url, options) => {
          if (url !== "/v1/chat/completions") return real(url, options);
          window.asked.push(JSON.parse(options.body));
          const chunk = (delta, more) => `data: ${JSON.stringify({choices: [{delta}], ...more})}\\n\\n`;
          const body = new ReadableStream({
            async start(stream) {
              const send = (text) => stream.enqueue(new TextEncoder().encode(text));
              options.signal.addEventListener("abort", () => stream.error(options.signal.reason));
              for (const part of parts) {
                send(chunk({content: part}));
                await new Promise((done) => setTimeout(done, wait));
              }
              send(chunk({}, {first_cpp: told}) + "data: [DONE]\\n\\n");
              stream.close();
            },
          });
          return Promise.resolve(new Response(body));
        };
        """,
        list(parts),
        wait,
        None if told == "null" else told,
    )


def test_files_have_strict_headers_and_name_no_other_host(server):
    for route in PAGE_ROUTES:
        response = httpx.get(server.url + route)
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "http://" not in response.text.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in response.text
    assert httpx.get(server.url + "/page/../app.py").status_code == 404
    assert httpx.get(server.url + "/").headers["content-type"].startswith("text/html")
    assert "innerHTML" not in (PAGE / "app.js").read_text()


@in_chromium
def test_chat_with_the_picture_of_its_layers(page, server):
    page.type("Hello there")
    page.type("\ue007")
    page.until(lambda: page.all(".layers"))
    assert page.find(".mine .text").text == "Hello there"
    assert len(page.all(".layers span")) == 6
    assert len(page.all(".layers .out")) == 2
    out = page.find(".layers .out").get_attribute("title")
    assert "skipped, keep score 0." in out
    assert page.find(".layers").get_attribute("aria-label").startswith("4 of 6 layers computed; skipped: ")
    figures = page.find(".figures").text
    assert "4 of 6 layers" in figures
    assert "TTFT " in figures
    assert page.script("return document.activeElement.id") == "text"
    page.find("#new").click()
    assert not page.all(".said")


@in_chromium
def test_turns_are_sent_with_what_was_said(page):
    answer_with(page, "I am ", "well.")
    assert page.ask("How are you?") == "I am well."
    assert page.ask("Good.") == "I am well."
    asked = page.script("return window.asked")
    assert [message["content"] for message in asked[1]["messages"]] == ["How are you?", "I am well.", "Good."]
    assert "skip" not in asked[0]


@in_chromium
def test_dial(page):
    answer_with(page, "x")
    assert page.find("#auto").is_selected()
    page.find("#count").send_keys("\ue014", "\ue014")  # right, twice
    assert not page.find("#auto").is_selected()
    assert page.find("#dialText").text == "2 of 6 layers skipped"
    page.ask("a")
    page.find("#count").send_keys("\ue010")  # end
    page.ask("b")
    page.find("#auto").click()
    page.ask("c")
    shares = [asked.get("skip") for asked in page.script("return window.asked")]
    assert shares == [pytest.approx(2 / 6), pytest.approx(3 / 6), "auto"]


@in_chromium
def test_keyboard(page):
    answer_with(page, *["word "] * 200, wait=20)
    page.type("one", "\ue008\ue007\ue008", "two")  # shift+enter
    assert page.find("#text").get_attribute("value") == "one\ntwo"
    page.type("\ue007")
    page.until(lambda: "word" in page.find(".answer .text").text)
    assert page.find("#stop").is_displayed()
    assert page.find(".answer").get_attribute("aria-busy") == "true"
    page.type("\ue00c")  # escape
    page.until(lambda: page.find("#send").is_displayed())
    assert page.find(".answer .figures").text == "stopped"
    answer_with(page, "again")
    assert page.ask("more") == "again"
    said = page.script("return window.asked")[0]["messages"]
    assert said[1]["content"].startswith("word word")
    page.script("document.getElementById('new').focus()")
    assert page.script("return getComputedStyle(document.activeElement).outlineStyle") in ("solid", "auto")


@in_chromium
def test_text_of_the_model_is_no_markup(page):
    attack = '<img src=x onerror="window.owned=1"><script>window.owned=1</script>&lt;b&gt;'
    answer_with(page, attack[:20], attack[20:])
    assert page.ask(attack) == attack
    assert page.script("return window.owned ?? null") is None
    assert not page.all("#log img, #log script")


@in_chromium
def test_stop_ends_the_answer_on_the_server_too(page, server):
    page.script(
        """
        const real = window.fetch, bias = arguments[0];
        window.fetch = (url, options) => {
          if (options?.body) options.body = JSON.stringify({...JSON.parse(options.body), logit_bias: bias});
          return real(url, options);
        };
        """,
        NO_END,
    )
    page.type("Go on", "\ue007")
    page.until(lambda: len(page.find(".answer .text").text) > 5)
    assert server.health()["answering"]
    page.find("#stop").click()
    server.wait_for(answering=False, timeout=2)
    page.until(lambda: page.find("#send").is_displayed())


@in_chromium
def test_errors_are_shown_and_the_question_is_not_lost(page):
    text = "x" * 3000
    page.script("document.getElementById('text').value = arguments[0]", text)
    page.type("\ue007")
    page.until(lambda: page.all(".wrong"))
    assert "tokens, at most 511" in page.find(".wrong").text
    assert page.find("#text").get_attribute("value") == text
    assert not page.all(".mine")
    page.find("#text").clear()
    page.errors()  # the browser logs the 400


@in_chromium
def test_key_is_asked_for(browser, tiny, models):
    model = routed_model(tiny, models, seed=42)
    with serving(model, "--chat-format", "chatml", "--api-key", "s3cret", "-c", 512, key="s3cret") as server:
        page = Page(browser, server.url)
        page.until(lambda: page.find("#key").is_displayed())
        for key in ("wrong", "s3cret"):
            page.find("#key").send_keys(key, "\ue007")
            page.find("#text").clear()
            page.type("Hello", "\ue007")
            page.until(lambda: page.all(".wrong") if key == "wrong" else page.all(".layers"))  # noqa: B023
        assert not page.find("#key").is_displayed()
        page.script("sessionStorage.clear()")
        page.errors()  # the browser logs the 401


@in_chromium
@pytest.mark.parametrize(("width", "height"), [(320, 568), (390, 844), (1280, 800)])
def test_fits_every_screen(page, width, height):
    page.browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 800}
    )
    try:
        answer_with(page, "a" * 500, told={"skipped_layers": list(range(20)), "n_layer": 80, "keep": None, "ttft_ms": 9,
                                           "tpot_ms": 9})  # fmt: skip
        page.ask("b" * 500)
        assert page.script("return document.documentElement.scrollWidth") <= width
        box = page.script("return document.getElementById('send').getBoundingClientRect().toJSON()")
        assert box["right"] <= width
        assert box["bottom"] <= height
        assert page.find(".layers").size["width"] <= width
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
