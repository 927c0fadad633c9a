#!/usr/bin/env bash
# Train a tokenizer, its weights sharded over the processes.
. "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
launch tokenizer.train run.parallel=fsdp "$@"
