"""The demo's page in a browser: sliders, uploads, sampling, and no request to another host."""

from __future__ import annotations

import re
import shutil
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import toys

gradio = pytest.importorskip("gradio", reason="Gradio is not installed (requirements/demo.txt)")
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (requirements/dev.txt)")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[playwright.Page]:
    """The page of toy models, in a browser that notes the hosts it asks."""
    from studies.demo_models import Demo, DemoConfig
    from studies.demo_page import serve

    folder = tmp_path_factory.mktemp("demo")
    images = toys.write_images(folder / "images")
    demo = Demo.load(
        DemoConfig(
            results=str(folder), images=str(images), prefixes=True, device="cpu",
            vq_ckpt=str(toys.save_tokenizer(folder / "vq")), gpt_ckpt=str(toys.save_generator(folder / "gpt")),
        )
    )  # fmt: skip
    blocks, address = serve(demo, 0, wait=False)
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 390, "height": 844})
        opened.hosts = set()
        opened.on("request", lambda request: opened.hosts.add(request.url.split("/")[2]))
        opened.goto(address)
        yield opened
        opened.hosts.discard(address.split("/")[2])
        assert not {host for host in opened.hosts if host}
        browser.close()
    blocks.close()


def captioned(page: playwright.Page, element: str, caption: str) -> None:
    playwright.expect(page.locator(f"#{element} figcaption", has_text=re.compile(caption))).to_be_visible(timeout=15000)


def test_the_slider_changes_the_reconstruction(page: playwright.Page) -> None:
    captioned(page, "reconstruction", "^16 of 16 tokens")
    slider = page.locator("#tokens input[type=range]")
    slider.focus()
    for _ in range(8):
        page.keyboard.press("ArrowLeft")
    captioned(page, "reconstruction", "^8 of 16 tokens")
    assert page.locator("#strip figure").count() == 16
    seconds = []
    for count in range(1, 16):
        start = time.perf_counter()
        page.keyboard.press("ArrowLeft" if count < 8 else "ArrowRight")
        captioned(page, "reconstruction", f"^{8 - count if count < 8 else count - 6} of 16 tokens")
        seconds.append(time.perf_counter() - start)
    assert statistics.median(seconds) < 1.5  # the machine may be busy


def test_a_bad_upload_is_one_sentence(page: playwright.Page, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"not an image")
    page.locator("input[type=file]").first.set_input_files(tmp_path / "broken.png")
    told = page.get_by_text(re.compile("Image 'broken.png' cannot be read"))
    playwright.expect(told).to_be_visible(timeout=15000)
    page.locator(".toast-close").first.click()
    captioned(page, "reconstruction", "of 16 tokens")


def test_an_uploaded_image_is_reconstructed(page: playwright.Page, tmp_path: Path) -> None:
    root = toys.write_images(tmp_path / "own", counts=(1, 1, 1))
    before = page.locator("#reconstruction img").first.get_attribute("src")
    page.locator("input[type=file]").first.set_input_files(root / "bird/0.png")
    playwright.expect(page.locator("#reconstruction img").first).not_to_have_attribute("src", before, timeout=15000)


def test_two_images_are_mixed(page: playwright.Page) -> None:
    page.get_by_role("tab", name="Mix").click()
    captioned(page, "mixture", "^4 tokens of the first, 12 of the second")


def test_a_class_is_sampled(page: playwright.Page) -> None:
    page.get_by_role("tab", name="Generate").click()
    page.get_by_role("button", name="Generate", exact=True).click()
    captioned(page, "sample", "^apple, 16 of 16 tokens")


def test_the_figures_are_shown(page: playwright.Page) -> None:
    page.get_by_role("tab", name="Figures").click()
    playwright.expect(page.get_by_text("32 x 32 pixels, 16 tokens, codebook of 64")).to_be_visible()


@pytest.mark.parametrize("tab", ["Reconstruct", "Mix", "Generate", "Figures"])
def test_a_phone_shows_all_of_it(page: playwright.Page, tab: str) -> None:
    page.get_by_role("tab", name=tab).click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
