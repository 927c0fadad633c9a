#!/usr/bin/env bash
# Turn a folder of images into the token store that train_c2i.sh reads. Also reads
# VQ_CKPT, TOK_CONFIG and CODE_PATH, as the papers' commands set them; flags given here win.
. "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
launch autoregressive.extract_codes ${VQ_CKPT:+--vq-ckpt "$VQ_CKPT"} ${TOK_CONFIG:+--tok-config "$TOK_CONFIG"} \
    ${CODE_PATH:+--code-path "$CODE_PATH"} "$@"
