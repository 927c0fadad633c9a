"""Every command of ReTok's and GigaTok's documents, as printed there, and RobusTok's on the paths they are mapped to.

    python -m tests.launchers.paper_commands

prints the list with pass or fail: launchers are run with DRY_RUN=1, and each job that a command would start must
understand its arguments, up to the point where the work would begin. The standalone evaluator, which knows no dry run,
has to get as far as missing its files. `test_paper_commands.py` is the same as tests. What the jobs do on toys is in
`test_evaluation_commands.py`, `test_robustok_commands.py` and `test_composites.py`.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
EVALUATOR = "evaluations/c2i/evaluator.py"

VARIABLES = {
    "IMGNET_ROOT": "data/imagenet", "VAL_PATH": "results/reconstructions/val_imagenet",
    "GT_VAL_NPZ_PATH": "results/reconstructions/val_imagenet.npz", "EVAL_PYTHON_PATH": "/envs/eval/bin/python",
    "GT_NPZ_PATH": "data/VIRTUAL_imagenet256_labeled.npz", "TOK_CONFIG": "configs/vq/VQ_SB256.yaml",
    "VQ_CKPT": "results/ckpts/VQ_SB256_e200.pt", "GPT_CKPT": "results/ckpts/GPT_B256.pt", "GPT_MODEL": "GPT-B",
    "SAMPLE_DIR": "results/samples/first", "CODE_PATH": "results/codes", "VQ_EXP_DIR": "tok", "LM_EXP_DIR": "gpt",
    "LM_LIN_EXP_DIR": "lm_probe", "TOK_LIN_EXP_DIR": "tok_probe", "CFG_SCALE": "1.75", "CFG_SCHEDULE": "step",
    "CFG_START_RATIO": "0.18", "PRECISION": "none", "EVAL_BATCH_PER_GPU": "32", "SEED": "0",
}
"""What the documents export before their commands."""


@dataclass(frozen=True)
class Command:
    """A line of a document; `row` is its number in the documentation's table of commands."""

    row: str
    line: str


RAR_SIZES = {
    size: " ".join(f"model.generator.{key}={value}" for key, value in values.items())
    for size, values in {
        "B": {
            "hidden_size": 768, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 3072,
        },
        "L": {
            "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
        },
    }.items()
}  # fmt: skip

