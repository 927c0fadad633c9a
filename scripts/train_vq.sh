#!/usr/bin/env bash
# The papers' name for train_tokenizer.sh.
. "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
launch tokenizer.train "$@"
