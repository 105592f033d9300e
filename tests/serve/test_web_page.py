"""The web page in headless Chromium: upload, ask, stream, stop, error, click on a word, two models, a phone's width."""

import io
import re

import httpx
import pytest
from PIL import Image

from llavit import Engine, build_llavit
from llavit.serve.web.examples import Example, starter_examples
from llavit.starter.weights import starter_llm, starter_tower
from tests.serve.parts import picture
from tests.serve.web_parts import CHROMIUM, FLAGS, LONG, engine_with_room, needs_chromium, other_hosts

pytest.importorskip("gradio", reason="the web page needs the extra `web`")
playwright = pytest.importorskip("playwright.sync_api", reason="opening the page needs playwright")

from llavit.serve.web.page import Page  # noqa: E402  (needs gradio)

pytestmark = needs_chromium
WAIT = 60_000  # milliseconds; everything here takes less than one second on a quiet machine, and a wait ends early


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def engines():
    with engine_with_room(name="runs/one") as one, engine_with_room(llava=True, name="runs/two") as two:
        yield [one, two]


@pytest.fixture(scope="module")
def single(engines):
    with Page(engines[:1], examples=[Example(picture(7), "w5 w6?")], max_upload_bytes=100_000) as page:
        page.open(port=0)
        yield page


@pytest.fixture(scope="module")
def double(engines):
    with Page(engines, names=["LLaViT", "LLaVA"]) as page:
        page.open(port=0)
        yield page


@pytest.fixture
def visit(browser):
    """Opens pages in contexts of their own; afterwards none of them may have asked another host for anything."""
    contexts, asked, broken = [], [], []

    def opened(page: Page, width: int = 1200, height: int = 900):
        context = browser.new_context(viewport={"width": width, "height": height})
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(WAIT)
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("websocket", lambda socket: asked.append(socket.url))
        tab.on("pageerror", lambda error: broken.append(str(error)))
        tab.goto(page.url)
        tab.wait_for_selector(".welcome")
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert asked and other_hosts(asked) == []
    assert broken == []


def png(image: Image.Image) -> dict:
    file = io.BytesIO()
    image.save(file, "PNG")
    return {"name": "picture.png", "mimeType": "image/png", "buffer": file.getvalue()}


def upload(tab, *files: dict) -> None:
    tab.set_input_files("#box input[type=file]", list(files))
    tab.wait_for_selector("#box .thumbnail-item img, #box .thumbnails img")


def ask(tab, question: str) -> None:
    tab.fill("#box textarea", question)
    tab.press("#box textarea", "Enter")


def settings(tab, most: int | None = None, **sliders: float) -> None:
    if not tab.get_by_label("Most tokens of an answer").is_visible():
        tab.click("#settings button")
        tab.wait_for_timeout(500)  # the page sets the fields once more when they have come into view
    if most is not None:
        put(tab, tab.get_by_label("Most tokens of an answer"), str(most))
    for label, value in sliders.items():
        put(tab, tab.get_by_label(f"number input for {label}"), str(value))


def put(tab, field, value: str) -> None:
    for _ in range(10):
        field.fill(value)
        field.press("Tab")
        tab.wait_for_timeout(100)
        if field.input_value() == value:
            return
    raise AssertionError(f"the field shows {field.input_value()}, not {value}")


def answers(tab, count: int = 1) -> list[str]:
    tab.wait_for_function(f"document.querySelectorAll('.reply.done').length >= {count}")
    return [text.strip() for text in tab.locator(".reply.done .text").all_inner_texts()]


def test_upload_and_ask_gives_the_engines_answer_with_small_print(single, engines, visit):
    tab = visit(single)
    settings(tab, most=6)
    upload(tab, png(picture(1)), png(picture(2)))
    ask(tab, "w5 w6")
    expected = engines[0].answer("w5 w6", [picture(1), picture(2)], max_new_tokens=6)
    assert answers(tab) == [expected.text]
    assert tab.locator(".question .pictures img").count() == 2
    assert tab.locator(".question .pictures img").first.evaluate("image => image.naturalWidth") == 12
    small = tab.locator(".reply .small").first.inner_text()
    assert re.search(r"[\d.]+ tokens/s · first token after [\d.]+ s · \d+ of \d+ prompt tokens", small)
    ask(tab, "w7")
    answers(tab, 2)
    small = tab.locator(".reply").nth(1).locator(".small").first.inner_text()
    assert int(re.search(r"(\d+) of \d+ prompt tokens", small)[1]) > 0


