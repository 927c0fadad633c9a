"""Train, fine-tune or post-train a tokenizer: `python -m tokenizer.train --config configs/vq/VQ_SB256.yaml ...`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import checkpoint, config, dist, loop, numerics
from common.config import build, lookup
from common.containers import open_images
from common.data import ImageFolder, batches, share, stream
from common.dist import World
from common.errors import UserError
from common.estimate import measure, shortage
from common.guard import Alarm
from common.images import from_pixels
from common.pairs import PairFolder
from common.paper_flags import joined
from common.trainee import Trainee
from tokenizer import load_weights
from tokenizer.config import TrainConfig
from tokenizer.frozen_codes import FrozenCodes, codes_fingerprint
from tokenizer.lora import adapt, merged
from tokenizer.losses.adversary import Adversary
from tokenizer.model import Pass, Tokenizer
from tokenizer.paper_flags import TRAIN_FLAGS
from tokenizer.paper_yaml import from_robustok
from tokenizer.pretrained import check_teacher, start_from
from tokenizer.regularizers.base import Context, Plan
from tokenizer.training_pass import TrainingPass


def post_train() -> None:
    """RobusTok's flags for post-training: --data-path is the pairs, --pair-set the folder of real images."""
    train({**TRAIN_FLAGS, "data-path": "data.pairs", "pair-set": "data.root"})


def train(flags: Mapping[str, config.Alias]) -> None:
    argv = joined(sys.argv[1:], "results/tokenizers/vq")
    settings = config.parse(TrainConfig, argv, aliases=flags, about=__doc__, translate=from_robustok)
    (estimate if settings.estimate else run)(settings)


ENCODER_SIDE = ("encoder", "quant_conv", "quantizer")
"""The parts that determine codes, which decoder training keeps frozen."""


def alarms() -> list[Alarm]:
    """Warnings of tokenizer training."""
    collapse = "the codebook collapses; try quantizer.entropy_weight, quantizer.refresh_every or a lower optim.lr"
    explosion = "the discriminator explodes; try a lower adversary.weight or optim.lr, or a later adversary.start"
    return [
        Alarm("train/codebook_usage", collapse, fallen=0.5),
        Alarm("train/codebook_usage", collapse, below=0.02, after=1000),
        Alarm("train/logits_real", explosion, above=100.0),
        Alarm("train/logits_fake", explosion, above=100.0),
    ]


