#!/usr/bin/env bash
# Trains every method on SST-2 (8,000 rows) and STS-B (3,000 rows) with a small base, and prints a table of the results.
#
#   scripts/compare-methods.sh [--dry]
#
#   BASE      folder or hub id of the base [default: all-MiniLM-L6-v2]
#   DATASETS  catalog with the two data sets (see `--datasets`) [default: from the hub]
#   SST2, STSB  their names in it            SEEDS, OUT, ARGS, LORAXS  see grid.sh
#
# With 6,144 trainable parameters besides the head: LoRA-XS in its SVD basis and in a random one, VeRA and LoRA-Mini. For
# comparison: the smallest LoRA (rank 1, on query and value and on all four targets), TinyLoRA, the head alone, and full
# fine-tuning. Each method has one learning rate, of the magnitude that its paper uses, not tuned. Finished runs are skipped.
OUT=${OUT:-runs/compare-methods}
BASE=${BASE:-sentence-transformers/all-MiniLM-L6-v2}
SEEDS=${SEEDS:-0 1 2}
# shellcheck source=scripts/grid.sh
source "$(dirname "${BASH_SOURCE[0]}")/grid.sh"
ARGS="${ARGS:---device cpu --threads 1}${DATASETS:+ --datasets $DATASETS}"

# compare NAME [KEY=VALUE]...: one method on both tasks with the seed of the loop below.
compare() {
    local name=$1 task set sets=()
    shift
    for set in "$@"; do sets+=(--set "$set"); done
    for task in sst2 stsb; do
        local dataset=${SST2:-glue/sst2} limit=8000
        if [ "$task" = stsb ]; then dataset=${STSB:-glue/stsb} limit=3000; fi
        run "$OUT/$task/$name/seed-$seed" "$scripts/../recipes/compare-methods.toml" --set "data.dataset=$dataset" \
            --set "data.limit=$limit" --set "train.seed=$seed" "${sets[@]}" || true
    done
}

for seed in $SEEDS; do
    compare lora-xs adapter.method=lora-xs
    compare lora-xs-random adapter.method=lora-xs adapter.init=random
    compare vera adapter.method=vera adapter.rank=128 adapter.targets=query,value train.learning_rate=2e-2
    compare lora-mini adapter.method=lora-mini adapter.rank=4 adapter.alpha=4
    compare lora-r1-query-value adapter.method=lora adapter.rank=1 adapter.alpha=2 adapter.targets=query,value \
        train.learning_rate=2e-3
    compare lora-r1 adapter.method=lora adapter.rank=1 adapter.alpha=2 train.learning_rate=2e-3
    compare tiny-lora adapter.method=tiny-lora
    compare head adapter.method=head
    compare full adapter.method=full train.learning_rate=1e-4 train.head_learning_rate=1e-3
done
if [ -z "$dry" ]; then python3 "$scripts/methods_table.py" "$OUT"; fi
if [ "$failed" -ne 0 ]; then echo "$failed runs failed" >&2; exit 1; fi
