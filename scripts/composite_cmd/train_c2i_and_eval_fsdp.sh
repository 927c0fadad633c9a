#!/usr/bin/env bash
# train_c2i_and_eval.sh with the generator sharded over the processes (FSDP).
EVAL_BATCH_PER_GPU="${EVAL_BATCH_PER_GPU:-16}" PARALLEL=fsdp
# shellcheck source=train_c2i_and_eval.sh
. "$(dirname "${BASH_SOURCE[0]}")/train_c2i_and_eval.sh"
