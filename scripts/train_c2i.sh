#!/usr/bin/env bash
# Train a class-conditional generator.
. "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
launch autoregressive.train "$@"
