#!/usr/bin/env bash
# CoLA, SST-2 and QNLI from the pretrained base: the published code's grid of ranks, learning rates and seeds.
#
#   scripts/glue-from-scratch.sh [--dry]
#   RANKS=16 SEEDS="0 1 2" TASKS=cola scripts/glue-from-scratch.sh      part of it; see grid.sh

TASKS=${TASKS:-cola sst2 qnli}
LRS=${LRS:-1e-4 5e-4 1e-3}
HEAD_LRS=${HEAD_LRS:-5e-4 1e-3 5e-3}
OUT=${OUT:-runs/glue-from-scratch}
# shellcheck source=scripts/grid.sh
source "$(dirname "$0")/grid.sh"

for rank in $RANKS; do
    grid "$rank"
done
finish
