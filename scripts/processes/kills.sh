#!/usr/bin/env bash
# Kills a random one of three processes at random moments, and goes on: the adapter must be the one of a training that was never killed.
#
#   scripts/processes/kills.sh [KILLS]           [default: 50, about ten minutes]
#
#   LORAXS    the binary [default: target/release/loraxs]
#   SEED      of the moments [default: 1]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
LORAXS=$(realpath "${LORAXS:-target/release/loraxs}")
kills=${1:-50} size=3 port=$((16000 + $$ % 8000)) pids=()
RANDOM=${SEED:-1}
work=$(mktemp -d)
export LORAXS_CACHE=$work/cache
clean() { kill -KILL "${pids[@]}" 2>/dev/null || true; rm -rf "$work"; }
trap clean EXIT
trap 'echo "FAILED at line $LINENO"' ERR

start() {
    local out=$1 rank
    pids=()
    port=$((port + 1))
    for rank in $(seq 0 $((size - 1))); do
        RANK=$rank LOCAL_RANK=$rank WORLD_SIZE=$size MASTER_ADDR=127.0.0.1 MASTER_PORT=$port "$LORAXS" train --recipe quickstart \
            --datasets quickstart/datasets.toml --threads 1 --device cpu --timeout 20 --set train.max_steps=150 --set train.batch_size=4 \
            --set train.checkpoint_every=7 --set train.log_every=1 --set eval.every=30 --set data.eval_limit=40 --out "$work/$out" --resume \
            > "$work/$rank.log" 2>&1 &
        pids+=($!)
    done
}
fail() { echo "FAILED: $*"; tail -n 5 "$work"/?.log; exit 1; }
now() { date +%s%3N; }

since=$(now)
start whole
for pid in "${pids[@]}"; do wait "$pid"; done
whole=$(($(now) - since))
echo "uninterrupted: $whole ms"

killed=0 finished=0 slowest=0
while [ $killed -lt "$kills" ]; do
    start run
    victim=$((RANDOM % size)) delay=$(((RANDOM * 32768 + RANDOM) % (whole * 11 / 10)))
    sleep $((delay / 1000)).$(printf %03d $((delay % 1000)))
    step=$(tail -n 1 "$work/run/metrics.jsonl" 2>/dev/null | sed -n 's/.*"step": *\([0-9]*\).*/\1/p') || step=0
    kill -KILL "${pids[victim]}" 2>/dev/null || true
    since=$(now) codes=()
    for pid in "${pids[@]}"; do code=0; wait "$pid" 2>/dev/null || code=$?; codes+=("$code"); done
    took=$(($(now) - since))
    case "${codes[*]}" in
        *137*)
            killed=$((killed + 1))
            [ $took -le $slowest ] || slowest=$took
            said=
            for rank in $(seq 0 $((size - 1))); do
                [ "$rank" -ne $victim ] || continue
                # 0: it had done all of its work.
                case ${codes[rank]} in 0) continue ;; 75) ;; *) fail "rank $rank ended with ${codes[rank]}" ;; esac
                [ "$(grep -c '^error' "$work/$rank.log")" -eq 1 ] || fail "rank $rank did not say one thing"
                grep -q "^error.*rank $victim" "$work/$rank.log" || fail "rank $rank did not name rank $victim"
                said=$(grep '^error' "$work/$rank.log")
            done
            echo "$killed: rank $victim killed after $delay ms, step $step; codes ${codes[*]} after $took ms; $said" ;;
        "0 0 0") ;;
        *) fail "exit codes ${codes[*]}" ;;
    esac
    if [ "${codes[*]}" = "0 0 0" ]; then
        cmp "$work/whole/adapter/adapter_model.safetensors" "$work/run/adapter/adapter_model.safetensors" || fail "another adapter"
        finished=$((finished + 1))
        rm -rf "$work/run" "$work/cache"
    fi
done
start run
for pid in "${pids[@]}"; do wait "$pid" || fail "the last start"; done
cmp "$work/whole/adapter/adapter_model.safetensors" "$work/run/adapter/adapter_model.safetensors" || fail "another adapter"
echo "$killed kills, $((finished + 1)) trainings came to their ends with the adapter of the uninterrupted one; all ended within $slowest ms of a kill"
