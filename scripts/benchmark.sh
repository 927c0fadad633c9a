#!/usr/bin/env bash
# What the jobs cost, each beside a plain way of doing the same: bash scripts/benchmark.sh --only sampling
. "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
GPUS=1 NNODES=1 launch benchmarks.run "$@"
