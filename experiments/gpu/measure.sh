#!/usr/bin/env bash
# All that is to be measured on one GPU, in eight minutes at most: bash experiments/gpu/measure.sh FOLDER
# SHAPE=tiny bash experiments/gpu/measure.sh FOLDER runs the same lines at small sizes, on a CPU too.
#
# Each part is a process of its own, ended when its time is over. FOLDER gets rows.jsonl, with every row as soon
# as it is measured, the log of all parts, and at the end measured.json.
set -euo pipefail
mkdir -p "$1"
folder=$(cd "$1" && pwd)
cd "$(dirname "$0")/../.."
export PYTHONPATH=$PWD:$PWD/experiments/benchmarks${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
: >"$folder/rows.jsonl"
: >"$folder/log"

part() { # NAME SECONDS PROGRAM ARGUMENT...
    local name=$1 limit=$2 status=0 started=$SECONDS
    shift 2
    echo "== $name" | tee -a "$folder/log"
    timeout --kill-after=5 "$((limit * patience))" python "$@" --rows "$folder/rows.jsonl" >>"$folder/log" 2>&1 ||
        status=$?
    # Status 124: the time was over.
    printf '{"benchmark": "parts", "what": "%s", "status": %d, "seconds": %d}\n' \
        "$name" "$status" $((SECONDS - started)) >>"$folder/rows.jsonl"
}

if [ "${SHAPE:-full}" = tiny ]; then
    patience=60
    scoring=(--shape tiny --samples 4 --released 2 --batch-tokens 1024 2048 --workers 1)
    tuning=(--shape tiny --steps 1 --rank 4 --workers 1)
    few="1 2" some="1 2" many="2" one="2"
    features=(--encoder small --images 4 --batch-size 2 --workers 1)
    images=2000
else
    patience=1
    scoring=(--shape 7b --samples 128 --released 24 --batch-tokens 8192 16384 32768 --workers 12)
    tuning=(--shape 7b --workers 12)
    few="2 4 8" some="8 32" many="16" one="4"
    features=(--encoder base --images 4096 --batch-size 64 --workers 14)
    images=1000000
fi
# shellcheck disable=SC2086  # lists of sizes
{
    part irs 100 experiments/benchmarks/irs.py "${scoring[@]}" --compiled
    part tuning 60 experiments/gpu/batch_sizes.py "${tuning[@]}" --sizes $few
    part tuning-recomputed 80 experiments/gpu/batch_sizes.py "${tuning[@]}" --sizes $some --recompute
    part tuning-narrow 40 experiments/gpu/batch_sizes.py "${tuning[@]}" --sizes $one --change narrow
    part features 45 experiments/benchmarks/features.py "${features[@]}"
    part kmeans 60 experiments/gpu/kmeans.py --images "$images"
    part tuning-compiled 80 experiments/gpu/batch_sizes.py "${tuning[@]}" --sizes $one --change compiled
}
python experiments/gpu/collect.py "$folder"
