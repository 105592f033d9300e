"""Takes the screenshots of docs/web.md with the page itself, in headless Chromium.

    python docs/web/shoot.py runs/demo/instruct runs/demo/pretrain

The first model answers on its own (desktop.png, phone.png), then beside the second (side-by-side.png). Needs the extras
`web` and `starter`, playwright, and a Chromium on the PATH.
"""

from __future__ import annotations

import argparse
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from llavit import Engine
from llavit.serve.web.examples import starter_examples
from llavit.serve.web.page import Page

HERE = Path(__file__).parent
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
]
PLACE, BARS = 4, 5
"""Of the examples: one that asks for a place, one about a chart."""


def main() -> None:
    """Open the pages and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("beside", help="the second model of the side-by-side picture")
    parser.add_argument("--names", nargs=2, default=["after instruct", "after pretrain only"])
    parser.add_argument("--output", type=Path, default=HERE)
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("no chromium on the PATH")
    with ExitStack() as stack:
        engines = [stack.enter_context(Engine.load(source)) for source in (options.model, options.beside)]
        browser = stack.enter_context(sync_playwright()).chromium.launch(executable_path=chromium, args=FLAGS)
        examples = starter_examples()
        single = stack.enter_context(Page(engines[:1], names=options.names[:1], examples=examples))
        double = stack.enter_context(Page(engines, names=options.names, examples=examples))
        for page in (single, double):
            page.open(port=0)
        tab = visit(browser, single, 1000, 760)
        tab.screenshot(path=options.output / "start.png")
        tab = visit(browser, single, 1000, 1000)
        ask_and_look(tab, PLACE, follow_up="What color is it?")
        tab.screenshot(path=options.output / "desktop.png")
        tab = visit(browser, single, 390, 844, scale=2)
        ask_and_look(tab, BARS)
        tab.locator(".heat figcaption").evaluate("caption => caption.scrollIntoView({block: 'center'})")
        tab.evaluate("window.scrollBy(0, 60)")
        tab.screenshot(path=options.output / "phone.png")
        tab = visit(browser, double, 1100, 960)
        ask_and_look(tab, PLACE, models=2)
        tab.screenshot(path=options.output / "side-by-side.png")
        browser.close()
    for path in sorted(options.output.glob("*.png")):
        print(path)


def visit(browser: Any, page: Page, width: int, height: int, scale: int = 1) -> Any:
    """Open a page in a window of a size."""
    tab = browser.new_page(viewport={"width": width, "height": height}, device_scale_factor=scale)
    tab.goto(page.url)
    tab.wait_for_selector(".card img")
    tab.wait_for_function("[...document.querySelectorAll('.card img')].every(image => image.complete)")
    tab.wait_for_timeout(300)  # the page fades in what is new
    return tab


def ask_and_look(tab: Any, example: int, models: int = 1, follow_up: str = "") -> None:
    """Ask an example and perhaps another question, and click the first word of each answer to the first."""
    tab.locator(".card").nth(example).click()
    tab.wait_for_function(f"document.querySelectorAll('.reply.done').length == {models}")
    if follow_up:
        tab.fill("#box textarea", follow_up)
        tab.press("#box textarea", "Enter")
        tab.wait_for_function(f"document.querySelectorAll('.reply.done').length == {2 * models}")
    for model in range(models):
        tab.locator(f".reply[data-model='{model}'] .word").first.click()
        tab.wait_for_selector(f".reply[data-model='{model}'] .heat .map")
    tab.mouse.move(0, 0)
    tab.evaluate("document.activeElement.blur(); window.scrollTo(0, 0)")
    tab.wait_for_timeout(300)  # the page fades in what is new


if __name__ == "__main__":
    main()
