# shellcheck shell=bash
# Variables of the papers' READMEs. Source it from any folder: . set_env_vars.sh
# What is already set stays as it is. The launchers in scripts/ source it themselves.

_gpus_here() { # the GPUs that CUDA_VISIBLE_DEVICES leaves visible, or else all that the driver lists
    if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
        echo "$CUDA_VISIBLE_DEVICES" | tr ',' '\n' | sed '/^ *-1/,$d' | grep -c '[^ ]' || true
    else
        nvidia-smi -L 2>/dev/null | grep -c '^GPU ' || true
    fi
}

# Where things are.
PROJECT_ROOT="${PROJECT_ROOT:-$(cd "$(dirname "${BASH_SOURCE[0]:-$0}")" && pwd)}"
IMGNET_ROOT="${IMGNET_ROOT:-$PROJECT_ROOT/data/imagenet}" # holds ILSVRC2012_img_train/ and ILSVRC2012_img_val/
VAL_PATH="${VAL_PATH:-$PROJECT_ROOT/results/reconstructions/val_imagenet}" # the reference images val.sh writes
GT_VAL_NPZ_PATH="${GT_VAL_NPZ_PATH:-$VAL_PATH.npz}"                        # and their .npz, for reconstruction
GT_NPZ_PATH="${GT_NPZ_PATH:-$PROJECT_ROOT/data/VIRTUAL_imagenet256_labeled.npz}" # ADM's batch, for generation

# Programs. The evaluator has an environment of its own: bash env_install.sh --eval
EVAL_PYTHON_PATH="${EVAL_PYTHON_PATH:-$PROJECT_ROOT/.venv-eval/bin/python}"
TORCH_RUN_PATH="${TORCH_RUN_PATH:-$PROJECT_ROOT/.venv/bin/torchrun}"

# Processes: GPUS per machine, NNODES machines, this one being number NODE_RANK. Lower-case gpus, which one
# README writes before a single command, wins over a GPUS that an earlier sourcing exported.
GPUS="${gpus:-${GPUS:-$(_gpus_here)}}"
if [ "$GPUS" = 0 ]; then # without a GPU: one process on the CPU
    GPUS=1
    # What a step frees, the next one uses again: given back to the system, each page would be faulted in anew (-20%).
    export MALLOC_MMAP_THRESHOLD_="${MALLOC_MMAP_THRESHOLD_:-1073741824}"
    export MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-4294967296}"
fi
NNODES="${NNODES:-1}"
NODE_RANK="${NODE_RANK:-0}"
MASTER_ADDR="${MASTER_ADDR:-127.0.0.1}"
PORT="${PORT:-}" # of MASTER_ADDR; empty = a free one on a single machine, 3343 on several

# Nothing asks for a login: with no key, Weights & Biases (off unless a config asks for it) stays offline.
if [ -z "${WANDB_API_KEY:-}" ]; then WANDB_MODE="${WANDB_MODE:-offline}"; export WANDB_MODE; fi

export PROJECT_ROOT IMGNET_ROOT VAL_PATH GT_VAL_NPZ_PATH GT_NPZ_PATH EVAL_PYTHON_PATH TORCH_RUN_PATH
export GPUS NNODES NODE_RANK MASTER_ADDR PORT
unset -f _gpus_here
