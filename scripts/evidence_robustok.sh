#!/usr/bin/env bash
# Perturbation and post-training compared over seeds, on drawings.
. "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
GPUS=1 NNODES=1 # its stages are small; --workers says how many run at once
launch studies.robustok "$@"
