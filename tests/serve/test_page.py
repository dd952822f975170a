"""The page of `first-cpp serve`, in headless Chromium."""

from __future__ import annotations

import contextlib
import re
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


@pytest.fixture
def page(browser, server):
    """Answers are made by a stand-in where a test sets `window.answer`, so that their text is known."""
    browser.get("about:blank")
    browser.execute_cdp_cmd("Storage.clearDataForOrigin", {"origin": server.url, "storageTypes": "local_storage"})
    browser.get_log("browser")  # errors of a server that has ended since
    opened = Page(browser, server.url)
    yield opened
    assert opened.errors() == []


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


LONG = {"logit_bias": NO_END, "max_tokens": 24}


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
    asking_for(page, **LONG)
    page.type("Hello there")
    page.type("\ue007")
    page.until(lambda: page.all(".gained") and "fidelity" in page.find(".gained").text)  # drawn for the last time
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
    assert re.fullmatch(r"2 of 6 layers skipped, about 1\.[34]\dx", page.find("#dialText").text)
    page.ask("a")
    page.find("#count").send_keys("\ue010")  # end
    assert page.find("#dialText").text.startswith("fastest: 3 of 6 layers skipped")
    assert page.find("#count").get_attribute("aria-valuetext") == page.find("#dialText").text
    page.ask("b")
    page.find("#count").send_keys("\ue011")  # home
    assert page.find("#dialText").text == "full model: every layer"
    assert [one.text for one in page.all(".ends .soft")] == ["full model", "fastest"]
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
    page.until(lambda: page.find(".answer .actions").is_displayed())
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


def said(page: Page) -> list[str]:
    return [one.text for one in page.all(".said .text")]


def act(page: Page, number: int, name: str) -> None:
    """Press a button under a message."""
    page.all(".said")[number].find_element("css selector", f"[data-action={name}]").click()


def told(n_skipped: int, tpot_ms: float = 20.0, **more) -> dict:
    """What the server says of an answer."""
    layers = {"n_layer": 6, "skipped_layers": list(range(n_skipped)), "keep": None, "expected_speedup": 1.4}
    return {"tokens": 40, "ttft_ms": 9, "tpot_ms": tpot_ms, "expected_change": None, "predicted_cost": None, **layers, **more}


MARKDOWN = """# Title
Some *soft*, **strong** and `inline` words in snake_case_names, 2 < 3 & 4.

- one
  1. inner
- two

> quoted

| left | right |
| --- | ---: |
| a \\| b | `c` |

```python
def add(a, b):
    return a + b  # <b>
```

See [the page](https://example.org/a_(b)) or https://example.org/x."""


@in_chromium
def test_markdown_is_shown_while_it_grows(page):
    answer_with(page, *MARKDOWN)  # a character at a time
    page.ask("Show me")
    assert page.find(".text h2").text == "Title"
    shown = {tag: [one.text for one in page.all(f".answer .text {tag}")] for tag in ("em", "strong", "p code", "td", "th")}
    assert shown == {"em": ["soft"], "strong": ["strong"], "p code": ["inline"], "td": ["a | b", "c"], "th": ["left", "right"]}
    assert [one.text for one in page.all(".answer li")] == ["one\ninner", "inner", "two"]
    assert page.find(".text blockquote").text == "quoted"
    assert page.find(".code pre").text == "def add(a, b):\n    return a + b  # <b>"
    assert page.find(".code figcaption span").text == "python"
    links = page.all(".answer .text a")
    assert [one.get_attribute("href") for one in links] == ["https://example.org/a_(b)", "https://example.org/x"]
    assert {one.get_attribute("rel") for one in links} == {"noopener noreferrer"}
    assert "snake_case_names, 2 < 3 & 4." in page.find(".answer .text p").text


ATTACKS = [
    "<img src=x onerror='window.owned=1'>",
    "</div></article><script>window.owned=1</script>",
    "[click](javascript:window.owned=1) [b](JaVaScRiPt&colon;alert(1)) [c](data:text/html,<script>window.owned=1</script>)",
    "[d](java\nscript:window.owned=1) [e](\x01javascript:alert(1)) [f](//evil.example) [g](vbscript:x) <javascript:alert(1)>",
    "![i](javascript:window.owned=1) ![j](https://example.org/p.png) ![k](x onerror=window.owned=1)",
    '[l](https://example.org/"onmouseover="window.owned=1) [m](https://example.org "t" onclick=window.owned=1)',
    "```<script>window.owned=1</script>\n<svg onload=window.owned=1>\n```",
    "`<b onclick=window.owned=1>` **<i onclick=window.owned=1>** ~~<u>~~",
    "| <script>window.owned=1</script> | <b> |\n| --- | --- |\n| <iframe src=javascript:window.owned=1> | x |",
    "# <h1 onclick=window.owned=1>\n> <style>*{display:none}</style>\n- <form action=x><input onfocus=window.owned=1>",
    "<think><img src=x onerror=window.owned=1></think><img src=x onerror=window.owned=1>",
]
ALLOWED = {"P", "BR", "EM", "STRONG", "S", "CODE", "PRE", "FIGURE", "FIGCAPTION", "SPAN", "BUTTON", "A", "UL", "OL", "LI", "H2"}
ALLOWED |= {"BLOCKQUOTE", "TABLE", "THEAD", "TBODY", "TR", "TH", "TD", "DIV", "HR"}


