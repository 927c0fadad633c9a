"""Flags of the papers' scripts and the options they set."""

from __future__ import annotations

from common.config import Alias
from common.paper_flags import estimate, half, only, optional, sharded, switch

__all__ = ["COMMON_FLAGS", "EXTRACT_FLAGS", "PAIRS_FLAGS", "SAMPLE_FLAGS", "TRAIN_FLAGS"]


COMMON_FLAGS: dict[str, Alias] = {"quant-way": only("quant-way", "vq"), "gpt-type": only("gpt-type", "c2i")}

MODEL_FLAGS: dict[str, Alias] = {
    "gpt-model": "model.size",
    "gpt-2d": switch("model.positions=rope2d"),
    "qk-norm": switch("model.qk_norm=true"),
    "adaLN": switch("model.adaln=full"),
    "simple-adaLN": switch("model.adaln=simple"),
    "num-classes": "model.num_classes",
    "token-dropout-p": "model.token_dropout",
    "dropout-p": lambda value: [f"model.residual_dropout={value}", f"model.ffn_dropout={value}"],
    "drop-path-rate": "model.drop_path",
}

RAR_SIZES = {
    "hidden_size": "width", "num_hidden_layers": "layers", "num_attention_heads": "heads",
    "intermediate_size": "ffn_width", "dropout": "dropout", "attn_drop": "attention_dropout",
    "image_seq_len": "num_tokens", "condition_num_classes": "num_classes", "class_label_dropout": "class_dropout",
}  # fmt: skip
"""`model.generator.*` of RobusTok's configs: our key of the generator."""


def _unused(value: str) -> list[str]:
    """RobusTok's names for its tracker have no effect; set log.wandb instead."""
    return []


def _rar(place: str, out: str) -> dict[str, Alias]:
    """RobusTok's dotlist and YAML keys, for a job that keeps the generator's config in `place`."""
    return {
        **{f"model.generator.{theirs}": f"{place}.{ours}" for theirs, ours in RAR_SIZES.items()},
        "model.vq_model.codebook_size": f"{place}.codebook_size",
        "experiment.project": _unused, "experiment.name": _unused, "experiment.output_dir": out,
    }  # fmt: skip


def _rar_draw(out: str) -> dict[str, Alias]:
    return {
        **_rar("generator", out),
        "model.name": "generator.name",
        "model.vq_ckpt": "vq_ckpt",
        "experiment.generator_checkpoint": "gpt_ckpt",
        "model.generator.randomize_temperature": "sampling.temperature",
        "model.generator.guidance_scale": "guidance.scale",
        "model.generator.guidance_scale_pow": lambda value: [
            f"guidance.power={value}", "guidance.schedule=power_cosine",
        ],
    }  # fmt: skip


EXTRACT_FLAGS: dict[str, Alias] = {
    **COMMON_FLAGS,
    "dataset": only("dataset", "imagenet"),
    "model-config": "tok_config",
    "crop-range": lambda value: [f"crop_ranges=[{value}]"],
    "num-workers": "workers",
    "resume": switch(),
}

TRAIN_FLAGS: dict[str, Alias] = {
    **COMMON_FLAGS,
    **MODEL_FLAGS,
    **_rar("model", "run.out"),
    "model.vq_ckpt": "data.vq_ckpt",
    "dataset.params.pretokenization": "data.codes",
    "dataset": only("dataset", "imagenet", "imagenet_code"),
    "code-path": "data.codes",
    "val-code-path": "data.val_codes",
    "data-path": "data.root",
    "vq-ckpt": "data.vq_ckpt",
    "tok-config": "data.tok_config",
    "image-size": "data.image_size",
    "global-batch-size": "data.batch_size",
    "num-workers": "data.workers",
    "iterations": "run.steps",
    "early-stop-iter": optional("run.stop_at"),
    "global-seed": "run.seed",
    "ckpt-every": "run.checkpoint_every",
    "milestone-step": "run.milestone_every",
    "mixed-precision": half("run.precision"),
    "out": "run.out",
    "save-path": "run.out",
    "device": "run.device",
    "lr": "optim.lr",
    "weight-decay": "optim.weight_decay",
    "beta1": "optim.beta1",
    "beta2": "optim.beta2",
    "max-grad-norm": "optim.max_grad_norm",
    "warmup": "optim.warmup",
    "lr-scheduler": lambda value: [f"optim.schedule={'constant' if value == 'const' else value}"],
    "end-lr": "optim.end_lr",
    "fract-decay": "optim.cooldown_fraction",
    "estimate": estimate(),
    "log-every": "log.every",
    "wandb-project": "log.wandb",
    "no-wandb": switch("log.wandb=null"),
    "no-compile": switch(),  # nothing is compiled unless asked for
    "cls-token-num": only("cls-token-num", "1"),
    "data-parallel": sharded,
    "ema": switch("ema_decay=0.9999"),
}

DRAW_FLAGS: dict[str, Alias] = {
    **COMMON_FLAGS,
    "cfg-scale": "guidance.scale",
    "cfg-schedule": "guidance.schedule",
    "cfg-interval": "guidance.interval",
    "step-start-ratio": "guidance.window_start",
    "temperature": "sampling.temperature",
    "top-k": "sampling.top_k",
    "top-p": "sampling.top_p",
    "global-seed": "seed",
    "per-proc-batch-size": "batch_size",
    "precision": half("precision"),
}

SAMPLE_FLAGS: dict[str, Alias] = {
    **DRAW_FLAGS,
    **_rar_draw("sample_dir"),
    "num-fid-samples": "num_images",
    "num-token": "num_tokens",
    "qual-num": "num_images",
    "class-idx": lambda value: [f"classes=[{value}]"],
}

PAIRS_FLAGS: dict[str, Alias] = {**DRAW_FLAGS, **_rar_draw("out"), "num-workers": "workers"}