COMMANDS = [
    Command("R2", "bash scripts/val.sh --data-path $IMGNET_ROOT/ILSVRC2012_img_val --sample-dir $SAMPLE_DIR/img_data"),
    Command(
        "R3",
        "bash scripts/reconstruction.sh --data-path $VAL_PATH --image-size 256 --quant-way vq "
        "--sample-dir $SAMPLE_DIR/rec --vq-ckpt $VQ_CKPT --model-config $TOK_CONFIG --clear-cache "
        "--eval-python-path $EVAL_PYTHON_PATH --gt-npz-path $GT_VAL_NPZ_PATH",
    ),
    Command(
        "R4",
        "bash scripts/sample_c2i_search_cfg.sh --quant-way=vq --image-size=256 --sample-dir=$SAMPLE_DIR "
        "--cfg-scale $CFG_SCALE --vq-ckpt $VQ_CKPT --tok-config $TOK_CONFIG --gpt-model $GPT_MODEL "
        "--cfg-schedule $CFG_SCHEDULE --step-start-ratio $CFG_START_RATIO --gpt-ckpt $GPT_CKPT "
        "--per-proc-batch-size $EVAL_BATCH_PER_GPU --precision $PRECISION --eval-python-path $EVAL_PYTHON_PATH "
        "--gt-npz-path $GT_NPZ_PATH --global-seed $SEED --clear-cache",
    ),
    Command(
        "R4 --search",
        "bash scripts/sample_c2i_search_cfg.sh --quant-way=vq --image-size=256 --sample-dir=$SAMPLE_DIR/search "
        "--vq-ckpt $VQ_CKPT --tok-config $TOK_CONFIG --gpt-model $GPT_MODEL --cfg-schedule $CFG_SCHEDULE "
        "--step-start-ratio $CFG_START_RATIO --gpt-ckpt $GPT_CKPT --precision $PRECISION "
        "--eval-python-path $EVAL_PYTHON_PATH --gt-npz-path $GT_NPZ_PATH --clear-cache --search",
    ),
    Command(
        "G1",
        "gpus=1 PORT=11086 bash scripts/reconstruction.sh --quant-way=vq --data-path=$VAL_PATH --image-size=256 "
        "--sample-dir=$SAMPLE_DIR/qualitative --vq-ckpt=$VQ_CKPT --model-config $TOK_CONFIG --qualitative --lpips "
        "--clear-cache",
    ),
    Command(
        "G2",
        "bash scripts/sample_c2i_visualization.sh --quant-way=vq --image-size=256 --sample-dir=$SAMPLE_DIR/visual "
        "--vq-ckpt $VQ_CKPT --tok-config $TOK_CONFIG --gpt-model $GPT_MODEL --cfg-schedule constant --cfg-scale 4.0 "
        '--gpt-ckpt $GPT_CKPT --precision fp16 --class-idx "22,388,90,978" --per-proc-batch-size 8 --qual-num 40',
    ),
    Command(
        "G4",
        "bash scripts/val_loss_c2i.sh --data-path=$IMGNET_ROOT/ILSVRC2012_img_val --quant-way=vq --image-size=256 "
        "--vq-ckpt $VQ_CKPT --tok-config $TOK_CONFIG --gpt-model $GPT_MODEL --per-proc-batch-size 32 "
        "--gpt-ckpt $GPT_CKPT --precision $PRECISION",
    ),
    Command("G5", "bash scripts/composite_cmd/train_lm_lin_probe_and_eval.sh"),
    Command("G6", "bash scripts/composite_cmd/train_tok_lin_probe_and_eval.sh"),
    Command("G7", "bash scripts/composite_cmd/train_vq_and_eval.sh"),
    Command("G7 fsdp", "bash scripts/composite_cmd/train_vq_and_eval_fsdp.sh"),
    Command("G8", "bash scripts/extract_code_c2i.sh --data-path $IMGNET_ROOT/ILSVRC2012_img_train"),
    Command("G9", "bash scripts/composite_cmd/train_c2i_and_eval.sh"),
    Command("G9 fsdp", "bash scripts/composite_cmd/train_c2i_and_eval_fsdp.sh"),
    Command("G10 composite", "bash scripts/composite_cmd/train_all_lin_probe_and_eval.sh"),
    Command("G10 composite", "bash scripts/composite_cmd/eval_c2i.sh"),
    *(
        Command(
            f"G10 {script}",
            f"bash scripts/{script} --vq-ckpt $VQ_CKPT --data-path $IMGNET_ROOT/ILSVRC2012_img_train --image-size 256 "
            "--gpt-model $GPT_MODEL --mixed-precision bf16 --global-batch-size 256 --iterations 1500000 --warmup 5000 "
            "--lr 1e-4 --lr-scheduler wsd --fract-decay 0.2 --ckpt-every 5000 --dataset imagenet --num-workers 8 "
            "--tok-config $TOK_CONFIG --sub-exp-dir $LM_EXP_DIR --save-path results/gpt --early-stop-iter None "
            f"--no-wandb --quant-way vq --cls-token-num 1 --global-seed 0 --log-every 200 {more}",
        )
        for script, more in (("train_c2i.sh", "--no-compile --qk-norm"), ("train_c2i_fsdp.sh", "--data-parallel sdp"))
    ),
    *(
        Command(
            f"G10 {script}",
            f"bash scripts/{script} --data-path $IMGNET_ROOT/ILSVRC2012_img_train --model-config $TOK_CONFIG "
            "--iteration 1000000 --sub-exp-dir $VQ_EXP_DIR --save-path results/tokenizers/vq --global-batch-size 128 "
            "--mixed-precision fp16 --ckpt-every 5000 --dataset imagenet --image-size 256 --num-workers 8 --warmup 0 "
            f"--fract-decay 0.2 --early-stop-iter None --no-wandb --log-every 500 --global-seed 0 --ema {more}",
        )
        for script, more in (("train_vq.sh", ""), ("train_vq_fsdp.sh", "--data-parallel fsdp"))
    ),
    *(
        Command(
            f"G10 {script}",
            f"bash scripts/{script} --data-root $IMGNET_ROOT --vq-ckpt $VQ_CKPT --image-size 256 --epochs 90 --blr 0.1 "
            "--warmup-epochs 10 --weight-decay 0 --batch-size 128 --min-lr 0 --global-seed 0 --mixed-precision none "
            f"--ckpt-epoch 5 --dist-eval --log-every 100 --num-workers 8 {more}",
        )
        for script, more in (
            ("train_lin_probe.sh", "--model-config $TOK_CONFIG --save-path results/probe --sub-exp-dir tok --fix-dim"),
            (
                "train_lin_probe_gpt.sh",
                "--tok-config $TOK_CONFIG --gpt-ckpt $GPT_CKPT --gpt-model $GPT_MODEL "
                "--save-path results/lin_probe_gpt --sub-exp-dir lm --num-code 16",
            ),
        )
    ),
    Command("G10 check_code_c2i.sh", "bash scripts/check_code_c2i.sh"),
    Command(
        "B1", "torchrun --nproc_per_node=8 tokenizer/tokenizer_image/main_train.py --config configs/main-train.yaml"
    ),
    *(
        Command(
            f"B2 RAR-{size}",
            f"torchrun --nproc_per_node=8 scripts/train_rar.py experiment.project=rar experiment.name=rar_{size} "
            f"experiment.output_dir=rar_{size} {dimensions} config=configs/generator/rar.yaml "
            "dataset.params.pretokenization=RobustTok-half-pretokenized.jsonl model.vq_ckpt=$VQ_CKPT",
        )
        for size, dimensions in RAR_SIZES.items()
    ),
    *(
        Command(
            f"{row} RAR-{size}",
            f"torchrun --nproc_per_node=8 scripts/{script} config=configs/generator/rar.yaml "
            f"experiment.output_dir=rar_{size} experiment.generator_checkpoint=rar_{size}.bin model.vq_ckpt=$VQ_CKPT "
            f"{dimensions} model.generator.randomize_temperature=1.02 model.generator.guidance_scale=6.0 "
            f"model.generator.guidance_scale_pow=1.15 {more}",
        )
        for row, script, more in (
            (
                "B3", "post_train_data.py",
                "--sigma 0.7 --data-path $IMGNET_ROOT/ILSVRC2012_img_train --num_samples 200000",
            ),
            ("B5", "sample_imagenet_rar.py", ""),
        )
        for size, dimensions in RAR_SIZES.items()
    ),
    Command(
        "B4",
        "torchrun --nproc_per_node=8 tokenizer/tokenizer_image/xqgan_post_train.py --config configs/post-train.yaml "
        "--data-path rar_b --pair-set $IMGNET_ROOT/ILSVRC2012_img_train --vq-ckpt $VQ_CKPT",
    ),
    Command("B6", "python3 evaluations/c2i/evaluator.py VIRTUAL_imagenet256_labeled.npz rar_b.npz"),
]


