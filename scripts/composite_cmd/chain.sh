# shellcheck shell=bash disable=SC2086 # the *_FLAGS variables are several words
# Sourced by the chains in this folder. A chain is a list of stages, each one of the launchers in scripts/:
#   stage NAME LAUNCHER ARGUMENTS...   run it; at the first failure stop, name the stage, and pass its exit code on
# Every job leaves a finished result of the same settings as it is, so a chain run again goes on where it stopped.
# DRY_RUN=1 prints the stages' commands. TRAIN_TOK_FLAGS, REC_FLAGS, TRAIN_LM_FLAGS, GEN_FLAGS, VAL_FLAGS and PROBE_FLAGS
# are further arguments of the stages, separated by spaces, which win over what the chain says. The other variables are described in Detailed_instructions.md.
set -euo pipefail -f
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=../../set_env_vars.sh
. "$scripts/../set_env_vars.sh"

DATAPATH="${DATAPATH:-$IMGNET_ROOT/ILSVRC2012_img_train}"
VAL_DATAPATH="${VAL_DATAPATH:-$IMGNET_ROOT/ILSVRC2012_img_val}"

stage() {
    local name=$1 launcher=$2 code=0
    shift 2
    echo "== $name" >&2
    bash "$scripts/$launcher" "$@" || code=$?
    if [ "$code" != 0 ]; then
        echo "stopped: stage '$name' failed with exit code $code; run the same command again to go on from it" >&2
        exit "$code"
    fi
}

# What the papers call an epoch is 5000 steps of 256 images.
steps() { echo $(($1 * (5000 * 256 / $2))); }

# The papers' variable holds None for "not set".
given() { [ -n "${1:-}" ] && [ "$1" != None ]; }

# needs NAME...: stop when one of these variables is not set.
needs() {
    local name
    for name in "$@"; do
        if ! given "${!name:-}"; then
            echo "error: $name is not set; give it in front of the command: $name=... bash ${0##*/}" >&2
            exit 2
        fi
    done
}

