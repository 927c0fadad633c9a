"""The functions behind the demo's page: reconstructions, mixtures and samples of images as pixels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

import numpy as np
import torch
from torch import Tensor

import tokenizer as tokenizers
from autoregressive.config import Sampling
from autoregressive.generate import check_num_tokens, generate
from autoregressive.guidance import Guidance
from autoregressive.models.gpt import GPT
from autoregressive.released import class_names, load_compatible
from common import dist, records
from common.checkpoint import fingerprint, read_config, resolve_folder
from common.classes import list_folder
from common.config import opt
from common.errors import UserError
from common.images import center_crop, from_pixels, read_image, to_pixels
from common.options import WEIGHTS
from evaluations.harness import spread
from studies.photos import PHOTOS, photo_path
from tokenizer.model import Tokenizer

__all__ = ["Demo", "DemoConfig", "decodes_prefixes", "example_images", "psnr"]

TRAINED_ON_PREFIXES = ("nested_dropout", "cross_length")
"""Regularizers that teach a decoder to decode prefixes."""
EXAMPLES = 16


@dataclass
class DemoConfig:
    results: str = opt("results/quickstart", "a quickstart's folder: its models, images and result records are used")
    vq_ckpt: str | None = opt(None, "tokenizer: a run, a checkpoint or a released file; null = the one in results")
    gpt_ckpt: str | None = opt(None, "generator; null = the one in results, unless vq_ckpt is given")
    vq_weights: str = opt("ema", "tokenizer weights; ema falls back to model", WEIGHTS)
    gpt_weights: str = opt("model", "generator weights", WEIGHTS)
    images: str | None = opt(None, "image folder to choose from; null = the quickstart's, else embedded photographs")
    prefixes: bool | None = opt(None, "whether prefixes of the tokens decode; null = as the checkpoint's config says")
    port: int = opt(7860, "port of the page on 127.0.0.1; 0 = any free one", low=0)
    device: str = opt("auto", "auto | cpu | cuda")


@dataclass
class Demo:
    """A tokenizer, and optionally a generator on its codes, behind the functions that the page calls.

    flexible: prefixes decode. classes: names of the generator's classes. examples: image files. facts: Markdown.
    """

    tokenizer: Tokenizer
    generator: GPT | None
    flexible: bool
    classes: list[str]
    examples: list[str]
    facts: str = ""

    def __post_init__(self) -> None:
        self.device = next(self.tokenizer.parameters()).device
        self.pixels = lru_cache(64)(self._pixels)
        self.codes = lru_cache(64)(self._codes)

    @classmethod
    def load(cls, options: DemoConfig) -> Demo:
        """Raises: UserError when there is no checkpoint, or the generator's codes are not the tokenizer's."""
        results, device = Path(options.results), dist.init(options.device).device
        vq, gpt = options.vq_ckpt, options.gpt_ckpt
        if vq is None:
            if not (results / "tokenizer").is_dir():
                raise UserError(
                    f"there is no tokenizer in {str(results / 'tokenizer')!r}; run bash scripts/quickstart.sh, or name "
                    "a checkpoint with --vq-ckpt"
                )
            vq = str(results / "tokenizer")
            gpt = gpt or (str(results / "gpt") if (results / "gpt").is_dir() else None)
        tokenizer = tokenizers.load(vq, options.vq_weights, device)
        generator = load_compatible(gpt, options.gpt_weights, device, tokenizer) if gpt else None
        flexible = decodes_prefixes(tokenizer, vq) if options.prefixes is None else options.prefixes
        classes = class_names(gpt, generator.num_classes) if gpt and generator else []
        facts = _facts(tokenizer, generator, vq, gpt, results)
        return cls(tokenizer, generator, flexible, classes, example_images(options.images, results), facts)

    @property
    def num_tokens(self) -> int:
        return self.tokenizer.num_tokens

    def _pixels(self, path: str) -> np.ndarray:
        """The centre crop of an image file, uint8 (H,W,3) of the tokenizer's size. Raises: as `read_image`."""
        return np.asarray(center_crop(read_image(path), self.tokenizer.image_size))

    def _codes(self, path: str) -> Tensor:
        """int64 (1,N)."""
        pixels = torch.from_numpy(self.pixels(path).copy())[None].to(self.device)
        return self.tokenizer.encode(from_pixels(pixels))

    def reconstruct(self, path: str, num_tokens: int | None = None) -> np.ndarray:
        """The image from its first `num_tokens` (default all) tokens, uint8 (H,W,3)."""
        return self.decode(self.codes(path)[:, : num_tokens or self.num_tokens])[0]

    def decode(self, codes: Tensor) -> np.ndarray:
        """Codes (B,k) -> uint8 (B,H,W,3)."""
        return to_pixels(self.tokenizer.decode(codes))

    def prefixes(self, path: str, most: int = 64) -> tuple[list[int], np.ndarray]:
        """At most `most` token counts, evenly spread up to all tokens, and the image at each, uint8 (n,H,W,3)."""
        step = -(-self.num_tokens // most)
        counts = [*range(step, self.num_tokens, step), self.num_tokens]
        decode = self.tokenizer.decode
        parts = [part.to(self.device) for part in torch.tensor(counts).split(16)]
        images = [decode(self.codes(path).expand(len(part), -1), num_tokens=part) for part in parts]
        return counts, to_pixels(torch.cat(images))

    def mix(self, first: str, second: str, num_tokens: int) -> np.ndarray:
        """The first `num_tokens` (0 to N) tokens of one image, then the remaining ones of another; uint8 (H,W,3)."""
        codes = torch.cat((self.codes(first)[:, :num_tokens], self.codes(second)[:, num_tokens:]), dim=1)
        return self.decode(codes)[0]

    def sample(
        self, label: int, seed: int, scale: float, temperature: float, num_tokens: int | None = None, pictures: int = 16
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Numbers of tokens drawn so far and the image from them, uint8 (H,W,3): about `pictures` of them, the whole
        last. One picture if prefixes do not decode.

        Raises: UserError for settings outside the generator's range.
        """
        count = check_num_tokens(self.generator, num_tokens)
        if not self.flexible and count != self.num_tokens:
            raise UserError(f"num_tokens is {count}; this tokenizer decodes exactly {self.num_tokens} tokens")
        if not temperature > 0:
            raise UserError(f"the temperature is {temperature}; expected a number above 0")
        guidance, sampling = Guidance(scale=scale), Sampling(temperature=temperature)
        guidance.scales(count)
        queue: SimpleQueue[Tensor | Exception] = SimpleQueue()

        def draw() -> None:
            try:
                labels = torch.tensor([label], device=self.device)
                generate(
                    self.generator, labels, count, guidance=guidance, sampling=sampling, seed=seed,
                    on_codes=lambda codes: queue.put(codes.clone()),
                )
            except Exception as error:
                queue.put(error)

        Thread(target=draw, daemon=True).start()
        every, drawn = max(1, count // pictures), 0
        while drawn < count:
            codes = queue.get()
            if isinstance(codes, Exception):
                raise codes
            drawn = codes.shape[1]
            if drawn == count or (self.flexible and drawn % every == 0):
                yield drawn, self.decode(codes)[0]


def decodes_prefixes(tokenizer: Tokenizer, path: str | Path) -> bool:
    """Whether the first tokens alone give an image: the training says so, or ReTok's redundant tokens do."""
    folder = resolve_folder(path)
    trained = read_config(folder).get("regularizers") if folder.is_dir() else None
    if not tokenizer.is_1d:
        return False
    if trained is not None:
        return any((trained.get(name) or {}) for name in TRAINED_ON_PREFIXES)
    return tokenizer.config.layout.redundant > 0


def example_images(folder: str | None, results: Path) -> list[str]:
    """Image files to choose from: of `folder`, else of the images that the quickstart measured, else photographs."""
    if folder is None:
        try:
            folder = json.loads((results / "reconstruction/results.json").read_text())["question"]["data_path"]
        except (OSError, ValueError, KeyError):
            folder = None
        if folder is None or not Path(folder).is_dir():
            return [str(photo_path(photo)) for photo in PHOTOS]
    paths = list_folder(Path(folder)).paths
    return [str(paths[at]) for at in spread(len(paths), min(EXAMPLES, len(paths)))]


def psnr(image: np.ndarray, other: np.ndarray) -> float:
    """dB, of two uint8 images."""
    error = np.square(image.astype(np.float64) - other).mean()
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def _facts(tokenizer: Tokenizer, generator: GPT | None, vq: str, gpt: str | None, results: Path) -> str:
    """Markdown: the models, and the figures of every record below `results` that was made with their weights."""
    used = {fingerprint(resolve_folder(path)) for path in (vq, gpt) if path}
    lines = ["| model | checkpoint | parameters |", "|-|-|-|"]
    for name, model, path in (("tokenizer", tokenizer, vq), ("generator", generator, gpt)):
        if model is not None:
            lines.append(f"| {name} | `{path}` | {sum(p.numel() for p in model.parameters()) / 1e6:,.1f}M |")
    side = tokenizer.image_size
    lines.append(f"\n{side} x {side} pixels, {tokenizer.num_tokens} tokens, codebook of {tokenizer.codebook_size:,}.")
    found = records.find(results, used)
    told = records.render(found) if found else f"There is no result record of these weights below `{results}`."
    return "\n".join(lines) + "\n\n" + told
