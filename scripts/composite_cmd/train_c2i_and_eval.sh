#!/usr/bin/env bash
# A generator, its gFID at the best guidance scale, and its validation loss.
. "$(dirname "${BASH_SOURCE[0]}")/chain.sh"
given "${VQ_CKPT:-}" || needs VQ_EXP_DIR
needs LM_EXP_DIR
LM_EPOCH="${LM_EPOCH:-300}" LM_BSZ="${LM_BSZ:-256}" WARM_ITER="${WARM_ITER:-5000}" GPT_MODEL="${GPT_MODEL:-GPT-B}"
EVAL_BATCH_PER_GPU="${EVAL_BATCH_PER_GPU:-32}"
train_generator "${PARALLEL:-ddp}"
evaluate_generator --search