def test_an_answer_streams_and_the_stop_button_ends_its_generation(single, engines, visit):
    tab = visit(single)
    settings(tab, most=LONG)
    before = engines[0].stats().cancelled
    ask(tab, "w5")
    lengths = []
    for _ in range(2):
        tab.wait_for_function(
            f"document.querySelector('.reply.running .text')?.innerText.length > {20 + (lengths or [0])[-1]}"
        )
        lengths.append(len(tab.locator(".reply.running .text").inner_text()))
    assert engines[0].stats().running == 1
    for _ in range(20):  # once, on two busy cores, one click had no effect for as long as the answer took
        tab.evaluate("document.querySelector('#box .stop-button')?.click()")
        tab.wait_for_timeout(500)
        if not tab.locator("#box .stop-button").count():
            break
    (answer,) = answers(tab)
    assert lengths[1] <= len(answer) and len(answer.split()) < LONG
    assert "stopped" in tab.locator(".reply .small").first.inner_text()
    stats = engines[0].stats()
    assert stats.cancelled == before + 1 and stats.running == 0
    tab.wait_for_selector("#box .submit-button")


def test_closing_the_tab_stops_its_generation(single, engines, visit):
    tab = visit(single)
    settings(tab, most=LONG)
    before = engines[0].stats().cancelled
    ask(tab, "w5")
    tab.wait_for_selector(".reply.running .text")
    other = visit(single)
    tab.close()
    for _ in range(100):
        if engines[0].stats().cancelled > before:
            break
        other.wait_for_timeout(50)
    assert engines[0].stats().cancelled == before + 1


def test_a_click_on_a_word_lays_a_heat_map_of_patches_over_the_picture(single, visit):
    tab = visit(single)
    settings(tab, most=6)
    upload(tab, png(picture(1)))
    ask(tab, "w5 w6")
    (text,) = answers(tab)
    assert tab.locator(".word").count() == 6
    tab.locator(".word").nth(2).click()
    tab.wait_for_selector(".heat .map")
    assert tab.locator(".word.on").inner_text() == text.split()[2]
    assert tab.locator(".heat .map").evaluate("map => [map.naturalWidth, map.naturalHeight]") == [3, 3]
    under, over = (tab.locator(f".heat .seen img >> nth={n}").bounding_box() for n in (0, 1))
    assert all(abs(under[side] - over[side]) < 1 for side in ("x", "y", "width", "height"))
    caption = tab.locator(".heat figcaption").inner_text()
    assert re.match(rf"Writing {text.split()[2]}, [\d.]+% of the attention went to the picture", caption)
    first = tab.locator(".heat .map").get_attribute("src")
    tab.locator(".word").nth(4).press("Enter")  # by keyboard as well
    tab.wait_for_function(f"document.querySelector('.heat .map').src !== '{first}'")
    tab.click(".heat .close")
    tab.wait_for_selector(".heat", state="detached")


def test_what_goes_wrong_is_said_as_it_is(single, engines, visit):
    tab = visit(single)
    broken = {"name": "broken.png", "mimeType": "image/png", "buffer": b"<html>Not found</html>"}
    tab.set_input_files("#box input[type=file]", [broken])
    tab.wait_for_selector("#box .thumbnail-item, #box .thumbnails img")
    ask(tab, "w5")
    toast = tab.locator(".toast-body")
    toast.wait_for()
    assert "broken.png: not an image in a format that is known" in toast.inner_text()
    assert "it begins with b'<html>Not found</htm'" in toast.inner_text()
    assert tab.locator("#box textarea").input_value() == "w5"  # the question is not lost


def test_a_picture_over_the_limit_is_refused_with_the_limit(single, visit):
    tab = visit(single)
    noise = Image.effect_noise((600, 600), 90)
    tab.set_input_files("#box input[type=file]", [png(noise)])
    toast = tab.locator(".toast-body")
    toast.wait_for()
    assert re.search(r'maximum allowed size of 97\.7 Kb: "picture\.png"', toast.inner_text())
    file = ("picture.png", png(noise)["buffer"])
    straight = httpx.post(
        f"{single.url}gradio_api/upload", files={"files": file}
    )  # past the page's own check
    assert straight.status_code == 413 and "100000 bytes" in straight.text


def test_a_prompt_that_is_too_long_says_both_lengths_and_gives_the_question_back(single, visit):
    tab = visit(single)
    ask(tab, "w5 " * (2 * LONG))
    error = tab.locator(".reply .error")
    error.wait_for()
    assert re.search(rf"the prompt has 8\d+ tokens .* expected at most {2 * LONG - 1}", error.inner_text())
    tab.wait_for_function("document.querySelector('#box textarea').value.startsWith('w5 w5')")


def test_a_full_queue_is_said(visit):
    with engine_with_room(max_batch=1, max_queue=1) as engine, Page([engine]) as page:
        page.open(port=0)
        tab = visit(page)
        streams = [engine.stream("w5", max_new_tokens=LONG)]
        next(streams[0])
        streams.append(engine.stream("w5", max_new_tokens=LONG))
        ask(tab, "w5")
        tab.locator(".reply .error").wait_for()
        assert "the queue is full: 1 requests wait" in tab.locator(".reply .error").inner_text()
        for stream in streams:
            stream.cancel()


