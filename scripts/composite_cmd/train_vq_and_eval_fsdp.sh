#!/usr/bin/env bash
# train_vq_and_eval.sh with the tokenizer sharded over the processes (FSDP), for half as many epochs.
TOK_EPOCH="${TOK_EPOCH:-50}" PARALLEL=fsdp
# shellcheck source=train_vq_and_eval.sh
. "$(dirname "${BASH_SOURCE[0]}")/train_vq_and_eval.sh"
