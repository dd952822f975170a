"""How the page shows an answer: Markdown, reasoning, speed and fidelity; and never as markup of the page."""

from __future__ import annotations

from page_in_chromium import LONG, Page, act, answer_by, answer_with, asking_for, in_chromium, said, told
from routers_files import routed_model
from server import serving


@in_chromium
def test_text_of_the_model_is_no_markup(page):
    attack = '<img src=x onerror="window.owned=1"><script>window.owned=1</script>&lt;b&gt;'
    answer_with(page, attack[:20], attack[20:])
    assert page.ask(attack) == attack
    assert page.script("return window.owned ?? null") is None
    assert not page.all("#log img, #log script")


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
    with serving(routed_model(tiny, models, seed=41), "--chat-format", "chatml", "-c", 512, "--skip", 0.34) as page_server:
        page = Page(browser, page_server.url)
        asking_for(page, **LONG)
        page.type("Hello there", "\ue007")
        page.until(lambda: page.all(".gained") and "fidelity" in page.find(".gained").text)
        measured = page_server.http.get("/v1/fidelity").json()["data"][0]["fidelity"]
        assert f"fidelity {int(100 * measured + 0.5)} %" in page.find(".gained").text


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
