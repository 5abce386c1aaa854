"""The page of `llada demo` in a headless Chromium: a question, masks that turn into text, the slider, a gap, a phone.

`make test-browser` installs Chromium if it is missing and runs this file. SCREENSHOTS=folder keeps pictures.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the page needs the extra `demo`")
playwright = pytest.importorskip("playwright.sync_api", reason="the browser needs the extra `dev`")

from llada_serving.demo import launch  # noqa: E402

# Chromium under Debian's names, and Google's; None is Playwright's own.
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MILLISECONDS = 30_000
QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def address(checkpoint) -> Iterator[str]:
    app, url, _ = launch(checkpoint, "llada-tiny", prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    yield url
    app.blocks.close(verbose=False)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        try:
            # Chromium's sandbox does not work for root, as whom containers run.
            started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"Chromium does not start ({str(error).splitlines()[0]}); `make test-browser` installs it")
        yield started
        started.close()


@pytest.fixture(params=[("light", 1200), ("dark", 1200), ("light", 400)], ids=lambda shape: f"{shape[0]}-{shape[1]}")
def page(request, browser, address) -> Iterator[Any]:
    scheme, width = request.param
    opened = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
    opened.set_default_timeout(MILLISECONDS)
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(address)
    yield opened
    if "SCREENSHOTS" in os.environ:
        name = request.node.name.replace("[", "-").strip("]")
        opened.screenshot(path=Path(os.environ["SCREENSHOTS"]) / f"{name}.png", full_page=True)
    opened.close()
    assert not errors


def ask(page: Any) -> None:
    page.get_by_label("Ask a question").fill(QUESTION)
    page.get_by_role("button", name="Send").click()


def test_masks_turn_into_text_and_the_slider_brings_them_back(page):
    ask(page)
    page.locator(".canvas .mask").first.wait_for()
    assert page.locator(".canvas .mask").count() > 0
    page.locator(".canvas .tok").first.wait_for()
    slider = page.get_by_role("slider", name="After pass").first
    playwright.expect(slider).to_be_enabled(timeout=MILLISECONDS)
    assert page.locator(".canvas").inner_text() == "The capital of France is Paris."
    passes = int(slider.input_value())
    slider.focus()
    slider.press("Home")
    page.wait_for_function("document.querySelectorAll('.canvas .mask').length == 64")
    assert page.locator(".canvas .tok").count() == 0
    slider.press("ArrowRight")
    page.wait_for_function("document.querySelectorAll('.canvas .tok').length > 0")
    assert page.locator(".canvas .mask").count() > 0
    slider.press("End")
    page.wait_for_function("!document.querySelector('.canvas .mask')")
    assert f"Pass {passes} of {passes}" in page.locator(".under").first.inner_text()
    assert "per pass" in page.locator(".under").first.inner_text()


def test_colours_follow_the_pass_or_the_confidence(page):
    ask(page)
    page.locator(".canvas .tok").first.wait_for()
    page.wait_for_function("!document.querySelector('.canvas .mask')")
    by_pass = page.locator(".canvas .tok").first.get_attribute("style")
    page.get_by_label("Confidence").first.check()
    changed = "style => document.querySelector('.canvas .tok').getAttribute('style') != style"
    page.wait_for_function(changed, arg=by_pass)
    page.locator(".scale.confidence").first.wait_for()


def test_a_gap_is_filled(page):
    page.get_by_role("tab", name="Fill in").click()
    page.get_by_label("Text with gaps").fill("The capital of _ is Rome.")
    page.get_by_role("button", name="Fill in").click()
    page.locator(".tok").first.wait_for()
    assert page.locator(".paper:visible").inner_text() == "The capital of Italy is Rome."


def test_nothing_is_wider_than_the_window(page):
    ask(page)
    page.locator(".canvas .tok").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_mistake_is_told_and_the_page_goes_on(page):
    page.get_by_role("button", name="Send").click()
    page.get_by_text("Type a question first").first.wait_for()
    ask(page)
    page.locator(".canvas .tok").first.wait_for()
