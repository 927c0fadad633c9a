#!/usr/bin/env bash
# A linear probe of a generator's features, and its accuracy.
. "$(dirname "${BASH_SOURCE[0]}")/chain.sh"
given "${VQ_CKPT:-}" || needs VQ_EXP_DIR
given "${GPT_CKPT:-}" || needs LM_EXP_DIR
needs TOK_CONFIG LM_LIN_EXP_DIR
GPT_MODEL="${GPT_MODEL:-GPT-B}"
probe_generator
