"""The Gradio page: four tabs over `studies.demo_models`."""

from __future__ import annotations

import html
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from starlette.middleware import Middleware

from common.errors import UserError
from studies.demo_models import Demo, psnr
from studies.report_figures import changes, uri

__all__ = ["build", "serve"]

POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; form-action 'self'; base-uri 'self'"
"""Content-Security-Policy: the browser loads nothing from other hosts."""
CSS = """
.pictures {display: flex; flex-wrap: wrap; gap: 8px}
.pictures figure {margin: 0; flex: 1 1 120px; max-width: 320px}
.strip {display: grid; grid-template-columns: repeat(auto-fill, minmax(64px, 1fr)); gap: 6px}
.strip figure {margin: 0; text-align: center}
.pictures img, .strip img {width: 100%; image-rendering: pixelated; display: block}
figcaption {font-size: 0.8rem}
.examples .grid-container {grid-template-columns: repeat(auto-fill, minmax(52px, 1fr)) !important}
.examples, .examples .grid-wrap {min-height: 0 !important; height: auto !important}
.prose td, .prose th {white-space: nowrap; word-break: normal}
.prose table {display: block; overflow-x: auto; border: 0}
@media (max-width: 480px) {.tab-container button {padding: 0 7px !important}}
"""
FONTS: dict[str, Any] = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}


