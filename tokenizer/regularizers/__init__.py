"""Regularizers: they choose what a step decodes and add losses. Each is enabled by an entry of `regularizers`."""

from tokenizer.regularizers.codebook_drop import CodebookDrop
from tokenizer.regularizers.contrastive import Contrastive
from tokenizer.regularizers.cross_length import CrossLength
from tokenizer.regularizers.nested_dropout import NestedDropout
from tokenizer.regularizers.perturbation import PerturbLatents
from tokenizer.regularizers.self_alignment import SelfAlignment
from tokenizer.regularizers.semantic import Semantic
from tokenizer.regularizers.shortcut import Shortcut

REGULARIZERS = {
    "codebook_drop": CodebookDrop,
    "contrastive": Contrastive,
    "cross_length": CrossLength,
    "nested_dropout": NestedDropout,
    "perturbation": PerturbLatents,
    "self_alignment": SelfAlignment,
    "semantic": Semantic,
    "shortcut": Shortcut,
}
