#!/usr/bin/env bash
# Cross-entropy of a generator on held-out images.
. "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
launch evaluations.val_loss "$@"
