#!/usr/bin/env bash
# The tests, from a fresh clone: makes the environment, then runs pytest. Arguments go to pytest; what takes minutes is
# left out until asked for with -m slow.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ "${DRY_RUN:-0}" != 1 ]; then bash env_install.sh || exit; fi
. scripts/launch.sh
# Two workers of one thread each: more threads than cores make one another wait.
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 GPUS=1 NNODES=1
launch pytest -n 2 -m "not slow" "$@"
