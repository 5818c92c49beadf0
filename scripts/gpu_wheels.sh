#!/usr/bin/env bash
# Collect wheels for a machine with a GPU and no network:
#   scripts/gpu_wheels.sh DIR [PYTHON_VERSION]
# That machine must have torch, transformers, tokenizers, safetensors, numpy, pyarrow, sympy,
# matplotlib, rich and pytest of its own; this brings the rest, at the locked versions.
set -euo pipefail
cd "$(dirname "$0")/.."
target=$1 version=${2:-3.12}
names="antlr4-python3-runtime annotated-types click docstring-parser gguf httptools hypothesis jsonschema
    jsonschema-specifications latex2sympy2-extended math-verify msgspec omegaconf peft pydantic
    pydantic-core pytest-timeout referencing rpds-py torchao typing-inspection typing-extensions
    uvicorn"
mkdir -p "$target"
for name in $names; do
    pinned=$(grep -iE "^${name//-/[-_]}==" requirements-dev.lock || echo "$name")
    platforms=()
    for tag in manylinux_2_39 manylinux_2_34 manylinux_2_28 manylinux_2_27 manylinux_2_24 \
        manylinux_2_17 manylinux2014 manylinux1; do
        platforms+=(--platform "${tag}_x86_64")
    done
    python3 -m pip download --quiet --no-deps --only-binary=:all: --implementation cp \
        --python-version "$version" "${platforms[@]}" -d "$target" "$pinned"
done
du -sh "$target"
