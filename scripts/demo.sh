#!/usr/bin/env bash
# A page to try a tokenizer and a generator in a browser. Installs requirements/demo.txt into .venv on first use.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ "${DRY_RUN:-0}" != 1 ] && ! .venv/bin/python -c 'import gradio' 2>/dev/null; then
    bash env_install.sh && .venv/bin/python -m pip install --quiet -r requirements/demo.txt || exit
fi
. scripts/launch.sh
GRADIO_ANALYTICS_ENABLED=False HF_HUB_DISABLE_TELEMETRY=1 GPUS=1 NNODES=1 launch studies.demo "$@"
