"""Regularizers: what a step decodes (plan) and which losses it adds. Each is switched on by its key in a config."""

from tokenizer.regularizers.nested_dropout import NestedDropout
from tokenizer.regularizers.semantic import Semantic
from tokenizer.regularizers.shortcut import Shortcut

REGULARIZERS = {"nested_dropout": NestedDropout, "semantic": Semantic, "shortcut": Shortcut}
