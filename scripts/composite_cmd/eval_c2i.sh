#!/usr/bin/env bash
# A trained generator's gFID at a fixed guidance scale (unless VAL_ONLY=True), and its validation loss.
. "$(dirname "${BASH_SOURCE[0]}")/chain.sh"
given "${VQ_CKPT:-}" || needs VQ_EXP_DIR
given "${GPT_CKPT:-}" || needs LM_EXP_DIR
GPT_MODEL="${GPT_MODEL:-GPT-B}"
evaluate_generator --cfg-scale "${CFG_SCALE:-1.0}"