@in_chromium
def test_no_answer_becomes_markup(page):
    """Elements and attributes are the renderer's own, and links lead to the web or nowhere."""
    found = page.script(
        """
        return import("/page/markdown.js").then(({Rendered}) => arguments[0].map((text) => {
          const place = document.createElement("div");
          document.body.append(place);
          new Rendered(place).update(text);
          const all = [...place.querySelectorAll("*")];
          return {
            tags: all.map((one) => one.tagName),
            attributes: all.flatMap((one) => [...one.attributes].map((a) => a.name)),
            links: all.filter((one) => one.href).map((one) => one.protocol),
            text: place.textContent,
          };
        }));
        """,
        ATTACKS,
    )
    for attack, one in zip(ATTACKS, found, strict=True):
        assert set(one["tags"]) <= ALLOWED, attack
        assert set(one["attributes"]) <= {"class", "type", "href", "target", "rel", "start"}, attack
        assert set(one["links"]) <= {"http:", "https:", "mailto:"}, attack
        assert one["text"].count("window.owned") == attack.count("window.owned"), attack
    assert page.script("return window.owned ?? null") is None


@in_chromium
def test_no_text_takes_long_to_show(page):
    """Answers are untrusted: no text makes the renderer search again and again."""
    texts = [
        "*" * 20000,
        "[" * 20000,
        "`a " * 10000,
        "> " * 5000 + "x",
        "**a " * 8000,
        "- " * 3000,
        "[a](" * 8000,
        "- a\n\n" * 5000,
    ]
    slowest = page.script(
        """
        return import("/page/markdown.js").then(({Rendered}) => Math.max(...arguments[0].map((text) => {
          const start = performance.now();
          new Rendered(document.createElement("div")).update(text);
          return performance.now() - start;
        })));
        """,
        texts,
    )
    assert slowest < 3000


@in_chromium
def test_copy(page):
    page.script(
        """
        window.copied = [];
        Object.defineProperty(navigator, "clipboard", {value: {writeText: async (text) => window.copied.push(text)}});
        """
    )
    answer_with(page, "Look:\n```sh\nls -l\n```\n**done**")
    page.ask("How?")
    page.find(".copyCode").click()
    act(page, 1, "copy")
    act(page, 0, "copy")
    page.type("\ue00a" + "c")  # alt+c
    page.until(lambda: len(page.script("return window.copied")) == 4)
    whole = "Look:\n```sh\nls -l\n```\n**done**"
    assert page.script("return window.copied") == ["ls -l", whole, "How?", whole]
    assert page.find(".copyCode").text == "Copied"


@in_chromium
def test_again_and_edits_are_branches(page):
    answer_with(page, "first")
    page.ask("one")
    answer_with(page, "second")
    act(page, 1, "again")
    page.until(lambda: said(page) == ["one", "second"])
    assert [message["content"] for message in page.script("return window.asked")[0]["messages"]] == ["one"]
    assert page.find(".answer .branch").text == "2 of 2"
    answer_with(page, "third")
    page.ask("two")
    act(page, 1, "before")
    assert said(page) == ["one", "first"]
    act(page, 1, "after")
    assert said(page) == ["one", "second", "two", "third"]
    page.type("\ue013")  # up: the last message
    assert page.find("#text").get_attribute("value") == "two"
    page.find("#text").clear()
    answer_with(page, "fourth")
    page.type("two and a half", "\ue007")
    page.until(lambda: said(page) == ["one", "second", "two and a half", "fourth"])
    assert [m["content"] for m in page.script("return window.asked")[0]["messages"]] == ["one", "second", "two and a half"]
    act(page, 2, "before")
    assert said(page) == ["one", "second", "two", "third"]
    act(page, 0, "edit")
    page.type("\ue00c")  # escape leaves the edit
    assert page.find("#text").get_attribute("value") == ""
    assert not page.find("#editing").is_displayed()


