"""Train, fine-tune or post-train a tokenizer: `python -m tokenizer.train --config configs/vq/VQ_SB256.yaml ...`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import checkpoint, config, dist, loop, numerics, optim, parallel
from common.config import build, lookup
from common.containers import open_images
from common.data import ImageFolder, batches, share, stream
from common.dist import World
from common.errors import UserError
from common.estimate import measure
from common.guard import Alarm
from common.images import from_pixels
from common.pairs import PairFolder
from common.paper_flags import joined
from tokenizer import load_weights
from tokenizer.config import TrainConfig
from tokenizer.frozen_codes import FrozenCodes, codes_fingerprint
from tokenizer.lora import adapt, merged
from tokenizer.losses.adversary import Adversary
from tokenizer.model import Pass, Tokenizer, View
from tokenizer.paper_flags import TRAIN_FLAGS
from tokenizer.paper_yaml import from_robustok
from tokenizer.pretrained import check_teacher, start_from
from tokenizer.quantizers.vq import Quantized
from tokenizer.regularizers.base import Context, Plan, Regularizer


def post_train() -> None:
    """As RobusTok's post-training spells it: the data are the pairs, the pair set is the folder of real images."""
    train({**TRAIN_FLAGS, "data-path": "data.pairs", "pair-set": "data.root"})


def train(flags: Mapping[str, config.Alias]) -> None:
    argv = joined(sys.argv[1:], "results/tokenizers/vq")
    settings = config.parse(TrainConfig, argv, aliases=flags, about=__doc__, translate=from_robustok)
    from tokenizer.train import estimate, run

    (estimate if settings.estimate else run)(settings)


ENCODER_SIDE = ("encoder", "quant_conv", "quantizer")
"""What decides about codes: the parts that decoder training leaves as they are."""


class TrainingPass(nn.Module):
    """The forward pass that gradients are averaged over ranks for."""

    def __init__(self, tokenizer: Tokenizer, frozen: list[str], semantic: bool):
        super().__init__()
        self.tokenizer, self.frozen = tokenizer, frozen
        for name in frozen:
            part = getattr(tokenizer, name, None)
            if not isinstance(part, nn.Module):
                names = [name for name, _ in tokenizer.named_children()]
                raise UserError(f"freeze names {name!r}; expected some of {', '.join(names)}")
            part.requires_grad_(False)
        head = getattr(getattr(tokenizer.decoder, "transformer", None), "distill_mlp", None)
        if head is not None and not semantic:
            head.requires_grad_(False)
        if semantic and head is None:
            raise UserError("regularizers.semantic needs decoder.semantic_head; set its depth and width")

    def train(self, mode: bool = True) -> TrainingPass:
        super().train(mode)
        for name in self.frozen:
            getattr(self.tokenizer, name).eval()
        return self

    def forward(
        self, images: Tensor, plan: Plan, codes: Tensor | None = None, unpaired: Tensor | None = None
    ) -> Pass:
        """codes (B,L): decode these instead of the images' own, as post-training does; unpaired (B,L): these, too."""
        if unpaired is None:
            return self._reconstructed(images, plan, codes)
        vectors = self.tokenizer.vectors(unpaired)
        done = self._reconstructed(images, plan) if plan.own else Pass([], Quantized(vectors, unpaired, {}))
        done.unpaired = self.tokenizer.decode_vectors(vectors)
        return done

    def _reconstructed(self, images: Tensor, plan: Plan, codes: Tensor | None = None) -> Pass:
        tokenizer, spatial = self.tokenizer, None
        if codes is None:
            latents, spatial = tokenizer.latents(images)
            tokenizer.quantizer.step = plan.step
            dropped = {} if plan.kept_scales is None else {"kept_scales": plan.kept_scales}
            quantized = tokenizer.quantizer(latents, **dropped)
        else:
            quantized = Quantized(tokenizer.vectors(codes), codes, {})
        vectors = quantized.vectors
        if plan.perturbation and plan.kept_scales is not None:
            raise UserError("perturbation draws all scales, codebook_drop not; set one of these regularizers to null")
        if plan.perturbation:
            vectors = tokenizer.quantizer.perturb(latents, quantized, plan.perturbation)
        views = [tokenizer.decode_vectors(vectors, plan.num_tokens)]
        if plan.also_num_tokens is not None:
            views.append(tokenizer.decode_vectors(vectors, plan.also_num_tokens))
        done = Pass(views, quantized, vectors, spatial)
        for name, features in plan.guides.items():
            done.extra[name] = tokenizer.quant_conv(features(images)[..., None, None]).flatten(1)
        if plan.semantic:
            done.extra["semantic"] = tokenizer.decoder.transformer.distill_mlp(views[0].features.inner)
        if plan.shortcut:
            views.append(View(tokenizer.decoder.cnn(spatial)))
        return done