class LocalOnly:
    """ASGI middleware that sends `POLICY` with every response."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
        async def sent(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, sent)


def figure(pixels: np.ndarray, caption: str) -> str:
    told = html.escape(caption)
    return f'<figure><img src="{uri(pixels)}" alt="{told}"><figcaption>{told}</figcaption></figure>'


def pictures(named: dict[str, np.ndarray]) -> str:
    return f'<div class="pictures">{"".join(figure(pixels, name) for name, pixels in named.items())}</div>'


def strip(demo: Demo, path: str) -> str:
    """Every prefix, and below it what its last tokens changed."""
    if not demo.flexible:
        return "This tokenizer decodes all of its tokens together; prefixes of them are not images."
    counts, images = demo.prefixes(path)
    original = demo.pixels(path)
    cells, before = [], None
    for count, image, change in zip(counts, images, changes(images), strict=True):
        quality = psnr(image, original)
        gain = f"{quality:.1f} dB" if before is None else f"{round(quality - before, 1) + 0.0:+.1f} dB"
        alt = f"{count} tokens: {quality:.1f} dB"
        cells.append(
            f'<figure><img src="{uri(image)}" alt="{alt}"><img src="{uri(change)}" alt="change">'
            f"<figcaption>{count}<br>{gain}</figcaption></figure>"
        )
        before = quality
    return f'<div class="strip">{"".join(cells)}</div>'


def said(work: Callable[..., Any]) -> Callable[..., Any]:
    """`work` with user errors shown as one sentence."""

    @wraps(work)
    def wrapped(*values: Any) -> Any:
        try:
            return work(*values)
        except UserError as error:
            raise gr.Error(sentence(error)) from None

    return wrapped


def sentence(error: UserError) -> str:
    """The message, without the folder of an upload."""
    text = str(error)
    for word in text.split("'"):
        if "/" in word and Path(word).is_file():
            text = text.replace(word, Path(word).name)
    return html.escape(text[0].upper() + text[1:] + ".", quote=False)


@dataclass
class Picker:
    """The path of the chosen image, the examples to choose from, and a button to upload another one."""

    path: gr.State
    gallery: gr.Gallery
    upload: gr.UploadButton


def picker(demo: Demo, label: str, first: int) -> Picker:
    gr.Markdown(f"### {label}")
    path = gr.State(demo.examples[first % len(demo.examples)])
    gallery = gr.Gallery(
        demo.examples, label=label, show_label=False, height="auto", allow_preview=False, object_fit="cover",
        elem_classes="examples", buttons=[],
    )  # fmt: skip
    return Picker(path, gallery, gr.UploadButton("Upload an image", size="sm"))


def on_choice(
    demo: Demo, chosen: Picker, show: Callable[..., str], inputs: list[Any], picture: gr.HTML
) -> list[gr.events.Dependency]:
    """When an example is selected or a file uploaded: keep its path, and put `show(path, *inputs)` into `picture`."""

    @said
    def example(event: gr.SelectData, *values: Any) -> tuple[str, str]:
        path = demo.examples[event.index]
        return path, show(path, *values)

    @said
    def uploaded(file: str, *values: Any) -> tuple[str, str]:
        return file, show(file, *values)

    where = {"outputs": [chosen.path, picture], "show_progress": "hidden"}
    selected = chosen.gallery.select(example, inputs, **where)
    return [selected, chosen.upload.upload(uploaded, [chosen.upload, *inputs], **where)]


def reconstruct_tab(demo: Demo) -> list[dict[str, Any]]:
    """Returns what runs when the page is opened, as in the other tabs."""
    chosen = picker(demo, "Choose an image", 0)
    count = gr.Slider(
        1, demo.num_tokens, value=demo.num_tokens, step=1, label="Tokens", visible=demo.flexible, elem_id="tokens"
    )
    picture = gr.HTML(elem_id="reconstruction")
    gr.Markdown("### What each token adds" if demo.flexible else "")
    tokens = gr.HTML(elem_id="strip")

    def reconstruction(path: str, k: float) -> str:
        original, image = demo.pixels(path), demo.reconstruct(path, int(k))
        told = f"{int(k)} of {demo.num_tokens} tokens, {psnr(image, original):.1f} dB"
        return pictures({"original": original, told: image})

    show = {"fn": reconstruction, "inputs": [chosen.path, count], "outputs": picture, "show_progress": "hidden"}
    rest = {"fn": partial(strip, demo), "inputs": chosen.path, "outputs": tokens}
    count.input(**show, trigger_mode="always_last")
    for event in on_choice(demo, chosen, reconstruction, [count], picture):
        event.success(**rest, trigger_mode="always_last")
    return [show, rest]


def mix_tab(demo: Demo) -> list[dict[str, Any]]:
    gr.Markdown("The first tokens of one image, followed by the remaining tokens of another.")
    with gr.Row():
        with gr.Column(min_width=280):
            first = picker(demo, "First tokens from", 1)
        with gr.Column(min_width=280):
            second = picker(demo, "Remaining tokens from", 2)
    count = gr.Slider(0, demo.num_tokens, value=demo.num_tokens // 4, step=1, label="Tokens of the first image")
    picture = gr.HTML(elem_id="mixture")

    def mixed(one: str, other: str, k: float) -> str:
        told = f"{int(k)} tokens of the first, {demo.num_tokens - int(k)} of the second"
        return pictures({"first": demo.pixels(one), "second": demo.pixels(other), told: demo.mix(one, other, int(k))})

    show = {"fn": mixed, "inputs": [first.path, second.path, count], "outputs": picture, "show_progress": "hidden"}
    count.input(**show, trigger_mode="always_last")
    on_choice(demo, first, mixed, [second.path, count], picture)
    on_choice(demo, second, lambda other, one, k: mixed(one, other, k), [first.path, count], picture)
    return [show]


def generate_tab(demo: Demo) -> None:
    if demo.generator is None or not demo.classes:
        gr.Markdown("No class-conditional generator is loaded; name one with `--gpt-ckpt`.")
        return
    most = demo.generator.num_tokens
    with gr.Row():
        label = gr.Dropdown([(name, at) for at, name in enumerate(demo.classes)], value=0, label="Class")
        seed = gr.Number(0, precision=0, label="Seed")
    with gr.Row():
        scale = gr.Slider(1, 8, value=2, step=0.1, label="Guidance scale")
        temperature = gr.Slider(0.1, 2, value=1, step=0.05, label="Temperature")
        count = gr.Slider(1, most, value=most, step=1, label="Tokens", visible=demo.flexible)
    button = gr.Button("Generate", variant="primary")
    picture = gr.HTML(elem_id="sample")

    def drawn(label: int, seed: float, scale: float, temperature: float, k: float) -> Iterator[str]:
        try:
            for drawn, pixels in demo.sample(label, int(seed), scale, temperature, int(k)):
                yield pictures({f"{demo.classes[label]}, {drawn} of {int(k)} tokens": pixels})
        except UserError as error:
            raise gr.Error(sentence(error)) from None

    button.click(
        drawn, [label, seed, scale, temperature, count], picture, show_progress="minimal", concurrency_limit=1
    )


def build(demo: Demo) -> gr.Blocks:
    """The page."""
    with gr.Blocks(analytics_enabled=False, title="image-token-lab") as page:
        gr.Markdown("# image-token-lab")
        with gr.Tab("Reconstruct"):
            steps = reconstruct_tab(demo)
        with gr.Tab("Mix"):
            steps = [steps[0], *mix_tab(demo), *steps[1:]]
        with gr.Tab("Generate"):
            generate_tab(demo)
        with gr.Tab("Figures"):
            gr.Markdown(demo.facts)
        for step in steps:
            page.load(**step)
    return page


def serve(demo: Demo, port: int, wait: bool = True) -> tuple[gr.Blocks, str]:
    """Open the page on 127.0.0.1 and block until Ctrl-C, or return it with its address."""
    page = build(demo)
    _, address, _ = page.launch(
        server_name="127.0.0.1", server_port=port or None, share=False, prevent_thread_lock=True, quiet=True,
        footer_links=[], theme=gr.themes.Default(**FONTS), css=CSS, max_file_size="50mb", pwa=False, ssr_mode=False,
        mcp_server=False, enable_monitoring=False, allowed_paths=demo.examples,
        app_kwargs={"middleware": [Middleware(LocalOnly)]},
    )  # fmt: skip
    print(f"{address}  (Ctrl-C stops it)", flush=True)
    if wait:
        page.block_thread()
    return page, address
