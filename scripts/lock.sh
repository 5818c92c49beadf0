#!/usr/bin/env bash
# Resolve pyproject.toml into the two lock files. torch keeps no local version label, so
# that one lock serves CPU and CUDA builds.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$1
torch=${TORCH:-2.13.0}
compile() {
  "$bin/pip-compile" --quiet --constraint <(echo "torch==$torch") --strip-extras --no-emit-index-url --no-emit-find-links \
    --no-emit-trusted-host --no-header --no-annotate --resolver=backtracking \
    --output-file "$1" "${@:2}" pyproject.toml
  sed -i -E 's/^(torch==[0-9.]+)\+[a-z0-9]+/\1/' "$1"
  sed -i -E '/^(agent-r1 @|    # via)/d' "$1"
}
compile requirements.lock --extra programs --extra gguf
compile requirements-dev.lock --extra dev
