"""The lines of the check that run in this process. Each returns figures, or raises CheckError or SkipError."""

from __future__ import annotations

import tempfile
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.fx.experimental.proxy_tensor import make_fx

from autoregressive.cuda_graph import RecordedDraw, Recording
from autoregressive.generate import generate
from autoregressive.models.gpt import GPT
from autoregressive.sample import ImageSampler
from benchmarks import sampling, training
from benchmarks.check_gpu.cases import CASES, trainee_and_batch
from benchmarks.check_gpu.waits import waits_of
from common import attention, dist, parallel
from common.config import build
from common.data import ImageFolder
from evaluations.metrics.frechet import fit, frechet_distance
from evaluations.metrics.precision_recall import precision_recall

Figures = dict[str, Any]


class CheckError(Exception):
    """The line's promise is broken; the text says how."""


class SkipError(Exception):
    """The line cannot run here; the text says why."""


def check(kept: bool, otherwise: str) -> None:
    if not kept:
        raise CheckError(otherwise)


def machine(device: torch.device) -> Figures:
    """1: driver, torch, GPUs that are listed and that torch can use."""
    dist.init(device.type)
    listed = dist.listed_gpus()
    found = {"driver": dist.driver_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
    check(device.type == "cuda" or not listed, f"{len(listed)} GPUs are listed, but the check runs on the CPU")
    return found | {"listed": len(listed), "usable": torch.cuda.device_count()}


def recorded_codes(device: torch.device) -> Figures:
    """3: codes of a recorded batch equal those drawn call by call; a CPU traces instead of recording."""
    record = Recording if device.type == "cuda" else lambda function, *given: make_fx(function)(*given)
    found: Figures = {}
    numbers = {"codebook_size": 64, "num_tokens": 16 if device.type == "cuda" else 4, "num_classes": 4, "size": "tiny"}
    kinds = {
        "learned": {"name": "gpt"}, "rotary": {"name": "gpt", "positions": "rope2d"}, "rar": {"name": "rar"},
        "caption": {"name": "gpt", "positions": "rope2d", "condition": "caption", "caption_tokens": 3,
                    "caption_width": 8},
    }  # fmt: skip
    for name, config in kinds.items():
        torch.manual_seed(0)
        model = build("autoregressive.models:GENERATORS", config | numbers).eval().requires_grad_(False).to(device)
        head = model.lm_head if name == "rar" else model.output
        torch.nn.init.normal_(head.weight)
        labels = torch.arange(3, device=device)
        asked = torch.rand(3, 3, 8, device=device) if name == "caption" else labels
        draw, cache = RecordedDraw(model, record), model.new_cache(6)
        began = time.perf_counter()
        for seed, rows in ((0, 3), (0, 2), (1, 3)):  # the same settings, a short last batch, another seed
            given = (asked[:rows], labels[:rows])
            codes = draw(*given, cache, None, sampling.GUIDANCE, sampling.Sampling(), seed)
            eager = generate(model, given[0], guidance=sampling.GUIDANCE, seed=seed, image_ids=given[1])
            check(torch.equal(codes, eager), f"{name}: recorded codes differ from eager ones (seed {seed})")
        found[f"{name}_s"] = time.perf_counter() - began
    return found


def attention_lengths(device: torch.device) -> Figures:
    """4: the kernel of each kind of call, and seconds for 255 lengths that were not seen before."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    seconds = {}
    for name, varying in (("varying", True), ("fixed", False)):
        rows = torch.randn(8, 16, 256, 64, device=device, dtype=dtype)
        began = time.perf_counter()
        for length in range(1, 256):
            attention.attention(rows[:, :, :1], rows[:, :, :length], rows[:, :, :length], varying=varying)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds[f"{name}_kernel"] = attention.kernel_name("bf16", device, varying)
        seconds[f"{name}_s"] = time.perf_counter() - began
    check(seconds["varying_s"] < 5, f"255 lengths took {seconds['varying_s']:.1f} s; expected less than 5")
    return seconds


def compiled_step(device: torch.device) -> Figures:
    """5: S-S at full width: compiled units compute the eager loss, and none stays eager (torch would raise)."""
    if device.type != "cuda":
        raise SkipError("compiling takes minutes on a CPU; tests/integration/test_parallel.py counts the units")
    losses = {}
    for compiled in (False, True):
        trainee, batch = trainee_and_batch("S-S", device, "run.precision=bf16")
        if compiled:
            parallel.compile_units(trainee.trained)
        began = time.perf_counter()
        losses[compiled] = trainee.step(batch, 9)["train/loss"].item()
    check(abs(losses[True] / losses[False] - 1) < 1e-2, f"losses eager and compiled: {losses}")
    return {"first_step_s": time.perf_counter() - began, "loss": losses[True], "eager_loss": losses[False]}


def memory(device: torch.device) -> Figures:
    """6: peak memory of real steps against the estimate."""
    if device.type != "cuda":
        raise SkipError("a CPU process's memory includes torch's; tests/unit/test_estimate.py compares saved tensors")
    found = {}
    for case in ("tokenizer S-S", "GPT-B", "GPT-L"):
        torch.cuda.reset_peak_memory_stats()
        measured = training.training(device, [case], repeats=1)[f"{case}, bf16"]
        found[case] = measured["peak_memory_gb"] / measured["estimated_memory_gb"]
    check(all(0.7 < ratio < 1.3 for ratio in found.values()), f"peak over estimate: {found}")
    return found


def waits(device: torch.device) -> Figures:
    """7: no step waits for the device. The meta device stands in on a CPU."""
    place = device if device.type == "cuda" else torch.device("meta")
    found = {}
    for name in CASES:
        trainee, batch = trainee_and_batch(name, place, "run.precision=bf16")
        trainee.step(batch, 8)  # the first step moves tables to the device
        found[name] = waits_of(lambda t=trainee, b=batch: t.step(b, 9), place)
    check(not any(found.values()), f"steps wait: { {name: each for name, each in found.items() if each} }")
    return {"steps": len(found)}


def parts_in_bf16(device: torch.device) -> Figures:
    """8: losses and gradients of one bf16 step of every case on the device against float32 on the CPU."""
    found = {}
    for name in CASES:
        figures = []
        for place, precision in ((torch.device("cpu"), "none"), (device, "bf16")):
            trainee, batch = trainee_and_batch(name, place, f"run.precision={precision}")
            weights = torch.Generator().manual_seed(0)
            for weight in trainee.trained.parameters():
                if weight.ndim > 1 and not weight.any():  # behind a matrix of zeros nothing is compared
                    weight.data.copy_(torch.randn(weight.shape, generator=weights) * 0.02)
            logged = trainee.step(batch, 0)
            check(not logged["not_finite"], f"{name}: the step in {precision} on {place} is not finite")
            figures.append([logged[key].item() for key in ("train/loss", "train/grad_norm")])
        found[name] = [round(abs(there / here - 1), 4) for here, there in zip(*figures, strict=True)]
    # Another code is chosen where two are as near, which moves gradients more than losses.
    check(all(a < 0.05 and b < 0.3 for a, b in found.values()), f"relative differences of loss, gradient norm: {found}")
    return found


def same_codes(device: torch.device) -> Figures:
    """9: codes on the device against the CPU, TF32 on and off; images the same at batch 7, 32 and 128."""
    found: Figures = {}
    tokenizer = trainee_and_batch("retok", torch.device("cpu"))[0].tokenizer.eval().requires_grad_(False)
    images = torch.rand(16, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        expected = tokenizer.encode(images)
    placed = deepcopy(tokenizer).to(device)
    for tf32 in (False, True):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        with torch.no_grad():
            found[f"equal_tf32_{tf32}"] = (placed.encode(images.to(device)).cpu() == expected).float().mean().item()
    check(found["equal_tf32_False"] > 0.99, f"share of equal codes: {found}")
    model = GPT(GPT.Config(size="tiny", codebook_size=256, num_tokens=16, num_classes=4)).eval().to(device)
    torch.nn.init.normal_(model.output.weight)
    sampler, rows = ImageSampler(model, placed), torch.arange(128, device=device)
    pixels = []
    for size in (7, 32, 128):
        parts = [
            sampler.codes(part % 4, part, sampling.GUIDANCE, sampling.Sampling(), 0) for part in rows.split(size)
        ]  # fmt: skip
        pixels.append(sampler.pixels(torch.cat(parts)[:32]))
    check(all(np.array_equal(each, pixels[0]) for each in pixels), "images differ between batches of 7, 32 and 128")
    return found


def metrics(device: torch.device) -> Figures:
    """11: precision and recall on the device against the CPU, and the Frechet distance of the same features."""
    count = 4096 if device.type == "cuda" else 512
    one, two = (np.random.default_rng(seed).standard_normal((count, 256), np.float32) for seed in (0, 1))
    began = time.perf_counter()
    here = precision_recall(one, two, device=device)
    seconds = time.perf_counter() - began
    check(here == precision_recall(one, two, block=300), "precision and recall depend on device or block")
    return {"seconds": seconds, "frechet": frechet_distance(fit(one), fit(two))}


def throughput(device: torch.device) -> Figures:
    """12: images per second of training steps and of sampling, and their share of the roofline."""
    if device.type != "cuda":
        case = training.training(device, ["quickstart GPT"], repeats=1)["quickstart GPT, bf16"]
        return {"quickstart GPT": case["ours"]["items_per_s"]}
    found = training.training(device, ["tokenizer S-S", "GPT-B, compiled"], repeats=3)
    rates = {name: [each["ours"]["items_per_s"], each["mfu"]] for name, each in found.items()}
    drawn = sampling.images(device, repeats=2)
    return rates | {name: each["ours"]["items_per_s"] for name, each in drawn.items()}


def loading(device: torch.device, images: int = 64) -> Figures:
    """13a: images per second and core from JPEG (500 x 375) to a random crop of 256."""
    with tempfile.TemporaryDirectory() as folder:
        pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        for number in range(images):
            Image.fromarray(pixels).resize((500, 375)).save(Path(folder) / f"{number}.jpg", quality=90)
        data = ImageFolder(folder, 256, crop="random", flip=True)
        began = time.perf_counter()
        for number in range(images):
            data[(number, number)]
        return {"images_per_s_and_core": images / (time.perf_counter() - began)}


def eight_bits(device: torch.device) -> Figures:
    """10: error and speed of 8-bit weights."""
    raise SkipError("there are no 8-bit weights: they were converted before the product and read more bytes than bf16")

