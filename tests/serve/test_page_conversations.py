"""Conversations on the page: their turns, branches, and what the browser keeps."""

from __future__ import annotations

from page_in_chromium import Page, act, answer_with, in_chromium, said


@in_chromium
def test_turns_are_sent_with_what_was_said(page):
    answer_with(page, "I am ", "well.")
    assert page.ask("How are you?") == "I am well."
    assert page.ask("Good.") == "I am well."
    asked = page.script("return window.asked")
    assert [message["content"] for message in asked[1]["messages"]] == ["How are you?", "I am well.", "Good."]
    assert "skip" not in asked[0]


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
def test_conversations_are_kept_and_deleted(page, page_server):
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
