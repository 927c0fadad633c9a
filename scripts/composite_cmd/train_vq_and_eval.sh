#!/usr/bin/env bash
# A tokenizer, its rFID, and AR probing: a GPT-B on its codes for 250,000 of 1.5M steps, its gFID and validation loss.
. "$(dirname "${BASH_SOURCE[0]}")/chain.sh"
needs VQ_EXP_DIR TOK_CONFIG LM_EXP_DIR
TOK_EPOCH="${TOK_EPOCH:-100}" TOK_BSZ="${TOK_BSZ:-128}" GPT_MODEL=GPT-B
train_tokenizer "${PARALLEL:-ddp}"
evaluate_tokenizer
LM_EPOCH="${LM_EPOCH:-300}" LM_BSZ="${LM_BSZ:-256}" LM_STOP_ITER="${LM_STOP_ITER:-250000}" WARM_ITER=0 CFG_SCHEDULE=constant
train_generator ddp
evaluate_generator --search
