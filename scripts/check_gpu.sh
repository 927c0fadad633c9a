#!/usr/bin/env bash
# Whether everything works on this machine's GPUs, and how fast, in about ten minutes: bash scripts/check_gpu.sh
# On a machine without GPUs, what a CPU can stand in for: bash scripts/check_gpu.sh --device cpu
. "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
GPUS=1 NNODES=1 launch benchmarks.check_gpu.run "$@"
