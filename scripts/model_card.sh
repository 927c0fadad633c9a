#!/usr/bin/env bash
# The model-zoo table from result records: bash scripts/model_card.sh --results results --out MODEL_ZOO.md
. "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
GPUS=1 NNODES=1 launch evaluations.model_card "$@"
