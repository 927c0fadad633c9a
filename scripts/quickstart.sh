#!/usr/bin/env bash
# The whole method on real photographs, from nothing: environment, tokenizer, generator, samples, report.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ "${DRY_RUN:-0}" != 1 ]; then bash env_install.sh || exit; fi
. scripts/launch.sh
launch evaluations.quickstart "$@"
