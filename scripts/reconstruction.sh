#!/usr/bin/env bash
# Encode and decode images with a tokenizer; measure PSNR, SSIM and the rest.
. "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
launch evaluations.reconstruction --eval-python-path "$EVAL_PYTHON_PATH" "$@"
