#!/usr/bin/env bash
# Make a virtual environment with the locked dependencies and this package in it.
#   scripts/install.sh VENV LOCKFILE
# Where no NVIDIA GPU answers, torch is the CPU build: a tenth of the download.
# AGENT_R1_TORCH=cpu|cuda|auto overrides the choice.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1 lock=$2
python=${PYTHON:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "Agent-R1 needs Python 3.11 or newer; $("$python" --version) was found." >&2
  echo "Name another interpreter: make PYTHON=python3.12 ..." >&2
  exit 1
}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }

torch=$(grep -E '^torch==' "$lock" | head -n 1 | cut -d' ' -f1)
build=${AGENT_R1_TORCH:-auto}
if [ "$build" = auto ]; then
  build=cuda
  if [ "$(uname -s)" = Linux ] && ! nvidia-smi -L >/dev/null 2>&1; then build=cpu; fi
fi
if ! "$venv/bin/python" -c 'import torch' >/dev/null 2>&1; then
  echo "installing $torch ($build build)"
  if [ "$build" = cuda ]; then
    pip install "$torch"
  elif ! pip install --only-binary=:all: "$torch+cpu" 2>/dev/null; then
    pip install uv  # knows where PyTorch publishes its CPU builds
    "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --torch-backend=cpu "$torch"
  fi
fi
echo "installing the locked dependencies"
pip install -r "$lock"
pip install --no-deps --no-build-isolation -e .
