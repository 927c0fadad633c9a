#!/usr/bin/env bash
# Linear probes of a tokenizer (unless LM_ONLY=True) and of a generator trained on its codes.
. "$(dirname "${BASH_SOURCE[0]}")/chain.sh"
given "${VQ_CKPT:-}" || needs VQ_EXP_DIR
given "${GPT_CKPT:-}" || needs LM_EXP_DIR
needs TOK_CONFIG LM_LIN_EXP_DIR
GPT_MODEL="${GPT_MODEL:-GPT-B}"
if [ "${LM_ONLY:-False}" != True ]; then
    needs TOK_LIN_EXP_DIR
    probe_tokenizer
fi
probe_generator
