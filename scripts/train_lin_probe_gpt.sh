#!/usr/bin/env bash
# Linear probe of a generator's features: --gpt-ckpt is needed.
. "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
launch evaluations.linear_probe "$@"
