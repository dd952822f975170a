"""The page of `first-cpp serve`, in headless Chromium: what there is to press, to set and to read."""

from __future__ import annotations

import re

import httpx
import pytest
from page_in_chromium import LONG, Page, answer_with, asking_for, in_chromium, said
from routers_files import routed_model
from server import NO_END, serving

from first_cpp.serve.app import PAGE, PAGE_ROUTES


def test_files_have_strict_headers_and_name_no_other_host(page_server):
    for route in PAGE_ROUTES:
        response = httpx.get(page_server.url + route)
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "http://" not in response.text.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in response.text
    assert httpx.get(page_server.url + "/page/../app.py").status_code == 404
    assert httpx.get(page_server.url + "/").headers["content-type"].startswith("text/html")
    assert "innerHTML" not in (PAGE / "app.js").read_text()


@in_chromium
def test_chat_with_the_picture_of_its_layers(page, page_server):
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
def test_a_model_without_routers_is_explained(browser, tiny):
    with serving(tiny, "--chat-format", "chatml", "-c", 512) as page_server:
        page = Page(browser, page_server.url)
        page.until(lambda: page.find("#help").is_displayed())
        assert "no routers" in page.find("#help").text
        assert "first-cpp calibrate -m model.gguf --out model-first.gguf" in page.find("#help").text
        assert not page.find("#dial").is_displayed()
        assert page.errors() == []


@in_chromium
def test_one_of_several_models_is_chosen(browser, tiny, models):
    files = (routed_model(tiny, models, seed=41), "-m", tiny)
    with serving(*files, "--alias", "one", "--alias", "two", "--chat-format", "chatml", "-c", 512) as page_server:
        page = Page(browser, page_server.url)
        page.until(lambda: page.find("#choice").is_displayed() and page.find("#dial").is_displayed())
        page.find("#choice").send_keys("two")
        page.until(lambda: "two is loaded when you ask" in page.find("#help").text)
        page.type("Hello there", "\ue007")
        page.until(lambda: page.all(".layers") and "no routers" in page.find("#help").text)
        assert page_server.health()["loaded"] == "two"
        assert page.errors() == []


@pytest.mark.timed
@in_chromium
def test_stop_ends_the_answer_on_the_server_too(page, page_server):
    asking_for(page, logit_bias=NO_END)
    page.type("Go on", "\ue007")
    page.until(lambda: len(page.find(".answer .text").text) > 5)
    assert page_server.health()["answering"]
    page.find("#stop").click()
    page_server.wait_for(answering=False, timeout=2)
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
    with serving(model, "--chat-format", "chatml", "--api-key", "s3cret", "-c", 512, key="s3cret") as page_server:
        page = Page(browser, page_server.url)
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
@pytest.mark.parametrize(("width", "height"), [(320, 568), pytest.param(390, 844, marks=pytest.mark.slow), (1280, 800)])
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
