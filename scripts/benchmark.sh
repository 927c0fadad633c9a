#!/usr/bin/env bash
# What the jobs cost, each beside a plain way of doing the same; results in benchmarks/results.
#   bash scripts/benchmark.sh [--device cpu|cuda] [--only NAME]
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/launch.sh
GPUS=1 NNODES=1 launch benchmarks.run "$@"
