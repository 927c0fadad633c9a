#!/usr/bin/env bash
# Turn a folder of images into the token store that train_c2i.sh reads.
. "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
launch autoregressive.extract_codes "$@"
