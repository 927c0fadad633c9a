"""The functions behind the demo's page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import tokenizer
from autoregressive.config import Sampling
from autoregressive.generate import generate
from autoregressive.guidance import Guidance
from common.errors import UserError
from studies.demo_models import Demo, DemoConfig, decodes_prefixes, psnr
from tests import toys


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    folder = tmp_path_factory.mktemp("demo")
    images = toys.write_images(folder / "images")
    vq, gpt = toys.save_tokenizer(folder / "vq"), toys.save_generator(folder / "gpt")
    return Demo.load(
        DemoConfig(
            vq_ckpt=str(vq), gpt_ckpt=str(gpt), images=str(images), results=str(folder), prefixes=True, device="cpu"
        )
    )


def test_the_models_of_a_quickstart_are_found(demo: Demo, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no tokenizer in .*quickstart.sh.*--vq-ckpt"):
        Demo.load(DemoConfig(results=str(tmp_path)))
    toys.save_tokenizer(tmp_path / "tokenizer")
    toys.save_generator(tmp_path / "gpt")
    found = Demo.load(DemoConfig(results=str(tmp_path), device="cpu"))
    assert found.classes == list(toys.COLOURS) and found.flexible
    assert len(found.examples) == 13  # the embedded photographs
    assert "no result record" in found.facts and "16 tokens" in found.facts


def test_prefixes_and_mixtures_are_what_the_tokenizer_decodes(demo: Demo) -> None:
    first, second = demo.examples[:2]
    counts, images = demo.prefixes(first, most=5)
    assert counts == [4, 8, 12, 16]
    assert np.array_equal(images[-1], demo.reconstruct(first)) and not np.array_equal(images[0], images[-1])
    assert np.array_equal(demo.mix(first, second, 16), demo.reconstruct(first))
    assert np.array_equal(demo.mix(first, second, 0), demo.reconstruct(second))


def test_samples_are_those_of_the_generator(demo: Demo) -> None:
    drawn = list(demo.sample(1, 3, 2.0, 0.9, num_tokens=10, pictures=4))
    assert [count for count, _ in drawn] == [2, 4, 6, 8, 10]
    codes = generate(
        demo.generator, torch.tensor([1]), 10, guidance=Guidance(2.0), sampling=Sampling(temperature=0.9), seed=3
    )
    assert np.array_equal(drawn[-1][1], demo.decode(codes)[0])
    assert np.array_equal(drawn[0][1], demo.decode(codes[:, :2])[0])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ((0, 0, 0.5, 1.0, 16), "guidance scale is 0.5"),
        ((0, 0, 2.0, 0.0, 16), "temperature is 0"),
        ((0, 0, 2.0, 1.0, 99), "num_tokens is 99"),
    ],
)
def test_settings_out_of_range_are_a_sentence(demo: Demo, settings: tuple, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        list(demo.sample(*settings))


def test_a_file_that_is_not_an_image_is_a_sentence(demo: Demo, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match="cannot be read"):
        demo.pixels(str(tmp_path / "broken.png"))


def test_which_tokenizers_decode_prefixes(tmp_path: Path) -> None:
    for name, changes in (("retok", {}), ("gigatok", {"layout": {"num_tokens": 16}})):
        model = tokenizer.load(toys.save_tokenizer(tmp_path / name, **changes))
        model.save_pretrained(tmp_path / f"{name}_folder")
        assert decodes_prefixes(model, tmp_path / f"{name}_folder") == (name == "retok")


def test_psnr_of_equal_images_is_infinite() -> None:
    image = np.full((2, 2, 3), 7, np.uint8)
    assert psnr(image, image) == float("inf") and round(psnr(image, image + 1), 2) == 48.13
