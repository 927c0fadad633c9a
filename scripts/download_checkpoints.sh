#!/usr/bin/env bash
# Released checkpoints by name, resumed and checked: bash scripts/download_checkpoints.sh NAME... ; --list shows them.
. "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
GPUS=1 NNODES=1 launch autoregressive.download "$@"
