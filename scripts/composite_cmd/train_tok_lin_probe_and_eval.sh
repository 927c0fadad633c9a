#!/usr/bin/env bash
# A linear probe of a tokenizer's features, and its accuracy.
. "$(dirname "${BASH_SOURCE[0]}")/chain.sh"
given "${VQ_CKPT:-}" || needs VQ_EXP_DIR
needs TOK_CONFIG TOK_LIN_EXP_DIR
probe_tokenizer
