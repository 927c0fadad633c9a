"""The references' constructor arguments, as configs of ours."""

from __future__ import annotations

from typing import Any

from autoregressive.models.gpt import GPT
from autoregressive.models.rar import RAR
from common.config import merge, resolve
from tokenizer.config import TokenizerConfig
from tokenizer.families.titok import stated

NO_DROPOUT = {"token_dropout": 0.0, "residual_dropout": 0.0, "ffn_dropout": 0.0, "class_dropout": 0.0}


def gigatok(arguments: dict[str, Any], about: dict[str, Any], *, grid_model: bool, redundant: int) -> TokenizerConfig:
    """GigaTok's and ReTok's tokenizers. `about["reduced_dimensions"]` overrides the released sizes."""
    reduced = about.get("reduced_dimensions", {})
    shared = {"channels": reduced.get("conv_base_channels", 128), "attention": arguments["use_attn"]}
    transformer = {
        side: reduced.get(f"vit_{side}", {"size": arguments.get(f"{side}_size")}) for side in ("encoder", "decoder")
    }
    if grid_model and arguments.get("transformer_layer_type") != "TransformerLayer":
        transformer = {side: {**mapping, "qformer": True} for side, mapping in transformer.items()}
    name = "hybrid_2d" if grid_model else "hybrid_1d"
    num_tokens = arguments["num_latent_tokens"]
    return resolve(TokenizerConfig, {
        "image_size": reduced.get("image_size", 256),
        "z_channels": arguments["z_channels"],
        "layout": {"num_tokens": num_tokens, "redundant": redundant},
        "encoder": {
            "name": name, "cnn": {**shared, "multipliers": arguments["encoder_ch_mult"]},
            "transformer": transformer["encoder"],
        },
        "decoder": {
            "name": name,
            "cnn": {
                **shared, "multipliers": arguments["decoder_ch_mult"],
                "adaptive_norm": arguments["adaptive_gn"], "depth_to_space": arguments["d2s_up"],
            },
            "transformer": transformer["decoder"],
            "semantic_head": {"depth": arguments["distill_depth"], "width": arguments["out_inner_dim"]},
        },
        "quantizer": {
            "name": "vq", "codebook_size": arguments["codebook_size"], "codebook_dim": arguments["codebook_embed_dim"],
            "l2_norm": arguments["codebook_l2_norm"], "commit_weight": arguments["commit_loss_beta"],
            "entropy_weight": arguments["entropy_loss_ratio"], "rotation": arguments["rot"],
        },
    }, where="model")  # fmt: skip


def llamagen(arguments: dict[str, Any], about: dict[str, Any]) -> TokenizerConfig:
    """LlamaGen's convolutional tokenizers."""
    reduced = about.get("reduced_dimensions", {})
    shared = {"name": "cnn", "channels": reduced.get("conv_base_channels", 128), "attention": True}
    return resolve(TokenizerConfig, {
        "image_size": reduced.get("image_size", 256),
        "z_channels": arguments["z_channels"],
        "encoder": {**shared, "multipliers": arguments["encoder_ch_mult"]},
        "decoder": {
            **shared, "multipliers": arguments["decoder_ch_mult"], "adaptive_norm": False, "depth_to_space": False,
        },
        "quantizer": {
            "name": "vq", "codebook_size": arguments["codebook_size"], "codebook_dim": arguments["codebook_embed_dim"],
            "l2_norm": arguments["codebook_l2_norm"], "commit_weight": arguments["commit_loss_beta"],
            "entropy_weight": arguments["entropy_loss_ratio"], "rotation": False,
        },
    }, where="model")  # fmt: skip


def gpt(arguments: dict[str, Any], positions: str) -> GPT.Config:
    """The GPT of GigaTok and ReTok (`positions` "learned") or LlamaGen ("rope2d"), by its explicit dimensions."""
    return GPT.Config(
        width=arguments["dim"], layers=arguments["n_layer"], heads=arguments["n_head"],
        multiple_of=arguments["multiple_of"], codebook_size=arguments["vocab_size"],
        num_tokens=arguments["block_size"], num_classes=arguments["num_classes"], positions=positions,
        qk_norm=arguments.get("use_qk_norm", False),
        adaln="full" if arguments.get("use_adaLN") else "simple" if arguments.get("use_simple_adaLN") else "none",
        condition="caption" if arguments.get("model_type") == "t2i" else "class",
        caption_tokens=arguments.get("cls_token_num", 120), caption_width=arguments.get("caption_dim", 2048),
        **NO_DROPOUT,
    )


