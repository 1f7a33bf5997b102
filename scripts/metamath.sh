#!/usr/bin/env bash
# Trains on MetaMathQA, merges, and scores GSM8K and MATH, as the published script does.
#
#   scripts/metamath.sh [RECIPE]            [default: metamath-mistral-7b]
#   RANK=32 LR=4e-3 SEED=1 scripts/metamath.sh metamath-gemma-7b
#
#   LORAXS  the binary       OUT    folder of the run      ARGS  further arguments of `loraxs train`
#   RANK, LR, SEED           replace the recipe's (alpha = rank)
#   EVAL_ARGS                further arguments of `loraxs eval`, such as `--precision bf16` on a GPU
#
# Finished parts are skipped: the training, the merged folder, and every completion that is already scored.
set -euo pipefail
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
recipe=${1:-metamath-mistral-7b}
if [ -z "${LORAXS:-}" ]; then
    LORAXS=$scripts/../target/release/loraxs
    [ -x "$LORAXS" ] || LORAXS=loraxs
fi
OUT=${OUT:-runs/$recipe${RANK:+-rank-$RANK}${LR:+-lr-$LR}${SEED:+-seed-$SEED}}
read -ra more <<<"${ARGS:-}"
read -ra more_eval <<<"${EVAL_ARGS:-}"
[ -z "${RANK:-}" ] || more+=(--set "adapter.rank=$RANK" --set "adapter.alpha=$RANK")
[ -z "${LR:-}" ] || more+=(--set "train.learning_rate=$LR")
[ -z "${SEED:-}" ] || more+=(--set "train.seed=$SEED")

if [ ! -e "$OUT/results.json" ]; then
    resume=()
    [ ! -d "$OUT" ] || resume=(--resume)
    "$LORAXS" train --recipe "$recipe" --out "$OUT" "${more[@]}" "${resume[@]}"
fi
[ -d "$OUT/merged" ] || "$LORAXS" merge --run "$OUT" --out "$OUT/merged"
"$LORAXS" eval --model "$OUT/merged" --task gsm8k --task math --split test --out "$OUT/scores" "${more_eval[@]}"