def alarms() -> list[Alarm]:
    """What a tokenizer's training is warned of."""
    collapse = "the codebook collapses; try quantizer.entropy_weight, quantizer.refresh_every or a lower optim.lr"
    explosion = "the discriminator explodes; try a lower adversary.weight or optim.lr, or a later adversary.start"
    return [
        Alarm("train/codebook_usage", collapse, fallen=0.5),
        Alarm("train/codebook_usage", collapse, below=0.02, after=1000),
        Alarm("train/logits_real", explosion, above=100.0),
        Alarm("train/logits_fake", explosion, above=100.0),
    ]


class TokenizerTrainee:
    """Builds the objects of a `TrainConfig` and takes its steps."""

    def __init__(self, config: TrainConfig, world: World):
        self.config, self.world = config, world
        torch.manual_seed(config.run.seed)
        if config.init and config.backbone:
            raise UserError("init brings the weights of all parts, so backbone would be ignored; set backbone=null")
        if config.run.parallel == "fsdp" and config.model.quantizer.get("refresh_every"):
            raise UserError(
                "quantizer.refresh_every moves codes in the forward pass, where fsdp has copies that it throws away; "
                "use run.parallel=ddp or quantizer.refresh_every=0"
            )
        nested = config.regularizers.get("nested_dropout") or {}
        if nested.get("per_sample") and any(each.get("frechet") for each in config.losses.values()):
            raise UserError(
                "the losses' frechet compares reconstructions from all tokens, of which "
                "nested_dropout.per_sample=true leaves no batch; set one of them to null or false"
            )
        self.tokenizer = Tokenizer(config.model)
        if config.init:
            load_weights(self.tokenizer, config.init, "ema")
        elif config.backbone:
            start_from(self.tokenizer, config.backbone)
        if config.lora:
            adapt(self.tokenizer, config.lora, config.freeze)
        context = Context(
            self.tokenizer.grid,
            self.tokenizer.image_size,
            world.device,
            num_codes=config.model.layout.extended if self.tokenizer.is_1d else self.tokenizer.num_tokens,
            quantizer=self.tokenizer.quantizer,
            z_channels=config.model.z_channels,
            teacher=self.tokenizer.teacher if config.model.teacher else None,
        )
        self.regularizers: list[Regularizer] = [
            build("tokenizer.regularizers:REGULARIZERS", mapping, context=context)
            for mapping in config.regularizers.values()
        ]
        self.losses = nn.ModuleDict(
            {name: build("tokenizer.losses:LOSSES", mapping) for name, mapping in config.losses.items()}
        ).to(world.device)
        self.training_pass = TrainingPass(self.tokenizer, config.freeze, "semantic" in config.regularizers)
        self.ema = optim.Ema(self.tokenizer, config.ema_decay) if config.ema_decay else None
        self.wrapped = parallel.wrap(self.training_pass, config.run, world).train()
        if self.ema:
            self.ema.place(config.run, world)
        self.optimizer = optim.adamw(self.tokenizer, config.optim)
        self.alarms = alarms()
        self.frozen_codes: FrozenCodes | None = None
        self.adversary = None
        if config.adversary:
            self.adversary = Adversary(config.adversary, config.optim, world, config.run.precision)

    def hold_codes(self) -> None:
        """With a frozen encoder side: from now on every checkpoint is held to today's codes."""
        if set(ENCODER_SIDE) <= set(self.config.freeze):
            self.frozen_codes = FrozenCodes(self.tokenizer)

    def _check_codes(self) -> None:
        if self.frozen_codes:
            self.frozen_codes.check("model", self.tokenizer, self.training_pass)
            if self.ema:
                self.frozen_codes.check("ema", self.ema.module, self.ema.module)

    def plan(self, batch_size: int, step: int, number: int = 0) -> Plan:
        """What to decode of micro-batch `number` of this process: its slice of what is drawn for the global batch."""
        slot = self.world.rank * self.config.run.accumulate + number
        plan = Plan(step, self.config.run.seed, batch_size, slot, self.config.model.layout)
        plan.own = step % self.config.data.own_every == 0
        for regularizer in sorted(self.regularizers, key=lambda each: each.order):
            regularizer.plan(plan)
        if isinstance(plan.num_tokens, Tensor):
            plan.num_tokens = plan.num_tokens.to(self.world.device)
        return plan

    def generator_losses(self, images: Tensor, plan: Plan, **codes: Tensor) -> tuple[dict[str, Tensor], Pass]:
        """Weighted losses by name, and the pass they come from; codes: as `TrainingPass` takes them."""
        done: Pass = self.wrapped(images, plan, **codes)
        recons = [view.images.float() for view in done.views]
        losses: dict[str, Tensor] = {}
        for name, loss in self.losses.items():
            target = loss.target(images)
            for view, recon in zip(done.views, recons, strict=True):
                whole = done.unpaired is None and _from_all(view, self.tokenizer.num_tokens)
                for term, value in loss.terms(recon, target, whole).items():
                    losses[name + term] = losses.get(name + term, 0) + self.config.data.own_every * value
            if done.unpaired:
                for term, value in loss.unpaired_terms(done.unpaired.images.float(), target).items():
                    losses[name + term] = value
        if not done.views:
            return losses, done
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
        config = self.config
        images = from_pixels(batch["pixels"])
        if self.frozen_codes:
            self.frozen_codes.watch(self.tokenizer, images, self.training_pass)
        given = (images, batch["codes"]) if "codes" in batch else (images,)
        micro = parallel.micro_batches(given, config.run.accumulate)
        # Parts that draw from the global generator (augmentation, drop path) repeat what they drew after a resume.
        torch.manual_seed(numerics.step_generator(config.run.seed, step, self.world.rank + 8).initial_seed())
        self.optimizer.zero_grad(set_to_none=True)
        logged: dict[str, Tensor] = {}
        views: list[list[Tensor]] = []
        for number, part in enumerate(micro):
            with parallel.synchronised(self.wrapped, now=number == len(micro) - 1):
                losses, done = self._losses(number, step, *part)
                (losses["loss"] / len(micro)).backward()
            views.append([view.images.detach().float() for view in done.views])
            for name, value in losses.items():
                key = f"train/{name}" if "@" in name or name == "loss" else f"train/loss_{name}"
                logged[key] = logged.get(key, 0) + value.detach() / len(micro)
        norm, not_finite = optim.update(self.optimizer, config.optim, step, config.run.steps, logged["train/loss"])
        if self.ema:
            self.ema.update(self.tokenizer)
        logged["train/grad_norm"] = norm
        if done.quantized.codes is not None:
            logged["train/codebook_usage"] = self.tokenizer.quantizer.usage()
        if self.adversary and self.adversary.active(step):
            recons = [torch.cat(parts) for parts in zip(*views, strict=True)]
            played = self.adversary.update(images, recons, step, config.run.steps)
            not_finite = torch.maximum(not_finite, played.pop("not_finite"))
            logged |= played
        return logged | {"not_finite": not_finite}

    def _losses(
        self, number: int, step: int, images: Tensor, codes: Tensor | None = None
    ) -> tuple[dict[str, Tensor], Pass]:
        """Losses of a micro-batch by name, their sum as "loss", and the pass they come from."""
        plan = self.plan(len(images), step, number)
        given = {}
        if codes is not None:
            given = {"unpaired" if self.config.data.unpaired else "codes": codes}
        if "codes" in given and plan.num_tokens is not None:  # pairs have no redundant tokens to keep
            plan.num_tokens = _at_most(plan.num_tokens, codes.shape[1])
        with numerics.autocast(self.config.run.precision, self.world.device):
            losses, done = self.generator_losses(images, plan, **given)
        return losses | {"loss": sum(value for name, value in losses.items() if "@" not in name)}, done

    def network(self) -> nn.Module:
        """What is sharded."""
        return self.training_pass

    def frozen(self) -> list[nn.Module]:
        """Networks that losses and regularizers look through."""
        return [self.losses, *(each.teacher for each in self.regularizers if hasattr(each, "teacher"))]

    def weights(self) -> dict[str, dict[str, Tensor]]:
        modules = {"model": self.tokenizer} | ({"ema": self.ema.module} if self.ema else {})
        files = {name: module.state_dict() for name, module in modules.items()}
        if self.config.lora:  # adding up cannot be undone, so what is resumed from lies beside the sums
            files = {f"{name}_adapters": state for name, state in files.items()}
            files |= {name: merged(module) for name, module in modules.items()}
        if self.adversary:
            files["discriminator"] = self.adversary.module.state_dict()
        return files

    def state(self) -> dict[str, Any]:
        self._check_codes()
        state: dict[str, Any] = {"optimizer": self.optimizer.state_dict()}
        if self.frozen_codes:
            state["codes_fingerprint"] = self.frozen_codes.fingerprint
        if self.ema:
            state["ema_updates"] = self.ema.updates
        if self.adversary:
            state["adversary"] = self.adversary.state()
        state["losses"] = {name: loss.state() for name, loss in self.losses.items()}
        return state

    def load(self, weights: Callable[[str], dict[str, Tensor]], state: dict[str, Any]) -> None:
        suffix = "_adapters" if self.config.lora else ""
        checkpoint.load_into(self.tokenizer, weights(f"model{suffix}"), "model")
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema:
            checkpoint.load_into(self.ema.module, weights(f"ema{suffix}"), "ema")
            self.ema.updates = state["ema_updates"]
        if self.adversary:
            checkpoint.load_into(self.adversary.module, weights("discriminator"), "discriminator")
            self.adversary.load(state["adversary"])
        for name, gathered in state.get("losses", {}).items():
            self.losses[name].load(gathered)
        if self.frozen_codes:
            self.frozen_codes.fingerprint = state["codes_fingerprint"]
            self._check_codes()

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """PSNR of all held-out images, at all tokens, and for flexible tokenizers at an eighth of them, too."""
        if not self.config.val_root:
            raise UserError("run.validate_every is set but val_root is not; give val_root=DIR or run.validate_every=0")
        tokenizer = self.ema.module if self.ema else self.tokenizer.eval()
        data = open_images(self.config.val_root, tokenizer.image_size)
        mine = share(len(data), self.world.rank, self.world.size)
        lengths = (
            [tokenizer.num_tokens // 8, tokenizer.num_tokens]
            if "nested_dropout" in self.config.regularizers
            else [None]
        )
        sums = {length: torch.zeros((), device=self.world.device) for length in lengths}
        with parallel.gathered(tokenizer if self.ema else self.training_pass):
            for batch in batches(data, mine, 64):
                images = from_pixels(batch["pixels"].to(self.world.device))
                vectors = tokenizer.encode_vectors(images)
                for length in lengths:
                    decoded = tokenizer.decode_vectors(vectors, length).images.clamp(-1, 1)
                    error = F.mse_loss(decoded, images, reduction="none").mean(dim=(1, 2, 3))
                    sums[length] += (10 * torch.log10(4 / error)).sum()
        self.training_pass.train()
        totals = dist.mean({str(k): v * self.world.size / len(data) for k, v in sums.items()})
        return {f"val/psnr_{length or tokenizer.num_tokens}": totals[str(length)] for length in lengths}


def _from_all(view: View, num_tokens: int) -> bool:
    return view.num_tokens is None or (isinstance(view.num_tokens, int) and view.num_tokens >= num_tokens)


def _at_most(num_tokens: int | Tensor, most: int) -> int | Tensor:
    return num_tokens.clamp(max=most) if isinstance(num_tokens, Tensor) else min(num_tokens, most)


def training_images(config: TrainConfig) -> ImageFolder:
    data, size = config.data, config.model.image_size
    return open_images(data.root, size, data.crop, data.flip, config.run.seed, data.bad_images)


def check_unpaired(config: TrainConfig) -> None:
    """Raises: UserError where codes that belong to no image would have no use, or leave other losses nothing to do."""
    data = config.data
    if data.own_every < 1 or (data.own_every > 1 and not data.unpaired):
        raise UserError(f"data.own_every is {data.own_every}; expected 1, or more with data.unpaired=true")
    if not data.unpaired:
        return
    if not data.pairs:
        raise UserError("data.unpaired=true says how to train on pairs, and there are none; set data.pairs")
    if not any(loss.get("frechet") for loss in config.losses.values()):
        raise UserError("data.unpaired=true is for the losses' frechet, and none has it; set losses.perceptual.frechet")
    if config.adversary and data.own_every > 1:
        raise UserError("a discriminator needs reconstructions in every step; set data.own_every=1 or adversary=null")


def check_pairs(config: TrainConfig, pairs: PairFolder, tokenizer: Tokenizer) -> None:
    """Post-training changes the decoder alone, on codes that this tokenizer itself gives meaning to.

    Raises: UserError when another tokenizer made the pairs, or the config would train, crop or regularize otherwise.
    """
    open_parts = [name for name in ENCODER_SIDE if name not in config.freeze]
    if open_parts:
        raise UserError(
            f"data.pairs trains the decoder alone, but {', '.join(open_parts)} would change; "
            f"set freeze=[{','.join(ENCODER_SIDE)}]"
        )
    if config.data.crop != "center" or config.data.flip:
        raise UserError("pairs belong to centre crops that are not mirrored; set data.crop=center data.flip=false")
    for name, regularizer in config.regularizers.items():
        if lookup("tokenizer.regularizers:REGULARIZERS", regularizer["name"]).needs_latents:
            raise UserError(f"regularizers.{name} acts on latents, and pairs have only codes; set it to null")
    if pairs.meta["codes_of"] != codes_fingerprint(tokenizer):
        raise UserError(
            f"the pairs {str(pairs.path)!r} are codes of another tokenizer (from {pairs.meta.get('vq_ckpt')}); "
            "start from that one (--vq-ckpt, init=RUN) or make pairs for this one"
        )


def run(config: TrainConfig) -> None:
    """The job behind `python -m tokenizer.train`."""
    check_teacher(config)
    with loop.job(config.run) as world:
        trainee = TokenizerTrainee(config, world)
        trainee.hold_codes()
        given = config.data
        check_unpaired(config)
        data = PairFolder(given.pairs, given.root) if given.pairs else training_images(config)
        if given.pairs:
            check_pairs(config, data, trainee.tokenizer)

        def loader(start: int, stop: int) -> Iterable[dict[str, Tensor]]:
            order = (given.batch_size, world.rank, world.size, config.run.seed, start, stop)
            return stream(data, *order, workers=given.workers)

        described = dataclasses.asdict(config)
        loop.run(trainee, loader, config.run, config.log, world, described, {"data": data.facts()}, data.name)


def without_data(config: TrainConfig) -> tuple[Callable[[World], TokenizerTrainee], Callable[[int], dict[str, Tensor]]]:
    """A trainer and random batches, to measure what a step costs: at most, so all tokens are decoded."""
    regularizers = {name: each for name, each in config.regularizers.items() if name != "nested_dropout"}
    quantizer = {key: 0 if key == "refresh_every" else value for key, value in config.model.quantizer.items()}
    model = dataclasses.replace(config.model, quantizer=quantizer)
    config = dataclasses.replace(config, model=model, regularizers=regularizers, init=None, backbone=None)
    shape = (config.model.image_size, config.model.image_size, 3)
    return (
        lambda world: TokenizerTrainee(config, world),
        lambda count: {"pixels": torch.randint(0, 256, (count, *shape), dtype=torch.uint8)},
    )


def estimate(config: TrainConfig) -> None:
    """Print what the last step of a run costs. Networks need no weights for it."""
    measured = measure(*without_data(config), config.data.batch_size, config.run, config.estimate)
    print("\n".join(measured.lines(config.estimate.tflops)))


def main() -> None:
    train(TRAIN_FLAGS)


if __name__ == "__main__":
    config.main(main)
