#!/usr/bin/env bash
# Linear probe of a tokenizer's features.
. "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
launch evaluations.linear_probe "$@"
