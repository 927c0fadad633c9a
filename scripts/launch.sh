# shellcheck shell=bash
# Sourced by the launchers. launch MODULE ARGUMENTS... replaces the shell by the job:
#   one process in all       python -m MODULE ARGUMENTS
#   GPUS x NNODES processes  torchrun ... -m MODULE ARGUMENTS
# DRY_RUN=1 prints the command instead of running it.
set -euo pipefail
# shellcheck source=../set_env_vars.sh
. "$(dirname "${BASH_SOURCE[0]}")/../set_env_vars.sh"

launch() {
    # This file's own tree, not PROJECT_ROOT: that may have been exported from another clone.
    local root command python
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
    python="$root/.venv/bin/python"
    if [ ! -x "$python" ]; then
        python=$(command -v python3 || command -v python) || { echo "launch: no Python found" >&2; exit 1; }
        echo "launch: no .venv here (bash env_install.sh makes it); using $python" >&2
    fi
    command=("$python")
    if [ "$((GPUS * NNODES))" -gt 1 ]; then
        if command -v "$TORCH_RUN_PATH" >/dev/null; then
            command=("$TORCH_RUN_PATH")
        else
            command=("$python" -m torch.distributed.run)
        fi
        if [ "$NNODES" = 1 ] && [ -z "$PORT" ]; then
            command+=(--standalone "--nproc-per-node=$GPUS") # on a free port
        else
            PORT=${PORT:-3343}
            if [ "$NODE_RANK" = 0 ] && (exec 3<>"/dev/tcp/$MASTER_ADDR/$PORT") 2>/dev/null; then
                echo "launch: PORT=$PORT of $MASTER_ADDR is in use; set PORT to another number" >&2
                exit 2
            fi
            command+=("--nnodes=$NNODES" "--nproc-per-node=$GPUS" "--node-rank=$NODE_RANK")
            command+=("--master-addr=$MASTER_ADDR" "--master-port=$PORT")
        fi
    fi
    command+=(-m "$@")
    if [ "${DRY_RUN:-0}" = 1 ]; then
        printf '%q ' "${command[@]}"
        echo
        exit 0
    fi
    export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
    exec "${command[@]}"
}