# Runs go below results/; a name that already says so (as the papers' documents write it) is taken as it is.
run_folder() { case $2 in results/* | /*) echo "$2" ;; *) echo "results/$1/$2" ;; esac; }

# The tokenizer and the generator that the later stages read: given, or what the chain trains.
tokenizer() { if given "${VQ_CKPT:-}"; then echo "$VQ_CKPT"; else run_folder tokenizers/vq "$VQ_EXP_DIR"; fi; }
generator() { if given "${GPT_CKPT:-}"; then echo "$GPT_CKPT"; else run_folder gpt "$LM_EXP_DIR"; fi; }

train_tokenizer() { # PARALLEL
    stage "train tokenizer" train_vq.sh --config "$TOK_CONFIG" --data-path "$DATAPATH" \
        --out "$(run_folder tokenizers/vq "$VQ_EXP_DIR")" --iterations "$(steps "$TOK_EPOCH" "$TOK_BSZ")" \
        --global-batch-size "$TOK_BSZ" --ckpt-every "${CKPT_EVERY:-5000}" --early-stop-iter "${TOK_EARLY_STOP_ITER:-None}" \
        --fract-decay "${FRACT_DECAY:-0.2}" --mixed-precision "${PRECISION:-fp16}" "run.parallel=$1" \
        ${TRAIN_TOK_FLAGS:-}
}

evaluate_tokenizer() {
    stage "reconstruct" reconstruction.sh --quant-way=vq --vq-ckpt "$(tokenizer)" --model-config "$TOK_CONFIG" \
        --data-path "$VAL_PATH" --gt-npz-path "$GT_VAL_NPZ_PATH" --clear-cache \
        --sample-dir "results/reconstructions/$(basename "$VQ_EXP_DIR")" ${REC_FLAGS:-}
}

train_generator() { # PARALLEL
    local source=(--data-path "$DATAPATH" --vq-ckpt "$(tokenizer)")
    if [ "${DATASET:-imagenet}" = imagenet_code ]; then
        needs CODEPATH
        source=(--code-path "$CODEPATH")
    fi
    local model=(--gpt-model "$GPT_MODEL")
    if [ "${GPT_2D:-False}" = True ]; then model+=(--gpt-2d); fi
    if [ "${USE_QK_NORM:-False}" = True ]; then model+=(--qk-norm); fi
    if [ "${USE_ADALN:-False}" = True ]; then model+=(--adaLN); fi
    stage "train generator" train_c2i.sh "${source[@]}" "${model[@]}" --out "$(run_folder gpt "$LM_EXP_DIR")" \
        --iterations "$(steps "$LM_EPOCH" "$LM_BSZ")" --early-stop-iter "${LM_STOP_ITER:-None}" \
        --global-batch-size "$LM_BSZ" --ckpt-every "${CKPT_EVERY:-5000}" --lr "${LR:-1e-4}" --warmup "$WARM_ITER" \
        --lr-scheduler wsd --fract-decay "${FRACT_DECAY:-0.2}" --mixed-precision "${LM_PRECISION:-${PRECISION:-fp16}}" \
        "run.parallel=$1" ${TRAIN_LM_FLAGS:-}
}

evaluate_generator() { # FLAGS: --search, or --cfg-scale S
    local models=(--gpt-ckpt "$(generator)" --gpt-model "$GPT_MODEL" --vq-ckpt "$(tokenizer)")
    if given "${TOK_CONFIG:-}"; then models+=(--tok-config "$TOK_CONFIG"); fi
    local name
    name=$(basename "$(generator)")
    if [ "${VAL_ONLY:-False}" != True ]; then
        stage "sample and measure" sample_c2i_search_cfg.sh --quant-way=vq "${models[@]}" --precision none \
            --cfg-schedule "${CFG_SCHEDULE:-step}" --step-start-ratio "${CFG_START_RATIO:-0.18}" --top-k "${TOP_K:-0}" \
            --per-proc-batch-size "${EVAL_BATCH_PER_GPU:-32}" --global-seed "${SEED:-0}" --gt-npz-path "$GT_NPZ_PATH" \
            --sample-dir "${SAMPLE_DIR:-results/samples/$name}" --clear-cache "$@" ${GEN_FLAGS:-}
    fi
    stage "validation loss" val_loss_c2i.sh --quant-way=vq "${models[@]}" --data-path "$VAL_DATAPATH" \
        --per-proc-batch-size "${EVAL_BATCH_PER_GPU:-32}" --precision "${LM_PRECISION:-${PRECISION:-fp16}}" ${VAL_FLAGS:-}
}

probe() { # STAGE LAUNCHER OUT PRECISION FLAGS...
    local name=$1 launcher=$2 out=$3 precision=$4
    shift 4
    stage "$name" "$launcher" --vq-ckpt "$(tokenizer)" --tok-config "$TOK_CONFIG" --data-path "$DATAPATH" \
        --val-path "$VAL_DATAPATH" --out "$out" --batch-size "${LIN_BSZ:-128}" --ckpt-epoch "${CKPT_EPOCH:-5}" \
        --mixed-precision "$precision" "$@" ${PROBE_FLAGS:-}
}

probe_tokenizer() {
    local which="" root
    root=$(run_folder lin_probe "$TOK_LIN_EXP_DIR")
    if given "${SAVE_DIR:-}"; then root=$SAVE_DIR/$TOK_LIN_EXP_DIR; fi
    if [ "${FIX_DIM:-False}" = True ]; then which=--fix-dim; fi
    if [ "${FROM_DECODER:-False}" = True ]; then which=--from-decoder; fi
    probe "probe tokenizer" train_lin_probe.sh "$root" "${TOK_PRECISION:-${PRECISION:-none}}" $which
}

probe_generator() {
    local root
    root=$(run_folder lin_probe_gpt "$LM_LIN_EXP_DIR")
    if given "${SAVE_DIR:-}"; then root=$SAVE_DIR/$LM_LIN_EXP_DIR; fi
    probe "probe generator" train_lin_probe_gpt.sh "$root" "${LM_PRECISION:-${PRECISION:-none}}" \
        --gpt-ckpt "$(generator)" --gpt-model "$GPT_MODEL" ${NUM_CODE:+--num-code "$NUM_CODE"}
}
