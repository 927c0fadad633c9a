#!/usr/bin/env bash
# Decode some of a code store to look at it. Reads VQ_CKPT, TOK_CONFIG and CODE_PATH as extract_code_c2i.sh does.
. "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
GPUS=1 NNODES=1 launch autoregressive.check_codes ${VQ_CKPT:+--vq-ckpt "$VQ_CKPT"} \
    ${TOK_CONFIG:+--tok-config "$TOK_CONFIG"} ${CODE_PATH:+--code-path "$CODE_PATH"} "$@"
