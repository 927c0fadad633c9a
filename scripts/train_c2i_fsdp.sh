#!/usr/bin/env bash
# Train a class-conditional generator, its weights sharded over the processes.
. "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
launch autoregressive.train run.parallel=fsdp "$@"