@in_chromium
def test_conversations_are_kept_and_deleted(page, server):
    answer_with(page, "**kept**")
    page.ask("Remember <b>this</b>")
    page.browser.refresh()
    page.until(lambda: page.find("#model").text)
    assert said(page) == ["Remember <b>this</b>", "kept"]
    page.find("#new").click()
    assert said(page) == []
    answer_with(page, "other")
    page.ask("Another")
    assert [one.text for one in page.all("#chats .open")] == ["Another", "Remember <b>this</b>"]
    page.all("#chats .open")[1].click()
    assert said(page) == ["Remember <b>this</b>", "kept"]
    page.browser.back()
    page.until(lambda: said(page) == ["Another", "other"])
    page.all("#chats .remove")[1].click()
    assert [one.text for one in page.all("#chats .open")] == ["Another"]
    page.find("#undo").click()
    assert len(page.all("#chats .open")) == 2
    page.script("localStorage['first_cpp/chat/x'] = '{\"id\": 1, \"nodes\": [{}]}'; localStorage['first_cpp/settings'] = '{'")
    page.browser.refresh()
    page.until(lambda: page.find("#model").text)
    assert len(page.all("#chats .open")) == 2


@in_chromium
def test_a_full_store_drops_the_oldest(page):
    answer_with(page, "x")
    page.ask("old")
    page.find("#new").click()
    page.ask("young")
    page.script(
        """
        const real = Storage.prototype.setItem;
        Storage.prototype.setItem = function (key, value) {
          const others = Object.keys(this).filter((one) => one.includes("/chat/") && one !== key);
          if (key.includes("/chat/") && others.length > 1) throw new DOMException("", "QuotaExceededError");
          real.call(this, key, value);
        };
        """
    )
    page.find("#new").click()
    page.ask("newest")
    assert "newest" in [one.text for one in page.all("#chats .open")]
    assert "old" not in [one.text for one in page.all("#chats .open")]


@in_chromium
def test_system_prompt_and_temperature(page):
    page.type("\ue00a" + "s")  # alt+s
    page.find("#system").send_keys("Be brief.")
    page.find("#temperature").send_keys("0.2")
    page.find("#maxTokens").send_keys("77")
    page.find("#settings .close").click()
    page.browser.refresh()
    page.until(lambda: page.find("#model").text)
    answer_with(page, "ok")
    page.ask("Hello")
    (asked,) = page.script("return window.asked")
    assert [message["role"] for message in asked["messages"]] == ["system", "user"]
    assert asked["messages"][0]["content"] == "Be brief."
    assert (asked["temperature"], asked["max_tokens"]) == (0.2, 77)
    page.find("#settingsButton").click()
    page.find("#temperature").clear()
    page.find("#temperature").send_keys("9")  # out of range: not sent
    page.find("#settings .close").click()
    page.ask("Hello")
    assert "temperature" not in page.script("return window.asked")[1]


@in_chromium
def test_measured_speed_and_fidelity(page):
    answer_with(page, "fast", told=told(2, tpot_ms=16.0))
    page.script(
        """
        const before = window.fetch;
        window.fetch = (url, options) => url !== "/v1/fidelity" ? before(url, options) :
          Promise.resolve(new Response(JSON.stringify({data: [{id: "a1", fidelity: 0.9375}]})));
        """
    )
    page.ask("a")
    assert page.find(".figures").text == "40 tokens · 62.5 tokens/s · TTFT 9 ms · 4 of 6 layers"
    page.until(lambda: "fidelity 94 %" in page.find(".gained").text)
    assert page.find(".gained").text == "speed-up 1.40x expected · fidelity 94 %"
    answer_with(page, "slow", told=told(0))
    act(page, 1, "full")
    page.until(lambda: said(page) == ["a", "slow"])
    assert page.script("return window.asked")[0]["skip"] == 0
    assert not page.all(".gained")
    act(page, 1, "before")
    assert page.find(".gained").text == "speed-up 1.40x expected · 1.25x measured · fidelity 94 %"
    page.browser.refresh()
    page.until(lambda: page.all(".gained") and "1.25x measured" in page.find(".gained").text)
    page.find("#count").send_keys("\ue010", "\ue012")  # end, left
    assert page.find("#dialText").text == "2 of 6 layers skipped, measured 1.25x"


@in_chromium
def test_the_fidelity_is_the_servers(browser, tiny, models):
    with serving(routed_model(tiny, models, seed=41), "--chat-format", "chatml", "-c", 512, "--skip", 0.34) as server:
        page = Page(browser, server.url)
        asking_for(page, **LONG)
        page.type("Hello there", "\ue007")
        page.until(lambda: page.all(".gained") and "fidelity" in page.find(".gained").text)
        measured = server.http.get("/v1/fidelity").json()["data"][0]["fidelity"]
        assert f"fidelity {int(100 * measured + 0.5)} %" in page.find(".gained").text


