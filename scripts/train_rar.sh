#!/usr/bin/env bash
# Train RAR: RAR-B's schedule and sizes, unless the arguments say otherwise.
. "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
launch autoregressive.train --config "$(dirname "${BASH_SOURCE[0]}")/../configs/generator/RAR-B.yaml" "$@"