def planned(command: Command) -> list[list[str]]:
    """What every process that the command starts is given to run: a file or `-m MODULE`, and arguments.

    Raises: RuntimeError with what a launcher had to say against it.
    """
    environment = {**os.environ, "GPUS": "1", "NNODES": "1", **VARIABLES, "DRY_RUN": "1"}
    line = command.line
    if line.startswith(("torchrun ", "python3 ")):
        line = f"printf '%s ' {line}"  # the shell fills in the variables
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    plans = [shlex.split(line) for line in done.stdout.splitlines()]
    return [words[next(at for at, word in enumerate(words) if word == "-m" or word[-3:] == ".py") :] for words in plans]


def problem(command: Command) -> str | None:
    """What is wrong with a command; None if every job understands it."""
    try:
        plans = planned(command)
    except RuntimeError as error:
        return str(error)
    for words in plans:
        dry = [] if words[0] == EVALUATOR else ["--dry-run"]
        done = subprocess.run([sys.executable, *words, *dry], cwd=ROOT, capture_output=True, text=True, check=False)
        understood = "cannot be read" in done.stderr if words[0] == EVALUATOR else done.returncode == 0
        if not understood:
            return done.stderr.strip()
    return None if plans else "it starts nothing"


def main() -> int:
    failed = 0
    for command in COMMANDS:
        wrong = problem(command)
        failed += wrong is not None
        print(f"{'fail' if wrong else 'pass'}  {command.row:28} {command.line}")
        if wrong:
            print(f"      {wrong}")
    print(f"{len(COMMANDS) - failed} of {len(COMMANDS)} commands pass")
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
