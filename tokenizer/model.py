"""A tokenizer: encoder, quantizer, decoder. Images to codes and back."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from common.config import build
from common.errors import UserError
from common.hub import HubModel
from tokenizer.config import TokenizerConfig
from tokenizer.decoders.hybrid_1d import DecoderFeatures
from tokenizer.quantizers.base import NO_CODES, Quantized
from tokenizer.tiny import init_fan_in


@dataclass
class View:
    """One reconstruction of the images: from `num_tokens` tokens (None = all N), or straight from the encoder's map."""

    images: Tensor
    num_tokens: int | Tensor | None = None
    features: DecoderFeatures | None = None


@dataclass
class Pass:
    """The results of one training pass. `views[0]` is the main reconstruction, decoded from `vectors`."""

    views: list[View]
    quantized: Quantized
    vectors: Tensor | None = None
    spatial: Tensor | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)


def convolution(width: int, out: int, kernel: int) -> nn.Module:
    """The convolution before or behind the quantizer. Raises: UserError if there is none and the widths differ."""
    if kernel:
        return nn.Conv2d(width, out, kernel, padding=kernel // 2)
    if width != out:
        raise UserError(f"model.quant_conv_kernel=0 joins {width} channels to {out}; set z_channels to the quantizer's")
    return nn.Identity()


class Tokenizer(nn.Module, HubModel):
    """images (B,3,H,W) in [-1,1] <-> codes int64 (B,k), k <= N."""

    hub_kind = "tokenizer"
    Config = TokenizerConfig

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.config = config
        context = {"image_size": config.image_size, "z_channels": config.z_channels, "layout": config.layout}
        self.encoder = build("tokenizer.encoders:ENCODERS", config.encoder, **context)
        self.decoder = build("tokenizer.decoders:DECODERS", config.decoder, **context)
        if config.init == "fan_in":
            for part in (self.encoder, self.decoder):
                init_fan_in(part)
        self.quantizer = build("tokenizer.quantizers:QUANTIZERS", config.quantizer)
        self.quant_conv = convolution(config.z_channels, self.quantizer.latent_dim, config.quant_conv_kernel)
        width = getattr(self.decoder, "z_channels", config.z_channels)
        self.post_quant_conv = convolution(self.quantizer.codebook_dim, width, config.quant_conv_kernel)
        if config.teacher:
            self.teacher = build(
                "tokenizer.teachers:TEACHERS", config.teacher, image_size=config.image_size,
                grid=getattr(self.encoder, "image_grid", self.encoder.grid),
            ).requires_grad_(False)  # fmt: skip
        self.grid = self.encoder.grid
        self.is_1d, decodes_1d = (getattr(part, "tokens_1d", False) for part in (self.encoder, self.decoder))
        if self.is_1d != decodes_1d:
            names = f"encoder {config.encoder['name']!r} and decoder {config.decoder['name']!r}"
            raise UserError(f"{names} do not fit together; use two 1D or two 2D parts")
        made, taken = (getattr(part, "groups", 1) for part in (self.encoder, self.quantizer))
        if made != taken or (self.is_1d and self.quantizer.needs_grid):
            grid = " on a grid" if self.quantizer.needs_grid else ""
            raise UserError(
                f"encoder {config.encoder['name']!r} makes {made} groups of tokens, quantizer "
                f"{config.quantizer['name']!r} takes {taken}{grid}; use encoder.name=dino_vit encoder.groups={taken}"
            )

    @property
    def num_tokens(self) -> int:
        """Tokens of a full sequence, N."""
        return self.config.layout.num_tokens if self.is_1d else self.quantizer.num_codes(self.grid**2)

    @property
    def codebook_size(self) -> int:
        """Number of different codes. Raises: UserError for a continuous tokenizer."""
        return self.quantizer.codebook_size

    @property
    def codebook_dim(self) -> int:
        return self.quantizer.codebook_dim

    @property
    def semantic_head(self) -> nn.Module | None:
        """The decoder's MLP that predicts a teacher's features, if it has one."""
        return getattr(getattr(self.decoder, "transformer", None), "distill_mlp", None)

    @property
    def image_size(self) -> int:
        return self.config.image_size

    def latents(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """images -> (latents (B,e,1,N+M) or (B,e,G,G) before quantization, the CNN's map or None)."""
        size = self.image_size
        if images.dim() != 4 or images.shape[1:] != (3, size, size) or not images.is_floating_point():
            raise UserError(
                f"got images {tuple(images.shape)} of {images.dtype}; expected floats (B,3,{size},{size}) in [-1,1]"
            )
        encoded = self.encoder(images)
        latents, spatial = encoded if isinstance(encoded, tuple) else (encoded, None)
        return self.quant_conv(latents), spatial

    def decode_vectors(self, vectors: Tensor, num_tokens: int | Tensor | None = None) -> View:
        """Code vectors (B,e,1,W) or (B,e,G,G) -> a view of the images.

        Raises: UserError when a 2D tokenizer is to decode some of its tokens.
        """
        latents = self.post_quant_conv(vectors)
        if self.is_1d:
            decoded = self.decoder(latents, num_tokens)
        elif num_tokens is None or (isinstance(num_tokens, int) and num_tokens == self.num_tokens):
            decoded = self.decoder(latents)
        else:
            raise UserError(f"num_tokens={num_tokens}, but a 2D tokenizer decodes its whole grid; leave it out")
        images, features = decoded if isinstance(decoded, tuple) else (decoded, None)
        return View(images, num_tokens, features)

    def train(self, mode: bool = True) -> Tokenizer:
        super().train(mode)
        if self.config.teacher:
            self.teacher.eval()
        return self

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """images (B,3,H,W) in [-1,1] -> codes int64 (B,N). Redundant tokens are left out.

        Raises: UserError for images of 0..255, and for a continuous tokenizer, which has no codes.
        """
        largest = 0.0 if images.is_meta or not images.numel() else float(images.abs().amax())
        if largest > 10:  # decoded images may leave [-1,1] a little
            raise UserError(f"got images with values up to {largest:.0f}; expected [-1,1], pixels / 127.5 - 1")
        latents, _ = self.latents(images)
        codes = self.quantizer(latents).codes
        if codes is None:
            raise UserError(NO_CODES)
        return codes[:, : self.num_tokens]

    @torch.no_grad()
    def encode_vectors(self, images: Tensor) -> Tensor:
        """images (B,3,H,W) -> what `decode_vectors` takes, (B,e,1,N) or (B,e,G,G). Redundant tokens are left out."""
        latents, _ = self.latents(images)
        return self.quantizer(latents).vectors[..., : self.num_tokens]

    @torch.no_grad()
    def decode(self, codes: Tensor, num_tokens: int | Tensor | None = None) -> Tensor:
        """codes int64 (B,k), 1 <= k <= N -> images (B,3,H,W), unclamped.

        `num_tokens` cuts further: an int, or int64 (B,) for images of different lengths.
        """
        return self.decode_vectors(self.vectors(codes), num_tokens).images

    def vectors(self, codes: Tensor) -> Tensor:
        """codes int64 (B,k) -> code vectors as `decode_vectors` takes them: (B,e,1,k), or (B,e,G,G) in 2D.

        Raises: UserError when a 2D tokenizer gets fewer codes than its grid has cells.
        """
        if self.is_1d:
            return self.quantizer.arrange(codes, 1, codes.shape[1])
        if codes.shape[1] != self.num_tokens:
            raise UserError(f"got {codes.shape[1]} codes an image; this 2D tokenizer decodes exactly {self.num_tokens}")
        return self.quantizer.arrange(codes, self.grid, self.grid)

    def tokenize(self, images: Tensor, num_tokens: int | None = None) -> list[Tensor]:
        """images (B,3,H,W) -> B tensors of the first `num_tokens` (default all N) codes."""
        if num_tokens is not None and not 1 <= num_tokens <= self.num_tokens:
            raise UserError(f"num_tokens={num_tokens}; this tokenizer makes 1 to {self.num_tokens} tokens per image")
        return list(self.encode(images)[:, :num_tokens])

    def detokenize(self, tokens: list[Tensor]) -> Tensor:
        """Token sequences of any lengths 1..N -> images (B,3,H,W), each as if decoded alone.

        Redundant tokens behind the N (ReTok has 480 in all) are not looked at. A 2D tokenizer needs all N.
        """
        counts = [len(sequence) for sequence in tokens]
        shortest, longest = (1, self.config.layout.extended) if self.is_1d else (self.num_tokens, self.num_tokens)
        if not counts or min(counts) < shortest or max(counts) > longest:
            raise UserError(f"got {counts} tokens per image; this tokenizer decodes {shortest} to {self.num_tokens}")
        tokens = [sequence[: self.num_tokens] for sequence in tokens]
        counts = [len(sequence) for sequence in tokens]
        if len(set(counts)) == 1:
            return self.decode(torch.stack(tokens))
        padded = nn.utils.rnn.pad_sequence(tokens, batch_first=True)
        return self.decode(padded, torch.tensor(counts, device=padded.device))
