#!/usr/bin/env bash
# An image folder as tar shards, and back.
. "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
GPUS=1 NNODES=1 launch common.shards "$@"
