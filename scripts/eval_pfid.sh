#!/usr/bin/env bash
# Measure how well a tokenizer's decoder bears perturbed codes (pFID).
. "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
launch evaluations.pfid --eval-python-path "$EVAL_PYTHON_PATH" "$@"
