#!/usr/bin/env bash
# Train the tokenizer variants with several seeds and compare them; the same command continues.
. "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
each=$GPUS
GPUS=1 NNODES=1 # the study itself is one process; its jobs use the GPUs
launch studies.tokenizers --gpus "$each" "$@"
