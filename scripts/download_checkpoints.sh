#!/usr/bin/env bash
# Download released checkpoints by name: bash scripts/download_checkpoints.sh NAME... ; --list shows the names.
. "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
GPUS=1 NNODES=1 launch common.download "$@"
