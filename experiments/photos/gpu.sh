#!/usr/bin/env bash
# Many runs on the photographs, on one GPU with 16 processors:
#   bash experiments/photos/gpu.sh ../shared/photos           the table, scored on eval.json
#   bash experiments/photos/gpu.sh ../shared/photos trials    settings to choose among, scored on eval_dev.json
# Runs start in the order of `table` or `trials`, JOBS at a time, those whose names match ONLY (a regular expression,
# such as '^(random|presel)-[0-4]$'); interrupted, the same command goes on. Processes share a GPU better under
# NVIDIA's MPS, if it is started before: nvidia-cuda-mps-control -d
set -euo pipefail
photos=$1 list=${2:-table}
case $list in
    table) evaluation=eval.json ;;
    trials) evaluation=eval_dev.json ;;
    *) echo "gpu.sh: no list '$list': table or trials" >&2; exit 2 ;;
esac
out=outputs/photos/$list
[[ -d outputs/models/photo_llava ]] || python3 -m experiments.photos.build --photos "$photos"
mkdir -p "$out"
# Threads of that many processes would wait for each other.
export OMP_NUM_THREADS=1 photos evaluation out

precover="strategy=precover encoder=lvlm"
# A temperature above the paper's, 1/√M = 0.267.
softer="$precover strategy.budgets=image_relevance tau.value=0.6"

table() {
    echo full-0 strategy=full seed=0
    echo full-1 strategy=full seed=1
    # Runs of one kind of features wait for the first of them, and those of one seed for its reference model.
    echo "image_relevance-0.6-0 $softer seed=0"
    for seed in {0..9}; do echo "random-$seed strategy=random seed=$seed"; done
    for seed in {1..9}; do echo "image_relevance-0.6-$seed $softer seed=$seed"; done
    for seed in {0..9}; do echo "presel-$seed strategy=presel seed=$seed"; done
    for seed in {0..9}; do echo "precover-$seed $precover seed=$seed"; done
    for seed in {0..9}; do echo "image_relevance-$seed $precover strategy.budgets=image_relevance seed=$seed"; done
    for seed in {0..4}; do
        for strategy in typiclust prism perplexity el2n ifd self_filter coincide visnec progress; do
            echo "$strategy-$seed strategy=$strategy seed=$seed"
        done
    done
}

trials() {
    for seed in {0..4}; do
        echo "random-$seed strategy=random seed=$seed"
        for picks in kmeans facility_location random uncertainty; do
            echo "uniform-$picks-$seed $precover strategy.picks=$picks seed=$seed"
        done
        for budgets in size relevance image_relevance gain; do
            echo "$budgets-kmeans-$seed $precover strategy.budgets=$budgets seed=$seed"
        done
        for tau in 0.5 1; do
            echo "image_relevance-tau-$tau-$seed $precover strategy.budgets=image_relevance tau.value=$tau seed=$seed"
        done
        echo "presel-$seed strategy=presel seed=$seed"
        for setting in shrink=0.5 weighting=uniform pick=distinct size_exponent=0.5; do
            echo "presel-${setting/=/-}-$seed strategy=presel strategy.$setting seed=$seed"
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
        pool.images="$photos/images" evaluation.annotations="$photos/$evaluation" evaluation.batch_size=256 \
        executor.workers=1 hydra.run.dir="$out/$name" "$@" > "$out/$name.log" 2>&1
}
export -f run

"$list" | while read -r name settings; do
    [[ ! $name =~ ${ONLY:-.} ]] || echo "$name $settings"
done | xargs --max-procs "${JOBS:-12}" --max-lines=1 bash -c 'run "$@"' run
