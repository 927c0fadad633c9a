"""Figures of twenty steps of every trainer, started by its command line on data made here: fp32, one thread, CPU.

Every figure that a run logs is kept but times and memory: losses by name, gradient norms, rates, what validation finds.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch
import yaml

from tests import toys

STORED = Path(__file__).parent / "losses.json"
Figures = dict[str, list[float]]
"""By name, in the order they were logged."""

RUN = {
    "run": {
        "steps": 20, "checkpoint_every": 20, "keep_last": 1, "milestone_every": 0, "precision": "none", "device": "cpu",
        "validate_every": 10,
    },
    "log": {"every": 1},
    "optim": {"lr": 3e-4, "warmup": 3},
    "data": {"batch_size": 4},
}  # fmt: skip
PERCEPTUAL = {"name": "efficientnet_lite0", "strides": [4]}
RETOK = {
    **RUN,
    # Codes near a tie amplify rounding tenfold a step at a usual rate; at this one other processors agree to 1e-5.
    "optim": {"lr": 1e-6, "warmup": 3},
    "model": {
        **toys.TOKENIZER,
        "decoder": {**toys.TOKENIZER["decoder"], "semantic_head": {"depth": 1, "width": 112}},
        "quantizer": {"name": "vq", "codebook_size": 64, "entropy_weight": 0.1, "rotation": True},
    },
    "losses": {"perceptual": PERCEPTUAL},
    "adversary": {
        "start": 5, "adaptive": True, "lecam": {"settle": 4},
        "discriminator": {"name": "patchgan", "channels": 8, "layers": 1},
    },
    "regularizers": {
        "nested_dropout": {"min_tokens": 2},
        "semantic": {"teacher": {"name": "efficientnet_lite0"}, "schedule": "linear"},
        "shortcut": {"until": 3},
    },
    "ema_decay": 0.9,
}  # fmt: skip
VIT = {"name": "dino_vit", "width": 112, "layers": 1, "heads": 2, "patch": 8, "drop_path": 0.1}
ROBUSTOK = {
    **RUN,
    "model": {
        "image_size": 32, "z_channels": 112, "layout": {"num_tokens": 16},
        "encoder": VIT, "decoder": VIT,
        "quantizer": {"name": "vq_hits", "codebook_size": 64},
    },
    "losses": {"perceptual": PERCEPTUAL},
    "adversary": {
        "start": 8, "loss": "non_saturating", "discriminator": {"name": "patchgan", "channels": 8, "layers": 1},
    },
    "regularizers": {
        "perturbation": {"beta": 0.5, "delta": 9, "anneal_start": 5, "anneal_end": 15, "end_ratio": 0.5},
        "contrastive": {"teacher": {"name": "efficientnet_lite0"}},
    },
    "ema_decay": 0.0,
}  # fmt: skip
GPT = {
    **RUN,
    "model": {
        "name": "gpt", "size": "tiny", "class_dropout": 0.3, "residual_dropout": 0.2, "token_dropout": 0.1,
        "ffn_dropout": 0.1, "adaln": "full",
    },
    "input_noise": 0.2,
}  # fmt: skip
RAR = {
    **RUN,
    "optim": {"lr": 3e-3, "warmup": 3},  # the head starts at zero: until it has grown, dropout hardly shows
    "model": {"name": "rar", "size": "tiny", "class_dropout": 0.3, "random_until": 0.3, "raster_from": 0.7},
}

ENCODER_SIDE = "freeze=[encoder,quant_conv,quantizer]"
RUNS: dict[str, tuple[str, dict, str]] = {
    "retok": (
        "tokenizer.train", RETOK, "data.root={images} val_root={held_out} run.accumulate=2",
    ),
    "decoder": (
        "tokenizer.train", RETOK,
        "data.root={images} val_root={held_out} init={out}/retok adversary.init={out}/retok regularizers.shortcut=null "
        f"adversary.start=0 {ENCODER_SIDE}",
    ),
    "nested_align": (
        "tokenizer.train", RETOK,
        "data.root={images} val_root={held_out} adversary.loss=relativistic adversary.penalty=2 adversary.lecam=null "
        "adversary.adaptive=false regularizers.shortcut=null regularizers.nested_dropout=null ema_decay=0 "
        "model.quantizer.name=fsq regularizers.cross_length=true regularizers.self_alignment=true",
    ),
    "robustok": ("tokenizer.train", ROBUSTOK, "data.root={images} val_root={held_out}"),
    "post_training": (
        "tokenizer.train", ROBUSTOK,
        "data.root={images} val_root={held_out} data.pairs={pairs} data.crop=center data.flip=false "
        f"init={{out}}/robustok regularizers.perturbation=null regularizers.contrastive=null {ENCODER_SIDE} "
        "run.accumulate=2 ema_decay=0.9",
    ),
    "gpt": (
        "autoregressive.train", GPT,
        "data.codes={codes} data.val_codes={held_out_codes} ema_decay=0.9 run.accumulate=2",
    ),
    "gpt_regression": (
        "autoregressive.train", GPT,
        "data.codes={codes} data.val_codes={held_out_codes} data.vq_ckpt={vq} regression.weight=0.5 model.adaln=none",
    ),
    "rar": ("autoregressive.train", RAR, "data.codes={codes} data.val_codes={held_out_codes}"),
    "probe_tokenizer": ("evaluations.linear_probe", {}, "vq_ckpt={vq}"),
    "probe_generator": ("evaluations.linear_probe", {}, "vq_ckpt={vq} gpt_ckpt={out}/gpt"),
}  # fmt: skip
"""Module, YAML, further settings with folders in braces. Later runs start from earlier ones."""

PROBE = (
    "data_path={images} val_path={held_out} per_proc_batch_size=8 epochs=20 warmup_epochs=2 lr=1 log.every=1 device=cpu"
)


def job(module: str, *words: str) -> None:
    """A job by its command line, in this process."""
    with mock.patch.object(sys, "argv", [module, *words]):
        importlib.import_module(module).main()


def prepare(root: Path) -> dict[str, str]:
    """Images, an untrained tokenizer and the codes it makes; folders by the names that `RUNS` uses."""
    names = ("images", "held_out", "vq", "codes", "held_out_codes", "pairs", "out")
    folders = {name: str(root / name) for name in names}
    toys.write_images(root / "images", counts=(8, 3, 5))
    toys.write_images(root / "held_out", counts=(2, 1, 4), side=(32, 32))
    toys.save_tokenizer(root / "vq")
    for images, codes in (("images", "codes"), ("held_out", "held_out_codes")):
        given = (f"data_path={root / images}", f"code_path={root / codes}", f"vq_ckpt={root / 'vq'}", "device=cpu")
        job("autoregressive.extract_codes", *given)
    return folders


def make_pairs(root: Path) -> None:
    """Of the `robustok` run and a generator with as many codes."""
    toys.save_generator(root / "robustok_gpt")
    given = (f"vq_ckpt={root}/out/robustok", f"gpt_ckpt={root}/robustok_gpt", f"data_path={root}/images")
    job("autoregressive.make_pairs", *given, "vq_weights=model", f"out={root}/pairs", "device=cpu")


def figures(metrics: Path) -> Figures:
    """What a run has logged, without times and memory."""
    found: Figures = {}
    for line in metrics.read_text().splitlines():
        for name, value in json.loads(line).items():
            if name.startswith(("train/", "val/")):
                found.setdefault(name, []).append(value)
    return found


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """One thread, nothing printed but an error's output."""
    threads, output = torch.get_num_threads(), io.StringIO()
    torch.set_num_threads(1)
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            yield
    except BaseException:
        print(output.getvalue(), file=sys.stderr)
        raise
    finally:
        torch.set_num_threads(threads)


