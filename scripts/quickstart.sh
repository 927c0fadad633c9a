#!/usr/bin/env bash
# The whole method on real photographs, from nothing: environment, tokenizer, generator, samples, report.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ "${DRY_RUN:-0}" != 1 ]; then bash env_install.sh || exit; fi
. scripts/launch.sh
GPUS=1 NNODES=1 # its stages are small; one process runs them one after the other
launch studies.quickstart "$@"
