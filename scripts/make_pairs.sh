#!/usr/bin/env bash
# Let a generator rewrite part of the codes of real images, for post-training a tokenizer's decoder.
. "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
launch autoregressive.make_pairs "$@"