@in_chromium
def test_a_model_without_routers_is_explained(browser, tiny):
    with serving(tiny, "--chat-format", "chatml", "-c", 512) as server:
        page = Page(browser, server.url)
        page.until(lambda: page.find("#help").is_displayed())
        assert "no routers" in page.find("#help").text
        assert "first-cpp calibrate -m model.gguf --out model-first.gguf" in page.find("#help").text
        assert not page.find("#dial").is_displayed()
        assert page.errors() == []


@in_chromium
def test_one_of_several_models_is_chosen(browser, tiny, models):
    files = (routed_model(tiny, models, seed=41), "-m", tiny)
    with serving(*files, "--alias", "one", "--alias", "two", "--chat-format", "chatml", "-c", 512) as server:
        page = Page(browser, server.url)
        page.until(lambda: page.find("#choice").is_displayed() and page.find("#dial").is_displayed())
        page.find("#choice").send_keys("two")
        page.until(lambda: "two is loaded when you ask" in page.find("#help").text)
        page.type("Hello there", "\ue007")
        page.until(lambda: page.all(".layers") and "no routers" in page.find("#help").text)
        assert server.health()["loaded"] == "two"
        assert page.errors() == []


@in_chromium
def test_shortcuts(page):
    answer_with(page, "x")
    page.ask("a")
    page.script("document.activeElement.blur(); document.body.focus()")
    page.find("body").send_keys("?")
    assert page.find("#keys").is_displayed()
    page.find("body").send_keys("\ue00c")
    assert not page.find("#keys").is_displayed()
    answer_with(page, "y")
    page.type("\ue00a" + "r")  # alt+r
    page.until(lambda: said(page) == ["a", "y"])
    page.find("#text").click()
    page.type("\ue00a" + "n")
    page.until(lambda: said(page) == [])
    page.type("what?")
    assert page.find("#text").get_attribute("value") == "what?"
    page.find("#text").clear()


@pytest.mark.timed
@in_chromium
def test_stop_ends_the_answer_on_the_server_too(page, server):
    asking_for(page, logit_bias=NO_END)
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
    assert not page.all("#chats li")
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
        for shown in ("#send", "#new", "#dialText", ".answer .actions"):
            box = page.script("return document.querySelector(arguments[0]).getBoundingClientRect().toJSON()", shown)
            assert 0 <= box["left"] <= box["right"] <= width
            assert shown == ".answer .actions" or box["bottom"] <= height
        if width < 900:
            assert not page.find("#side").is_displayed()
            page.find("#menu").click()
            page.until(lambda: page.find("#chats .open").is_displayed())
            page.find("#chats .open").click()
            page.until(lambda: not page.find("#side").is_displayed())
        assert page.find(".layers").size["width"] <= width
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


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


@in_chromium
def test_reasoning_stands_apart_and_is_not_sent_again(page):
    """The server sends it in a field of its own, where the model's template marks it."""
    answer_by(page, {"reasoning_content": "Two and"}, {"reasoning_content": " <b>two</b>."}, {"content": "Four."})
    assert page.ask("Sum?") == "Four."
    thought = page.find(".answer .thought p")
    assert thought.get_attribute("textContent") == "Two and <b>two</b>."
    page.ask("And now?")
    assert [one["content"] for one in page.script("return window.asked")[1]["messages"]] == ["Sum?", "Four.", "And now?"]
    page.browser.refresh()
    page.until(lambda: page.all(".answer .thought"))
    assert page.find(".answer .thought p").get_attribute("textContent") == "Two and <b>two</b>."


@in_chromium
def test_an_answer_that_is_only_reasoning_stays(page):
    answer_by(page, {"reasoning_content": "Hm"}, reason="length")
    assert page.ask("Sum?") == ""
    assert page.find(".answer .thought p").get_attribute("textContent") == "Hm"
    assert "cut off" in page.find(".answer .about").text
    assert page.find(".mine .text").text == "Sum?"


@in_chromium
def test_a_conversation_that_is_open_twice_loses_nothing(page):
    answer_with(page, "one")
    page.ask("first")
    here, url = page.browser.current_window_handle, page.browser.current_url
    page.browser.switch_to.new_window("tab")
    try:
        other = Page(page.browser, url)
        other.until(lambda: said(other) == ["first", "one"])
        answer_with(other, "two")
        other.ask("second")
    finally:
        page.browser.close()
        page.browser.switch_to.window(here)
    page.until(lambda: said(page) == ["first", "one", "second", "two"])
    answer_with(page, "three")
    page.ask("third")
    assert [one["content"] for one in page.script("return window.asked")[0]["messages"]] == [
        "first", "one", "second", "two", "third",
    ]  # fmt: skip
    page.browser.refresh()
    page.until(lambda: said(page) == ["first", "one", "second", "two", "third", "three"])
