#!/usr/bin/env bash
# Train a tokenizer: bash scripts/train_tokenizer.sh --config FILE [--flag VALUE | key=value ...]
. "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
launch tokenizer.train "$@"
