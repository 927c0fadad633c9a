"""LoRA fine-tuning: low-rank adapters on frozen linear layers. Source: Hu et al. 2021 (arXiv 2106.09685), by `peft`."""

from __future__ import annotations

from torch import Tensor, nn

from common.errors import UserError

__all__ = ["adapt", "merged"]

FEED_FORWARD = r".*(mlp\.fc|linear)[12]"


def adapt(tokenizer: nn.Module, ranks: dict[str, int], frozen: list[str]) -> None:
    """Freeze the transformers of the named parts except their last norm, and add adapters of these ranks to their MLPs.

    Everything else of a part (latent tokens, level embeddings, pixel head) stays trainable.
    Source: RobusTok, tuning method lora (rank 8).

    Raises: UserError for a part without a transformer, a part that is also in `frozen`, or a rank below 1.
    """
    from peft import LoraConfig, inject_adapter_in_model

    for name, rank in ranks.items():
        part = getattr(tokenizer, name, None)
        body = getattr(part, "vit", None) or getattr(part, "transformer", None)
        if body is None or rank < 1:
            raise UserError(f"lora got {name}: {rank}; expected encoder or decoder with a transformer, and a rank >= 1")
        if name in frozen:
            raise UserError(f"both lora and freeze name {name!r}; take it out of one of them")
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=FEED_FORWARD), body)
        for last_norm in (getattr(body, "norm", None), getattr(body, "ln_post", None)):
            if last_norm is not None:
                last_norm.requires_grad_(True)


def merged(module: nn.Module) -> dict[str, Tensor]:
    """The state dict with the adapters added to the weights, so that an ordinary tokenizer can load it."""
    from peft.tuners.lora import LoraLayer

    state = module.state_dict()
    for name, layer in module.named_modules():
        if isinstance(layer, LoraLayer):
            state[f"{name}.base_layer.weight"] = layer.base_layer.weight + layer.get_delta_weight("default")
    return {key.replace(".base_layer.", "."): value for key, value in state.items() if ".lora_" not in key}
