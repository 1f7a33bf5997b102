#!/usr/bin/env bash
# The ablation of the basis: glue-from-scratch.sh with random A and B instead of those from the SVD.
#
#   scripts/glue-random-init.sh [--dry]
#   RANKS=16 SEEDS="0 1 2" TASKS=cola scripts/glue-random-init.sh       part of it; see grid.sh

TASKS=${TASKS:-cola sst2 qnli}
LRS=${LRS:-1e-4 5e-4 1e-3}
HEAD_LRS=${HEAD_LRS:-5e-4 1e-3 5e-3}
OUT=${OUT:-runs/glue-random-init}
# shellcheck source=scripts/grid.sh
source "$(dirname "$0")/grid.sh"

for rank in $RANKS; do
    grid "$rank" --set adapter.init=random
done
finish
