#!/usr/bin/env bash
# The photographs' table on one GPU with 16 processors, from nothing: bash experiments/photos/gpu.sh ../shared/photos
set -euo pipefail
photos=$1
python -m experiments.photos.build --photos "$photos"
presel run experiment=photos pool.annotations="$photos/pool.json" pool.images="$photos/images" \
    evaluation.annotations="$photos/eval.json" strategy=random,presel,precover,full seed=0,1,2,3,4 \
    executor.workers=2 hydra/launcher=joblib hydra.launcher.n_jobs=6