class TokenizerTrainee(Trainee):
    """A tokenizer, its losses and regularizers, and the discriminator it is trained against, if any."""

    def __init__(self, config: TrainConfig, world: World):
        super().__init__(config.run, config.optim, world)
        self.config, self.alarms = config, alarms()
        if config.init and config.backbone:
            raise UserError("init brings the weights of all parts, so backbone would be ignored; set backbone=null")
        if config.run.parallel == "fsdp" and config.model.quantizer.get("refresh_every"):
            raise UserError(
                "quantizer.refresh_every moves rows of the whole codebook, which fsdp splits over the processes; "
                "use run.parallel=ddp or quantizer.refresh_every=0"
            )
        self.tokenizer = Tokenizer(config.model)
        if config.init:
            load_weights(self.tokenizer, config.init, "ema")
        elif config.backbone:
            start_from(self.tokenizer, config.backbone)
        if config.lora:
            adapt(self.tokenizer, config.lora, config.freeze)
        self.regularizers = self._regularizers()
        losses = {name: build("tokenizer.losses:LOSSES", mapping) for name, mapping in config.losses.items()}
        self.losses_by_name = numerics.place(nn.ModuleDict(losses), world.device)
        self.start(
            self.tokenizer, TrainingPass(self.tokenizer, config.freeze, self.regularizers), config.ema_decay
        )
        self.frozen_codes: FrozenCodes | None = None
        self.adversary = None
        if config.adversary:
            self.adversary = Adversary(config.adversary, config.optim, world, config.run.precision)

    def _regularizers(self) -> nn.ModuleList:
        """In the order of their hooks."""
        model, tokenizer = self.config.model, self.tokenizer
        context = Context(
            tokenizer.grid,
            tokenizer.image_size,
            self.world.device,
            num_codes=model.layout.extended if tokenizer.is_1d else tokenizer.num_tokens,
            quantizer=tokenizer.quantizer,
            z_channels=model.z_channels,
            teacher=tokenizer.teacher if model.teacher else None,
        )
        built = [
            build("tokenizer.regularizers:REGULARIZERS", mapping, context=context)
            for mapping in self.config.regularizers.values()
        ]
        return nn.ModuleList(sorted(built, key=lambda each: each.order)).to(self.world.device)

    def hold_codes(self) -> None:
        """With a frozen encoder side: from now on checkpoints are written only if codes are still today's."""
        if set(ENCODER_SIDE) <= set(self.config.freeze):
            self.frozen_codes = FrozenCodes(self.tokenizer, self.run.precision)

    def _check_codes(self) -> None:
        if self.frozen_codes:
            self.frozen_codes.check("model", self.tokenizer, self.trained)
            if self.ema:
                self.frozen_codes.check("ema", self.ema.module, self.ema.module)

    def plan(self, batch_size: int, step: int, number: int = 0) -> Plan:
        """The plan of micro-batch `number` of this process: its slice of what is drawn for the global batch."""
        slot = self.world.rank * self.run.accumulate + number
        plan = Plan(step, self.run.seed, batch_size, slot, self.config.model.layout)
        for regularizer in self.regularizers:
            regularizer.plan(plan)
        return plan

    def inputs(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, ...]:
        images = from_pixels(batch["pixels"])
        if self.frozen_codes:
            self.frozen_codes.watch(self.tokenizer, images, self.trained)
        self._seen: list[tuple[Tensor, list[Tensor]]] = []
        return (images, batch["codes"]) if "codes" in batch else (images,)

    def losses(
        self, step: int, number: int, images: Tensor, codes: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        plan = self.plan(len(images), step, number)
        if codes is not None:  # pairs have no redundant tokens to keep
            plan.lengths = [_at_most(length, codes.shape[1]) for length in plan.lengths]
        losses, done = self.generator_losses(images, plan, codes)
        self._seen.append((images, [view.images.detach().float() for view in done.views]))
        total = sum(value for name, value in losses.items() if "@" not in name)
        named = {f"train/{name}" if "@" in name else f"train/loss_{name}": value for name, value in losses.items()}
        return total, {"train/loss": total, **named}

    def generator_losses(
        self, images: Tensor, plan: Plan, codes: Tensor | None = None
    ) -> tuple[dict[str, Tensor], Pass]:
        """Weighted losses by name, and the pass they come from; codes: as `TrainingPass` takes them."""
        losses: dict[str, Tensor] = {}
        with numerics.autocast(self.run.precision, self.world.device):
            done: Pass = self.wrapped(images, plan, codes)
            recons = [view.images.float() for view in done.views]
            for name, loss in self.losses_by_name.items():
                target = loss.target(images)
                losses[name] = sum(loss(recon, target) for recon in recons)
        reconstruction = sum(losses.values())
        if "quantizer" not in self.config.freeze:
            losses |= done.quantized.losses
        for regularizer in self.regularizers:
            losses |= regularizer.losses(images, done, plan)
        if self.adversary and self.adversary.active(plan.step):
            last = self.tokenizer.decoder.last_layer
            losses |= self.adversary.generator_loss(images, recons, reconstruction, last)
        return losses, done

    def step(self, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        logged = super().step(batch, step)
        average = self.ema.module.quantizer if self.ema else None
        self.tokenizer.quantizer.refresh(self.optimizer, average, logged["not_finite"])
        return logged

    def update(self, step: int, loss: Tensor) -> dict[str, Tensor]:
        """Tokenizer and discriminator are both updated, or neither."""
        usage = getattr(self.tokenizer.quantizer, "usage", None)
        logged = {"train/codebook_usage": usage()} if usage else {}
        if not (self.adversary and self.adversary.active(step)):
            return super().update(step, loss) | logged
        images, views = zip(*self._seen, strict=True)
        recons = [torch.cat(parts) for parts in zip(*views, strict=True)]
        judged, played = self.adversary.backward(torch.cat(images), recons, step)
        logged |= super().update(step, torch.stack([loss, *judged])) | played
        self.adversary.update(step, self.run.steps, logged["not_finite"])
        return logged

    def kept(self) -> Iterable[Tensor]:
        yield from super().kept()
        for each in (*self.losses_by_name.values(), *self.regularizers):
            yield from each.buffers(recurse=False)
        if self.adversary:
            yield from self.adversary.kept()

    def frozen(self) -> list[nn.Module]:
        return [self.losses_by_name, self.regularizers]

    def weights(self) -> dict[str, dict[str, Tensor]]:
        files = super().weights()
        if self.config.lora:  # merging cannot be undone, so a resume needs the adapters, too
            files = {f"{name}_adapters": state for name, state in files.items()} | {"model": merged(self.tokenizer)}
            files |= {"ema": merged(self.ema.module)} if self.ema else {}
        if self.adversary:
            files["discriminator"] = self.adversary.module.state_dict()
        return files

    def state(self) -> dict[str, Any]:
        self._check_codes()
        state = super().state() | {"refresh": self.tokenizer.quantizer.refresh_state()}
        if self.frozen_codes:
            state["codes_fingerprint"] = self.frozen_codes.fingerprint
        if self.adversary:
            state["adversary"] = self.adversary.state()
        return state

    def load(self, weights: Callable[[str], dict[str, Tensor]], state: dict[str, Any]) -> None:
        suffix = "_adapters" if self.config.lora else ""
        super().load(lambda name: weights(f"{name}{suffix}"), state)
        self.tokenizer.quantizer.load_refresh_state(state["refresh"])
        if self.adversary:
            checkpoint.load_into(self.adversary.module, weights("discriminator"), "discriminator")
            self.adversary.load(state["adversary"])
        if self.frozen_codes:
            self.frozen_codes.fingerprint = state["codes_fingerprint"]
            self._check_codes()

    def validate(self) -> dict[str, float]:
        """PSNR of all held-out images at all tokens and, where prefixes are trained, at an eighth of them."""
        if not self.config.val_root:
            raise UserError("run.validate_every is set but val_root is not; give val_root=DIR or run.validate_every=0")
        device, num_tokens = self.world.device, self.tokenizer.num_tokens
        data = open_images(self.config.val_root, self.tokenizer.image_size)
        mine = share(len(data), self.world.rank, self.world.size)
        prefixes = any(each.trains_prefixes for each in self.regularizers)
        lengths = [max(1, num_tokens // 8), num_tokens] if prefixes else [None]
        sums = {length: torch.zeros((), device=device) for length in lengths}
        with self.evaluating() as tokenizer:
            for batch in batches(data, mine, 64):
                images = from_pixels(batch["pixels"].to(device))
                vectors = tokenizer.encode_vectors(images)
                for length in lengths:
                    decoded = tokenizer.decode_vectors(vectors, length).images.float().clamp(-1, 1)
                    error = F.mse_loss(decoded, images, reduction="none").mean(dim=(1, 2, 3))
                    sums[length] += (10 * torch.log10(4 / error)).sum()
        totals = dist.mean({str(k): v * self.world.size / len(data) for k, v in sums.items()})
        return {f"val/psnr_{length or num_tokens}": totals[str(length)] for length in lengths}


def _at_most(length: int | Tensor | None, most: int) -> int | Tensor | None:
    if isinstance(length, int):
        return min(length, most)
    return length if length is None else length.clamp(max=most)


def training_images(config: TrainConfig) -> ImageFolder:
    data, size = config.data, config.model.image_size
    return open_images(data.root, size, data.crop, data.flip, config.run.seed, data.bad_images)


def check_pairs(config: TrainConfig, pairs: PairFolder, tokenizer: Tokenizer) -> None:
    """Check that post-training trains only the decoder, on codes of this tokenizer.

    Raises: UserError when another tokenizer made the pairs, or the config does not fit training on pairs.
    """
    open_parts = [name for name in ENCODER_SIDE if name not in config.freeze]
    if open_parts:
        raise UserError(
            f"data.pairs trains only the decoder, but {', '.join(open_parts)} would change; "
            f"set freeze=[{','.join(ENCODER_SIDE)}]"
        )
    if config.data.crop != "center" or config.data.flip:
        raise UserError("pairs hold codes of unmirrored center crops; set data.crop=center data.flip=false")
    for name, regularizer in config.regularizers.items():
        if lookup("tokenizer.regularizers:REGULARIZERS", regularizer["name"]).needs_latents:
            raise UserError(f"regularizers.{name} acts on latents, but pairs hold only codes; set it to null")
    if pairs.meta["codes_of"] != codes_fingerprint(tokenizer):
        raise UserError(
            f"the pairs {str(pairs.path)!r} are codes of another tokenizer (from {pairs.meta.get('vq_ckpt')}); "
            "start from that one (--vq-ckpt, init=RUN) or make pairs for this one"
        )


def run(config: TrainConfig) -> None:
    """The job behind `python -m tokenizer.train`."""
    check_teacher(config)
    with loop.job(config.run) as world:
        warning = shortage(without_data(config), config.data.batch_size, config.run, world)
        trainee = TokenizerTrainee(config, world)
        trainee.hold_codes()
        given = config.data
        data = PairFolder(given.pairs, given.root) if given.pairs else training_images(config)
        if given.pairs:
            check_pairs(config, data, trainee.tokenizer)

        def loader(start: int, stop: int) -> Iterable[dict[str, Tensor]]:
            order = (given.batch_size, world.rank, world.size, config.run.seed, start, stop)
            return stream(data, *order, workers=given.workers)

        described = dataclasses.asdict(config)
        loop.run(trainee, loader, config.run, config.log, world, described, {"data": data.facts()}, data.name, warning)


def without_data(config: TrainConfig) -> tuple[Callable[[World], TokenizerTrainee], Callable[[int], dict[str, Tensor]]]:
    """A trainee and random batches, to measure the largest cost of a step: all tokens are decoded."""
    regularizers = {
        key: each
        for key, each in config.regularizers.items()
        if not lookup("tokenizer.regularizers:REGULARIZERS", each["name"]).saves_compute
    }
    quantizer = {key: 0 if key == "refresh_every" else value for key, value in config.model.quantizer.items()}
    model = dataclasses.replace(config.model, quantizer=quantizer)
    adversary = config.adversary and dataclasses.replace(config.adversary, init=None)
    config = dataclasses.replace(
        config, model=model, regularizers=regularizers, init=None, backbone=None, adversary=adversary
    )
    shape = (config.model.image_size, config.model.image_size, 3)
    return (
        lambda world: TokenizerTrainee(config, world),
        lambda count: {"pixels": torch.randint(0, 256, (count, *shape), dtype=torch.uint8)},
    )


def estimate(config: TrainConfig) -> None:
    """Print the cost of the last step of a run. Frozen networks are not loaded."""
    measured = measure(*without_data(config), config.data.batch_size, config.run, config.estimate)
    print("\n".join(measured.lines(config.estimate.tflops)))


def main() -> None:
    train(TRAIN_FLAGS)


if __name__ == "__main__":
    config.main(main)
