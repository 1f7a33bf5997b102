# shellcheck shell=bash
# Sourced by the glue-*.sh grids: their settings, from environment variables, and the loop that runs a grid.
#
#   LORAXS     the binary                           SEEDS, RANKS, LRS, HEAD_LRS, TASKS   the grid, separated by spaces
#   BASE       hub id or folder of the base         ARGS   further arguments of `loraxs train`, separated by spaces,
#   OUT        folder of the runs                          such as "--device cuda --set data.limit=64"
#
# Finished runs (those with a results.json) are skipped and unfinished ones resumed, so the same command continues an
# interrupted grid. `--dry` prints the remaining commands instead.

set -euo pipefail
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [ -z "${LORAXS:-}" ]; then
    LORAXS=$scripts/../target/release/loraxs
    [ -x "$LORAXS" ] || LORAXS=loraxs
fi
BASE=${BASE:-roberta-large}
SEEDS=${SEEDS:-0 1 2 3 4}
RANKS=${RANKS:-4 8 12 16 20 25}
failed=0
dry=
case "${1:-}" in
    --dry) dry=yes ;;
    "") ;;
    *) echo "usage: $0 [--dry]  (settings: see $scripts/grid.sh)" >&2; exit 2 ;;
esac
if [ -z "$dry" ] && ! command -v "$LORAXS" >/dev/null; then
    echo "cannot find \`$LORAXS\`; build it with \`cargo build --release\` or set LORAXS" >&2
    exit 1
fi

# run FOLDER RECIPE [ARGUMENT]...: one training, unless it is finished; fails if the training fails.
run() {
    local folder=$1 recipe=$2 command code=0
    shift 2
    if [ -s "$folder/results.json" ]; then return 0; fi
    read -ra more <<<"${ARGS:-}"
    command=("$LORAXS" train --recipe "$recipe" --out "$folder" --set "model.name=$BASE" "$@" "${more[@]}")
    if [ -d "$folder" ]; then command+=(--resume); fi
    if [ -n "$dry" ]; then printf '%q ' "${command[@]}"; echo; return 0; fi
    echo "== $folder" >&2
    "${command[@]}" &
    child=$!
    # A grid that is told to stop tells its training, and waits until that has written its checkpoint.
    trap 'kill -TERM "$child" 2>/dev/null || true' INT TERM
    wait "$child" || code=$?
    while kill -0 "$child" 2>/dev/null; do code=0; wait "$child" || code=$?; done
    trap - INT TERM
    if [ "$code" -ge 128 ]; then exit "$code"; fi # interrupted: stop the whole grid
    if [ "$code" -ne 0 ]; then failed=$((failed + 1)); fi
    return "$code"
}

# grid RANK [ARGUMENT]...: all tasks, pairs of learning rates and seeds at one rank.
grid() {
    local rank=$1 task lr head seed
    shift
    for task in $TASKS; do for lr in $LRS; do for head in $HEAD_LRS; do for seed in $SEEDS; do
        run "$OUT/$task/rank-$rank-lr-$lr-head-$head-seed-$seed" "glue-$task" --set "adapter.rank=$rank" \
            --set "train.learning_rate=$lr" --set "train.head_learning_rate=$head" --set "train.seed=$seed" "$@" || true
    done; done; done; done
}

# finish: the table of medians over seeds; fails if a training failed.
finish() {
    if [ -n "$dry" ]; then return 0; fi
    python3 "$scripts/medians.py" "$OUT"
    if [ "$failed" -ne 0 ]; then echo "$failed runs failed" >&2; exit 1; fi
}
