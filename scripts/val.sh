#!/usr/bin/env bash
# Write the reference images and their .npz: bash scripts/val.sh --data-path DIR --sample-dir DIR
. "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
launch evaluations.reference "$@"
