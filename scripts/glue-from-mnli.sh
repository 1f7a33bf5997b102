#!/usr/bin/env bash
# MRPC, RTE and STS-B from an MNLI adapter of the same rank: the published code's grid of ranks, learning rates and
# seeds. The MNLI adapters are read from $MNLI/rank-R/adapter, and trained there if they are missing.
#
#   scripts/glue-from-mnli.sh [--dry]
#   RANKS=16 SEEDS="0 1 2" TASKS=rte scripts/glue-from-mnli.sh          part of it; see grid.sh

TASKS=${TASKS:-mrpc rte stsb}
LRS=${LRS:-6e-4 1e-3}
HEAD_LRS=${HEAD_LRS:-6e-4 1e-3}
OUT=${OUT:-runs/glue-from-mnli}
MNLI=${MNLI:-$OUT/mnli}
# shellcheck source=scripts/grid.sh
source "$(dirname "$0")/grid.sh"

for rank in $RANKS; do
    run "$MNLI/rank-$rank" glue-mnli --set "adapter.rank=$rank" || continue
    grid "$rank" --set "train.init_from=$MNLI/rank-$rank/adapter"
done
finish