def test_sampling_controls_reach_the_engine_and_mistakes_in_them_are_named(single, engines, visit):
    tab = visit(single)
    settings(tab, most=12, Temperature=2, **{"Top-p": 0.9})
    tab.get_by_label("Seed").fill("11")
    ask(tab, "w5")
    expected = (
        engines[0].answer("w5", do_sample=True, temperature=2.0, top_p=0.9, seed=11, max_new_tokens=12).text
    )
    assert answers(tab) == [expected] != [engines[0].answer("w5", max_new_tokens=12).text]
    tab.get_by_label("Seed").fill("eleven")
    ask(tab, "w5")
    tab.locator(".toast-body").wait_for()
    assert "seed='eleven': expected a whole number" in tab.locator(".toast-body").inner_text()


def test_an_example_is_asked_by_a_click(single, engines, visit):
    tab = visit(single)
    settings(tab, most=6)
    tab.click(".card")
    assert answers(tab) == [engines[0].answer("w5 w6?", [picture(7)], max_new_tokens=6).text]
    tab.click("#new")
    tab.wait_for_selector(".welcome .card")


def test_a_new_conversation_stops_the_old_one_for_good(single, engines, visit):
    tab = visit(single)
    settings(tab, most=LONG)
    before = engines[0].stats().cancelled
    ask(tab, "w5")
    tab.wait_for_selector(".reply.running .text")
    tab.click("#new")
    tab.wait_for_selector(".welcome")
    settings(tab, most=6)
    ask(tab, "w6")
    assert answers(tab) == [engines[0].answer("w6", max_new_tokens=6).text]
    assert tab.locator(".question").count() == 1
    assert engines[0].stats().cancelled == before + 1


def test_two_models_answer_side_by_side_each_with_its_own_heat_map(double, engines, visit):
    tab = visit(double)
    settings(tab, most=6)
    upload(tab, png(picture(1)))
    ask(tab, "w5 w6")
    expected = [engine.answer("w5 w6", [picture(1)], max_new_tokens=6).text for engine in engines]
    assert answers(tab, 2) == expected
    assert tab.locator(".reply .name").all_inner_texts() == ["LLaViT", "LLaVA"]
    left, right = (tab.locator(".reply").nth(n).bounding_box() for n in (0, 1))
    assert abs(left["y"] - right["y"]) < 1 and left["x"] + left["width"] < right["x"]
    for model in ("0", "1"):
        tab.locator(f".reply[data-model='{model}'] .word").first.click()
        tab.wait_for_selector(f".reply[data-model='{model}'] .heat .map")
    first, second = (tab.locator(".heat .map").nth(n).get_attribute("src") for n in (0, 1))
    assert first != second


@pytest.mark.parametrize("models", ["single", "double"])
def test_nothing_is_cut_off_at_a_phones_width(models, visit, request):
    tab = visit(request.getfixturevalue(models), width=390, height=844)

    def fits() -> bool:
        ends = "[...document.querySelectorAll('.gradio-container *')].map(each => each.getBoundingClientRect().right)"
        widths = tab.evaluate(f"[document.documentElement.scrollWidth, Math.max(...{ends})]")
        return max(widths) <= 390.5

    assert fits()
    settings(tab, most=30)
    assert fits()
    upload(tab, png(picture(1)), png(picture(2)))
    ask(tab, "w5 " * 40 + "x" * 90)
    answers(tab, 1 if models == "single" else 2)
    tab.locator(".word").first.click()
    tab.wait_for_selector(".heat .map")
    assert fits()
    boxes = [reply.bounding_box() for reply in tab.locator(".reply").all()]
    assert all(box["width"] > 330 for box in boxes)  # under each other, not squeezed
    box = tab.locator("#box textarea").bounding_box()
    assert box["y"] + box["height"] <= 844  # the box stays in sight


@pytest.mark.slow
def test_the_starters_model_answers_an_example_and_shows_where_it_looked(visit):
    model, processor = build_llavit(
        starter_tower(), starter_llm(), vision_feature_layer=[4, 8, 11], image_size=112
    )
    with Engine(model.eval(), processor) as engine, Page([engine], examples=starter_examples()) as page:
        page.open(port=0)
        tab = visit(page)
        settings(tab, most=12)
        tab.locator(".card").nth(3).click()
        tab.wait_for_selector(".reply.done .word", timeout=120_000)
        tab.locator(".word").first.click()
        tab.wait_for_selector(".heat .map", timeout=120_000)
        assert tab.locator(".heat .map").evaluate("map => [map.naturalWidth, map.naturalHeight]") == [8, 8]
        tab.locator("#box textarea").fill("And what colour is it?")
        tab.press("#box textarea", "Enter")
        tab.wait_for_function("document.querySelectorAll('.reply.done').length == 2", timeout=120_000)
        cached = tab.locator(".reply").nth(1).locator(".small").first.inner_text()
        assert (
            int(re.search(r"(\d+) of \d+ prompt tokens", cached)[1]) >= 64
        )  # the image was not paid for again
