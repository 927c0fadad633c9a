#!/usr/bin/env bash
# Make the Python environments. Safe to repeat: a second run finds nothing to do and says so.
#   bash env_install.sh           .venv       everything the jobs and the tests need
#   bash env_install.sh --eval    .venv-eval  TensorFlow, for the ADM evaluator only
# Variables: PYTHON           the interpreter to build from (default: the first suitable one on PATH)
#            TORCH_INDEX_URL  where CPU builds of torch are looked for when pip's own sources have none
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

say() { echo "env_install: $*"; }
fail() { say "$*" >&2; exit 1; }

suitable() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; }

find_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        suitable "$PYTHON" || fail "PYTHON=$PYTHON is not a Python of version 3.11 to 3.13; set PYTHON to one that is"
        echo "$PYTHON"
        return
    fi
    for candidate in python3 python3.12 python3.11 python3.13 python; do
        if suitable "$candidate"; then command -v "$candidate"; return; fi
    done
    fail "found no Python 3.11, 3.12 or 3.13 on PATH; install one, or name it: PYTHON=/path/to/python bash env_install.sh"
}

make_venv() { # make_venv FOLDER: an environment with a working pip; an interrupted one is completed
    if ! "$1/bin/python" -m pip --version >/dev/null 2>&1; then
        local python
        python=$(find_python)
        say "making $1 with $python ($("$python" --version 2>&1))"
        "$python" -m venv "$1" || fail "'$python -m venv' failed; on Debian or Ubuntu: apt install python3-venv"
    fi
    suitable "$1/bin/python" || fail "$1 has a Python outside 3.11 to 3.13; delete $1 and run this again"
}

fingerprint() { # of everything the result depends on
    { echo "$hardware"; "$1/bin/python" --version; cat requirements/*.* env_install.sh; } |
        "$1/bin/python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())'
}

# The CUDA build of torch also runs on the CPU, but is 3 GB larger: prefer the CPU build where no GPU is.
cpu_torch() {
    local torch index=${TORCH_INDEX_URL:-https://download.pytorch.org/whl/cpu}
    torch="$(grep '^torch==' requirements/base.txt)+cpu"
    if "$pip" install --quiet --no-deps "$torch" 2>/dev/null; then
        return
    elif "$pip" install --quiet --no-deps --retries 1 --timeout 10 --extra-index-url "$index" "$torch" 2>/dev/null; then
        extra_index=(--extra-index-url "$index")
    else
        say "no CPU build of torch in pip's sources nor at $index: taking the default build (larger, works too)"
    fi
}

mend_torchvision() {
    local site error
    site=$("$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    rm -f "$site"/torchvision_operators.{py,pth}
    error=$("$1/bin/python" -c 'import torchvision' 2>&1) && return
    case $error in
        *"operator torchvision::nms does not exist"*) ;;
        *) fail "torchvision does not import: ${error##*$'\n'}" ;;
    esac
    cp requirements/torchvision_operators.py "$site"/
    echo 'import torchvision_operators' >"$site/torchvision_operators.pth"
    "$1/bin/python" -c 'import torchvision' || fail "torchvision does not import even with its operators declared"
    say "torchvision is a CUDA build beside a CPU torch: installed a start-up hook that declares its missing operators"
}

install() { # install FOLDER REQUIREMENTS...
    local venv=$1 stamp=$1/.installed
    local pip=$venv/bin/pip extra_index=() files=() file
    shift
    for file in "$@"; do files+=(-r "$file"); done
    make_venv "$venv"
    if [ "$(cat "$stamp" 2>/dev/null)" = "$(fingerprint "$venv")" ]; then
        say "$venv is up to date ($hardware); nothing to do"
        return
    fi
    rm -f "$stamp"
    say "installing ${*} into $venv ($hardware); this takes a minute or more"
    case "$venv $hardware $(uname -s)" in
        ".venv cpu Linux") cpu_torch ;;
        # An environment made before there was a GPU: pip would count its CPU build as good enough.
        ".venv cuda "*) if "$pip" list --format=freeze | grep -q '^torch==.*+cpu'; then "$pip" uninstall -qy torch; fi ;;
    esac
    # (The odd spelling of the array is for bash 3.2, where an empty one counts as unset.)
    "$pip" install --quiet ${extra_index[@]+"${extra_index[@]}"} "${files[@]}" || fail "pip failed (see above); run this again to go on"
    if [ "$venv" = .venv ]; then mend_torchvision "$venv"; fi
    fingerprint "$venv" >"$stamp"
    say "$venv is ready: $("$venv/bin/python" --version), $hardware, $("$pip" list --format=freeze | wc -l) packages"
}

hardware=cpu
if nvidia-smi -L >/dev/null 2>&1; then hardware=cuda; fi
case "${1:-}" in
    "") install .venv requirements/base.txt requirements/dev.txt ;;
    --eval) install .venv-eval "requirements/eval-$hardware.txt" ;;
    *) fail "got '$1'; expected no argument, or --eval" ;;
esac
