"""The page in a real browser: the system's Chromium, headless."""

import contextlib
import shutil

import pytest

import plug_jax
from plug_jax.clue.tasks import find_task
from plug_jax.inference.generator import generate
from plug_jax.inference.request_options import GenerationOptions
from plug_jax.tasks.clue import clue_format
from tests.downstream.tiny_encoder import write_fine_tuned
from tests.inference_model import lively_model
from tests.serving.reading import reading
from tests.serving.running import NAME, gated_slots, running

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = [
    "--no-sandbox",  # as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine (Debian: apt install chromium)")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser, server, name=NAME, **context):
    """The page; at the end, no error may be logged, and nothing refused by the policy."""
    page = browser.new_context(**context).new_page()
    complaints = []
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(server.url)
    page.locator("#model", has_text=name).wait_for()
    yield page, complaints
    page.context.close()


def written(page):
    return page.locator("article p > span:last-child").all_inner_texts()


def wait_for_status(page, text):
    page.locator("#status", has_text=text).wait_for()


def expected(prompt, **options):
    return [t.text for t in generate(lively_model(), [prompt], GenerationOptions(**options))[0]]


def test_a_text_streams_into_the_page(browser):
    slots = gated_slots(2)
    with running(slots) as server, opened(browser, server) as (page, complaints):
        assert page.locator("#max_tokens").get_attribute("max") == "48"
        assert page.locator("#max_tokens").input_value() == "48"  # less than usual
        slots.shut()
        page.fill("#prompt", "ABC")
        page.fill("#max_tokens", "20")
        page.fill("#seed", "3")
        page.press("#prompt", "Control+Enter")
        wait_for_status(page, "等待中")
        slots.let(1)
        wait_for_status(page, "正在写")
        (whole,) = expected("ABC", max_new_tokens=20, seed=3)
        assert written(page) == [whole[:4]]
        assert page.locator("#stop").is_visible()
        slots.let()
        wait_for_status(page, "词元/秒")
        assert written(page) == [whole]
        assert "种子 3" in page.locator("#status").inner_text()
        assert page.locator("article footer").inner_text().startswith("结束：")
        assert page.locator("#stop").is_hidden()
        page.click("#language")
        assert page.locator("#go").inner_text() == "Generate"
        assert page.locator("html").get_attribute("lang") == "en"
        page.fill("#n", "3")
        page.click("#go")
        wait_for_status(page, "tokens/s")
        assert written(page) == expected("ABC", max_new_tokens=20, seed=3, num_samples=3)
        assert complaints == []


def test_the_stop_button_ends_the_text_and_frees_the_slot(browser):
    slots = gated_slots(1)
    with running(slots) as server, opened(browser, server) as (page, complaints):
        slots.shut()
        slots.let(1)
        page.fill("#prompt", "ABC")
        page.fill("#temperature", "0")
        page.click("#go")
        wait_for_status(page, "正在写")
        page.click("#stop")
        wait_for_status(page, "已停止")
        server.wait_for(writing=0, waiting=0)
        assert written(page) == [expected("ABC", max_new_tokens=48, temperature=0.0)[0][:4]]
        assert "未写完" in page.locator("article footer").inner_text()
        assert complaints == []


def test_what_is_wrong_is_shown(browser):
    slots = gated_slots(1)
    with running(slots, max_queue=0) as server, opened(browser, server) as (page, complaints):
        error = page.locator("#error")
        page.click("#go")
        assert error.inner_text() == "请先写一个开头。"
        page.fill("#prompt", "ABC")
        page.fill("#top_p", "7")
        page.click("#go")
        assert error.inner_text().startswith("Top-p：")
        page.fill("#top_p", "1")
        assert complaints == []  # the following are in the console too, as failed requests
        page.fill("#prompt", "A" * 47)
        page.click("#go")
        error.get_by_text("a prompt has 47 tokens").wait_for()
        page.fill("#prompt", "A")
        page.fill("#n", "2")
        page.click("#go")
        error.get_by_text("the request is for 2 texts; at most 1 here").wait_for()
        page.fill("#n", "1")
        server.stop()
        server.thread.join(10)
        page.click("#go")
        error.get_by_text("连不上服务器").wait_for()


def test_the_page_asks_for_the_key_of_a_server_that_needs_one(browser):
    key = "a-key-of-some-length"
    with running(gated_slots(1), keys=[key]) as server:
        page = browser.new_context().new_page()
        page.goto(server.url)
        page.locator("#error", has_text="API 密钥").wait_for()
        page.fill("#prompt", "ABC")
        page.fill("#key", "another-key-of-some-length")
        page.click("#go")
        page.locator("#error", has_text="API 密钥").wait_for()
        page.fill("#key", key)
        page.press("#key", "Enter")  # writes to each field of the form
        wait_for_status(page, "词元/秒")
        page.locator("#model", has_text=NAME).wait_for()
        assert page.locator("#error").is_hidden()
        page.context.close()


@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_the_screen_and_every_field_has_a_name(browser, width):
    with (
        running(gated_slots(1)) as server,
        opened(browser, server, viewport={"width": width, "height": 800}) as (page, complaints),
    ):
        page.fill("#prompt", "A")
        page.click("#go")
        wait_for_status(page, "词元/秒")
        page.evaluate("document.querySelector('#settings').open = true")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        fields = page.locator("input, textarea")
        assert fields.count() == 9
        assert page.evaluate(
            "[...document.querySelectorAll('input, textarea')].every(e => e.labels.length === 1)"
        )
        assert complaints == []


@pytest.fixture(scope="module")
def labeler(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "afqmc"
    format = clue_format(find_task("afqmc"), 32)
    return plug_jax.load(write_fine_tuned(directory, "clue_afqmc", format))


@pytest.mark.parametrize("size", [(1200, 800), (390, 800)])
def test_texts_are_labeled_on_the_page(browser, labeler, size):
    context = {"viewport": {"width": size[0], "height": size[1]}}
    with (
        reading(labeler) as (server, _),
        opened(browser, server, "afqmc", **context) as (page, complaints),
    ):
        page.locator("#go", has_text="分类").click()
        assert page.locator("#error").inner_text() == "请先写文本。"
        page.fill("#texts", "怎么还款\n\n还款的方法")
        page.press("#texts", "Control+Enter")
        wait_for_status(page, "2 条")
        assert page.locator("article p").all_inner_texts() == ["怎么还款", "还款的方法"]
        found = labeler.classify("怎么还款")
        first = page.locator("article").first
        assert first.locator("span").first.inner_text() == found.prediction
        assert first.locator("output").first.inner_text() == (
            f"{found.probabilities[found.prediction]:.3f}"
        )
        page.locator("#settings").evaluate("element => element.open = true")
        page.fill("#pair", "什么是还款")
        page.click("#go")
        best = max(labeler.classify("怎么还款", "什么是还款").probabilities.values())
        first.locator("output", has_text=f"{best:.3f}").wait_for()
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= size[0]
        page.click("#language")
        assert page.locator("#go").inner_text() == "Classify"
        assert complaints == []


def test_texts_are_compared_on_the_page(browser, labeler):
    with (
        reading(labeler, labels=False) as (server, _),
        opened(browser, server, "afqmc") as (page, complaints),
    ):
        assert page.locator("#of_pairs").is_hidden()
        page.fill("#texts", "怎么还款")
        page.locator("#go", has_text="比较").click()
        assert "请写两行以上" in page.locator("#error").inner_text()
        page.fill("#texts", "怎么还款\n还款的方法\n怎么还款")
        page.click("#go")
        wait_for_status(page, "3 条")
        vectors = labeler.embed(["怎么还款", "还款的方法"], normalize=True)
        shown = page.locator("output").all_inner_texts()
        assert shown == [f"{vectors[0] @ vectors[1]:.3f}", "1.000"]
        assert complaints == []
