#!/usr/bin/env bash
# The photographs' table on one GPU with 16 processors: bash experiments/photos/gpu.sh ../shared/photos
# Runs start in the order of `table`, JOBS at a time; interrupted, the same command goes on. Processes share a
# GPU better under NVIDIA's MPS, if it is started before: nvidia-cuda-mps-control -d
set -euo pipefail
photos=$1 out=${2:-outputs/photos/table}
python3 -m experiments.photos.build --photos "$photos"
mkdir -p "$out"
export photos out

table() {
    echo full-0 strategy=full seed=0
    echo full-1 strategy=full seed=1
    # The first of each kind computes the features that the others wait for.
    echo precover-0 strategy=precover encoder=lvlm seed=0
    echo presel-0 strategy=presel seed=0
    for seed in {0..9}; do echo "random-$seed strategy=random seed=$seed"; done
    for seed in {1..9}; do
        echo "precover-$seed strategy=precover encoder=lvlm seed=$seed"
        echo "presel-$seed strategy=presel seed=$seed"
    done
    for seed in {0..4}; do
        for strategy in typiclust prism perplexity el2n ifd self_filter coincide visnec progress; do
            echo "$strategy-$seed strategy=$strategy seed=$seed"
        done
    done
}

run() {
    local name=$1 behind=1
    shift
    # The full pool takes longest; others stand behind it, on the processors and on the GPU (under MPS).
    [[ $name == full-* ]] && behind=0
    CUDA_MPS_CLIENT_PRIORITY=$behind nice -n $((10 * behind)) \
        python3 -m presel run experiment=photos hydra.mode=RUN pool.annotations="$photos/pool.json" \
        pool.images="$photos/images" evaluation.annotations="$photos/eval.json" evaluation.batch_size=128 \
        executor.workers=1 hydra.run.dir="$out/$name" "$@" > "$out/$name.log" 2>&1
}
export -f run

table | xargs --max-procs "${JOBS:-12}" --max-lines=1 bash -c 'run "$@"' run