VITS = {"small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16), "giant": (1536, 40, 24)}
"""timm's DINOv2 names: width, layers, heads."""


def robustok(arguments: dict[str, Any], about: dict[str, Any]) -> TokenizerConfig:
    """RobusTok's tokenizer, its teacher included."""
    reduced = about.get("reduced_dimensions", {})
    names = ("vit_width", "vit_depth", "vit_heads")
    sizes = {}
    for side in ("encoder", "decoder"):
        released = dict(zip(names, VITS[arguments[f"{side}_model"].split("_")[1]], strict=True))
        width, layers, heads = ({**released, **reduced}[name] for name in names)
        sizes[side] = {"name": "dino_vit", "width": width, "layers": layers, "heads": heads}
    return resolve(TokenizerConfig, {
        "z_channels": sizes["encoder"]["width"],
        "layout": {"num_tokens": arguments["num_latent_tokens"]},
        **sizes,
        "quantizer": {
            "name": "vq_hits", "codebook_size": arguments["codebook_size"],
            "codebook_dim": arguments["codebook_embed_dim"],
        },
        "teacher": sizes["encoder"] if arguments["semantic_guide"] == "dinov2" else None,
    }, where="model")  # fmt: skip


def rar(given: dict[str, Any], codebook_size: int) -> RAR.Config:
    """RAR by its own config's names."""
    return RAR.Config(
        width=given["hidden_size"], layers=given["num_hidden_layers"], heads=given["num_attention_heads"],
        ffn_width=given["intermediate_size"], codebook_size=codebook_size, num_tokens=given["image_seq_len"],
        num_classes=given["condition_num_classes"], attention_dropout=given["attn_drop"], dropout=given["dropout"],
    )  # fmt: skip


def titok(arguments: dict[str, Any], about: dict[str, Any]) -> TokenizerConfig:
    """TiTok and One-D-Piece, by the configuration that their repositories share."""
    reduced = about.get("reduced_dimensions", {})
    if reduced:
        small = {"vit_enc_model_size": "small", "vit_dec_model_size": "small"}
        arguments = merge(arguments, {"model": {"vq_model": small}})
    config = stated(arguments)
    for side in ("encoder", "decoder"):
        config[side] |= reduced.get(side, {})
    config["z_channels"] = config["encoder"]["width"]
    if reduced and config["decoder"]["proxy"] is not None:
        pixels = reduced["pixel_decoder"]
        config["decoder"]["proxy"] = {
            "codebook_size": reduced["num_proxy_codes"], "codebook_dim": pixels["z_channels"],
            "channels": pixels["hidden_channels"], "multipliers": pixels["channel_mult"],
            "blocks": pixels["num_res_blocks"],
        }  # fmt: skip
    return resolve(TokenizerConfig, config, where="model")


def maskgit(arguments: dict[str, Any], about: dict[str, Any]) -> TokenizerConfig:
    """MaskGIT-VQGAN; without arguments, as released."""
    part = {"name": "maskgit", "channels": arguments.get("hidden_channels", 128)}
    part["multipliers"] = arguments.get("channel_mult", [1, 1, 2, 2, 4])
    part["blocks"] = arguments.get("num_res_blocks", 2)
    width = arguments.get("z_channels", 256)
    return resolve(TokenizerConfig, {
        "image_size": about.get("reduced_dimensions", {}).get("image_size", 256), "z_channels": width,
        "quant_conv_kernel": 0, "encoder": part, "decoder": part,
        "quantizer": {
            "name": "vq", "codebook_size": arguments.get("codebook_size", 1024), "codebook_dim": width,
            "l2_norm": False, "rotation": False,
        },
    }, where="model")  # fmt: skip
