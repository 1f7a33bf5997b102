#!/usr/bin/env bash
# Prints the tables of sizes in docs/methods.md, by `loraxs train --dry-run`.
#
#   scripts/methods-sizes.sh FOLDER...      each with a config.json; weights are not needed
#
#   LORAXS    the binary
set -euo pipefail
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
LORAXS=${LORAXS:-$scripts/../target/release/loraxs}
if [ $# -eq 0 ]; then echo "usage: $0 FOLDER..." >&2; exit 2; fi

# size FOLDER NAME METHOD [KEY=VALUE]...: a row of the table.
size() {
    local folder=$1 name=$2 set sets=(--set "adapter.method=$3") text
    shift 3
    for set in "$@"; do sets+=(--set "$set"); done
    text=$("$LORAXS" train --recipe compare-methods --dry-run --set "model.name=$folder" "${sets[@]}" --device cpu)
    awk -v name="$name" '/adapted layers/ {layers = $NF} /trainable parameters/ {trained = $NF} /bytes of/ {bytes = $NF}
        END {print "| " name " | " layers " | " trained " | " bytes " |"}' <<<"$text"
}

for folder in "$@"; do
    printf '%s\n\n| method | layers | trainable parameters | bytes |\n|---|---|---|---|\n' "$(basename "$folder")"
    for rank in 4 16 64; do size "$folder" "LoRA-XS, rank $rank" lora-xs "adapter.rank=$rank"; done
    for rank in 1 8 64; do size "$folder" "LoRA, rank $rank" lora "adapter.rank=$rank"; done
    size "$folder" "VeRA, rank 256, pair in the file" vera
    size "$folder" "VeRA, rank 256, pair drawn again" vera adapter.save_projection=false
    size "$folder" "LoRA-Mini, a = b = 32, rank 8" lora-mini
    size "$folder" "TinyLoRA, u = 64, each layer its own" tiny-lora
    size "$folder" "TinyLoRA, u = 13, all tied" tiny-lora adapter.u=13 adapter.tie=0
    echo
done
