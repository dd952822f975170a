"""The page of `first-cpp serve` in headless Chromium, with what a person does on it, and answers whose text is known."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator

import pytest
from server import NO_END

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
LONG = {"logit_bias": NO_END, "max_tokens": 24}
"""Fields of a request for an answer that does not end at once."""
in_chromium = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")


def chromium() -> Iterator[object]:
    """A driver, for a fixture."""
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
        self.until(lambda: self.script("return document.getElementById('model').textContent"))

    def find(self, selector: str):
        return self.browser.find_element("css selector", selector)

    def all(self, selector: str):
        return self.browser.find_elements("css selector", selector)

    def until(self, condition, timeout: float = 20.0):
        """What the condition returns, once it holds; elements that are drawn anew meanwhile are looked for again."""
        from selenium.common.exceptions import StaleElementReferenceException

        end = time.monotonic() + timeout
        while True:
            with contextlib.suppress(StaleElementReferenceException):
                if found := condition():
                    return found
            assert time.monotonic() < end, self.browser.page_source
            time.sleep(0.02)

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


def answer_with(page: Page, *parts: str, wait: int = 0, told: str = "null") -> None:
    """Let /v1/chat/completions answer with these parts, as answer "a1"; the bodies it gets are kept in window.asked."""
    page.script(
        """
        const [parts, wait, told] = arguments;
        window.asked = [];
        const real = window.real ??= window.fetch;
        window.fetch = (url, options) => {
          if (url !== "/v1/chat/completions") return real(url, options);
          window.asked.push(JSON.parse(options.body));
          const chunk = (delta, more) => `data: ${JSON.stringify({id: "a1", choices: [{delta}], ...more})}\\n\\n`;
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


def answer_by(page: Page, *deltas: dict, reason: str = "stop") -> None:
    """Let /v1/chat/completions answer with these deltas."""
    page.script(
        """
        const [deltas, reason] = arguments;
        window.asked = [];
        const real = window.real ??= window.fetch;
        window.fetch = (url, options) => {
          if (url !== "/v1/chat/completions") return real(url, options);
          window.asked.push(JSON.parse(options.body));
          const events = deltas.map((delta) => ({id: "a1", choices: [{delta, finish_reason: null}]}));
          events.push({id: "a1", choices: [{delta: {}, finish_reason: reason}]});
          const body = events.map((event) => `data: ${JSON.stringify(event)}\\n\\n`).join("") + "data: [DONE]\\n\\n";
          return Promise.resolve(new Response(body));
        };
        """,
        list(deltas),
        reason,
    )


def asking_for(page: Page, **fields: object) -> None:
    """Let the page's requests have these fields too: a random model may else end its answer at once."""
    page.script(
        """
        const real = window.fetch, fields = arguments[0];
        window.fetch = (url, options) => {
          if (options?.body) options.body = JSON.stringify({...JSON.parse(options.body), ...fields});
          return real(url, options);
        };
        """,
        fields,
    )


def said(page: Page) -> list[str]:
    return [one.text for one in page.all(".said .text")]


def act(page: Page, number: int, name: str) -> None:
    """Press a button under a message."""
    page.all(".said")[number].find_element("css selector", f"[data-action={name}]").click()


def told(n_skipped: int, tpot_ms: float = 20.0, **more) -> dict:
    """What the server says of an answer."""
    layers = {"n_layer": 6, "skipped_layers": list(range(n_skipped)), "keep": None, "expected_speedup": 1.4}
    return {"tokens": 40, "ttft_ms": 9, "tpot_ms": tpot_ms, "expected_change": None, "predicted_cost": None, **layers, **more}
