#!/usr/bin/env bash
# Compare tokenizers: cost, quality, codes, robustness, learnability; the same command continues. Every process is a worker.
. "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} # networks are read from the cache; what is missing there is left out
launch evaluations.bench "$@"
