"""Low-rank adapters: a few trained numbers beside frozen matrices. Source: LoRA (Hu et al. 2021), by `peft`."""

from __future__ import annotations

from torch import Tensor, nn

from common.errors import UserError

__all__ = ["adapt", "merged"]

FEED_FORWARD = r".*(mlp\.fc|linear)[12]"


def adapt(tokenizer: nn.Module, ranks: dict[str, int], frozen: list[str]) -> None:
    """Freeze the transformers of the parts named, but for their last norm, and give their MLPs adapters of these ranks.

    What a part has beside its transformer (latent tokens, level embeddings, the pixel head) goes on being trained.
    Source: RobusTok, tuning method lora (rank 8).

    Raises: UserError for a part without a transformer or among the `frozen`, or a rank below 1.
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
    """The state dict the module would have with its adapters added to the matrices: an ordinary tokenizer's."""
    from peft.tuners.lora import LoraLayer

    state = module.state_dict()
    for name, layer in module.named_modules():
        if isinstance(layer, LoraLayer):
            state[f"{name}.base_layer.weight"] = layer.base_layer.weight + layer.get_delta_weight("default")
    return {key.replace(".base_layer.", "."): value for key, value in state.items() if ".lora_" not in key}
