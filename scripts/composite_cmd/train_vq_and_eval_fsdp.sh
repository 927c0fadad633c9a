#!/usr/bin/env bash
# train_vq_and_eval.sh with the tokenizer sharded over the processes (FSDP).
. "$(dirname "${BASH_SOURCE[0]}")/chain.sh"
needs VQ_EXP_DIR TOK_CONFIG LM_EXP_DIR
TOK_EPOCH="${TOK_EPOCH:-50}" TOK_BSZ="${TOK_BSZ:-128}" GPT_MODEL=GPT-B
train_tokenizer fsdp
evaluate_tokenizer
LM_EPOCH="${LM_EPOCH:-300}" LM_BSZ="${LM_BSZ:-256}" LM_STOP_ITER="${LM_STOP_ITER:-250000}" WARM_ITER=0 CFG_SCHEDULE=constant
train_generator ddp
evaluate_generator --search
