#!/usr/bin/env bash
# Sample images of chosen classes.
. "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
launch autoregressive.sample "$@"
