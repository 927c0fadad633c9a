#!/usr/bin/env bash
# IN OUT: a released .pt file to a folder with model.safetensors and config.json, or (OUT ending in .pt) back.
. "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
GPUS=1 NNODES=1 launch autoregressive.convert "$@"
