#!/usr/bin/env bash
# What every token of a tokenizer is worth: code use, entropy and marginal gain per position.
. "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
launch evaluations.diagnose "$@"
