#!/usr/bin/env bash
# What this project does on the GPU of this machine, in at most 8 minutes (--short: 4).
#
#   scripts/gpu_check.sh [--short] [--rehearse] [--output DIR] [--wheels DIR] [--python PYTHON]
#
# Nothing is installed from a network. --wheels names a folder of wheels for what the Python
# of this machine lacks (`make gpu-wheels` collects them). --rehearse runs the same stages with
# tiny shapes on the CPU. Each stage has a time limit, cut to what is left of the whole, and
# writes DIR/STAGE.json as soon as it has a figure, so that a stage which is cut off leaves what
# it had; a stage that fails does not keep the others from running, and makes the exit status 1.
# The quick start runs beside the tests: neither measures the card's speed.
# `python benchmarks/gpu_page.py DIR` then writes docs/results/gpu.md.
set -uo pipefail
cd "$(dirname "$0")/.."

output=gpu-check wheels="" python=python3 profile=full rehearse=""
while [ $# -gt 0 ]; do
    case $1 in
        --short) profile=short ;;
        --rehearse) rehearse=--rehearse ;;
        --output) output=$2; shift ;;
        --wheels) wheels=$2; shift ;;
        --python) python=$2; shift ;;
        *) echo "unknown option $1; see the head of $0" >&2; exit 2 ;;
    esac
    shift
done
mkdir -p "$output"
output=$(cd "$output" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True

if [ -n "$wheels" ]; then
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir \
        --target "$scratch/site" "$wheels"/*.whl || exit 1
    export PYTHONPATH=$PWD:$scratch/site
fi

failed=0
[ $profile = short ] && whole=240 || whole=480
[ -z "$rehearse" ] || whole=3600 # a rehearsal is not about time

stage() { # NAME SECONDS COMMAND...
    local name=$1 limit=$2 status=0 started=$SECONDS left=$((whole - SECONDS))
    shift 2
    [ -z "$rehearse" ] || limit=$((3 * limit))
    [ $limit -le $left ] || limit=$left
    if [ $left -gt 0 ]; then
        timeout "$limit" "$@" >"$scratch/$name.log" 2>&1 || status=$?
    else
        echo "no time was left" >"$scratch/$name.log"
        status=124
    fi
    report "$name" $status $((SECONDS - started))
}

report() { # NAME STATUS SECONDS
    echo "== $1: $([ $2 = 0 ] && echo done || echo "FAILED ($2)") in $3 s"
    if [ $2 != 0 ]; then
        failed=1
        grep -E '^E  ' "$scratch/$1.log" | sort | uniq -c | head -n 20 | cut -c1-300
        tail -n 12 "$scratch/$1.log" | cut -c1-500
    else
        grep -vE '^(W[0-9]|Failed to load|  warn|\s*$)' "$scratch/$1.log" | tail -n 9 | cut -c1-600
    fi
}

environment() {
    "$python" - "$output/environment.json" <<'PY'
import json, os, platform, sys
import torch, transformers
card = None
if torch.cuda.is_available():
    p = torch.cuda.get_device_properties(0)
    card = {"name": p.name, "memory_bytes": p.total_memory, "multiprocessors": p.multi_processor_count}
record = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda,
          "transformers": transformers.__version__, "cpus": os.cpu_count(), "card": card}
json.dump(record, open(sys.argv[1], "w"), indent=1)
print(json.dumps(record))
PY
}
export -f environment
export python output

check() { # STAGE SECONDS
    stage "$1" "$2" "$python" benchmarks/gpu_check.py "$1" --output "$output" --profile "$profile" $rehearse
}

gpu_tests=$(grep -rlE "mark\.gpu" tests --include="test_*.py")
stage environment 20 bash -c environment
if [ $profile = full ]; then
    timeout $([ -z "$rehearse" ] && echo 150 || echo 900) "$python" -m agent_r1 quickstart \
        trainer.default_local_dir="$scratch/quickstart" >"$scratch/quickstart.log" 2>&1 &
    quickstart=$!
fi
stage tests 110 "$python" -m pytest -q -m "gpu and not slow" -W default -p no:cacheprovider \
    $gpu_tests
if [ $profile = full ]; then
    status=0 started=$SECONDS
    wait $quickstart || status=$?
    report quickstart $status $((SECONDS - started))
    cp "$scratch/quickstart/report.json" "$output/quickstart.json" 2>/dev/null
fi
check ceilings 20
check update 160
check rollout 110
check step 75
exit $failed
