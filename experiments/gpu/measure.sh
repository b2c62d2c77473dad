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
    timeout --kill-after=5 "$((limit * patience))" python3 "$@" --rows "$folder/rows.jsonl" >>"$folder/log" 2>&1 ||
        status=$?
    # The rows since the last such line are this part's. Status 124: its time was over.
    printf '{"part": "%s", "status": %d, "seconds": %d}\n' "$name" "$status" $((SECONDS - started)) \
        >>"$folder/rows.jsonl"
}

if [ "${SHAPE:-full}" = tiny ]; then
    patience=60
    llava=(--shape tiny) qwen=(--shape qwen_tiny)
    scoring=(--samples 4 --released 2 --workers 1) fewer=("${scoring[@]}")
    batches=(--batch-tokens 1024 2048) batch=(--batch-tokens 2048)
    tuning=(--rank 4 --workers 1) kept=(--sizes 1 2 --steps 1) recomputed=(--sizes 2 --steps 1)
    one=(--sizes 2 --steps 1)
    features=(--encoder small --images 4 --batch-size 2 --workers 1)
    clustering=(--images 2000)
else
    patience=1
    llava=(--shape 7b) qwen=(--shape qwen_3b)
    scoring=(--samples 48 --released 24 --rounds 4 --workers 12) fewer=(--samples 32 --released 4 --workers 12)
    batches=(--batch-tokens 8192 16384 32768) batch=(--batch-tokens 16384)
    tuning=(--rank 128 --workers 12) kept=(--sizes 2 4 8 --steps 4) recomputed=(--sizes 8 32 --steps 2)
    one=(--sizes 4 --steps 4)
    features=(--encoder base --images 2048 --batch-size 64 --workers 14)
    clustering=(--images 1000000)
fi
irs=experiments/benchmarks/irs.py
steps=experiments/gpu/batch_sizes.py
part irs 75 $irs "${llava[@]}" "${scoring[@]}" "${batches[@]}"
part tuning 60 $steps "${llava[@]}" "${tuning[@]}" "${kept[@]}"
part tuning-recomputed 65 $steps "${llava[@]}" "${tuning[@]}" "${recomputed[@]}" --recompute
part qwen-irs 50 $irs "${qwen[@]}" "${scoring[@]}" "${batch[@]}"
part qwen-tuning 40 $steps "${qwen[@]}" "${tuning[@]}" "${kept[@]}"
part features 40 experiments/benchmarks/features.py "${features[@]}"
part kmeans 40 experiments/gpu/kmeans.py "${clustering[@]}"
part tuning-narrow 30 $steps "${llava[@]}" "${tuning[@]}" "${one[@]}" --change narrow
part irs-compiled 75 $irs "${llava[@]}" "${fewer[@]}" "${batch[@]}" --compiled
python3 experiments/gpu/collect.py "$folder"
