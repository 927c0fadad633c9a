#!/usr/bin/env bash
# Sample, pack and measure a generator; --search looks for the best guidance scale.
. "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
launch evaluations.generation --eval-python-path "$EVAL_PYTHON_PATH" "$@"