def measure() -> dict[str, Figures]:
    """All runs, one after the other."""
    found = {}
    with tempfile.TemporaryDirectory() as folder, quietly(), mock.patch.dict(os.environ, WANDB_MODE="disabled"):
        root = Path(folder)
        folders = prepare(root)
        for name, (module, settings, words) in RUNS.items():
            if name == "post_training":
                make_pairs(root)
            out, path = root / "out" / name, root / f"{name}.yaml"
            path.write_text(yaml.safe_dump(settings))
            if module == "evaluations.linear_probe":
                words = f"{PROBE} {words} out={out}"
            else:
                words = f"--config {path} {words} run.out={out}"
            job(module, *words.format(**folders).split())
            found[name] = figures(out / "metrics.jsonl")
            if "probe" in name:
                found[name]["accuracy"] = [json.loads((out / "results.json").read_text())["accuracy"]]
    return found


def stored() -> dict[str, Figures]:
    runs = json.loads(STORED.read_text())
    return {
        run: {name: [float.fromhex(value) for value in values.split()] for name, values in logged.items()}
        for run, logged in runs.items()
    }


def write() -> None:
    """Replace the stored figures; floats in hexadecimal, so that they read back exactly."""
    hexadecimal = {
        run: {name: " ".join(float(value).hex() for value in values) for name, values in sorted(logged.items())}
        for run, logged in measure().items()
    }
    STORED.write_text(json.dumps(hexadecimal, indent=1) + "\n")


def allowed(name: str, adaptive: bool) -> float:
    """Relative difference between processors; what amplifies a step's rounding gets more.

    `adaptive`: the sum of the losses contains the adversarial one times its adaptive weight.
    """
    amplified = ("grad_norm", "logits", "@", "adversarial", "penalty")
    if any(word in name for word in amplified):
        return 1e-2
    return 1e-3 if adaptive and name == "train/loss" else 1e-5


def different(got: Figures, expected: Figures, exact: bool = False) -> list[str]:
    """The figures that are not as recorded, with the first place (1-based) where they are not.

    Values below 0.1 are compared as if they were 0.1.
    """
    found = [f"{name}: logged {'before' if name in expected else 'now'} only" for name in got.keys() ^ expected.keys()]
    for name in sorted(got.keys() & expected.keys()):
        if len(got[name]) != len(expected[name]):
            found.append(f"{name}: {len(got[name])} values, {len(expected[name])} before")
            continue
        pairs = list(zip(got[name], expected[name], strict=True))
        relative = 0.0 if exact else allowed(name, "train/weight@adversarial" in expected)
        apart = [step for step, (a, b) in enumerate(pairs, 1) if not abs(a - b) <= relative * max(abs(b), 0.1)]
        if apart:
            a, b = pairs[apart[0] - 1]
            found.append(f"{name}: {a!r} at value {apart[0]}, {b!r} before; {len(apart)} of {len(pairs)} differ")
    return found
