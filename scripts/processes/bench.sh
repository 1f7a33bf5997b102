#!/usr/bin/env bash
# Times a step of two processes with one thread each against one process with two threads, and the share of a step that the sum takes.
#
#   scripts/processes/bench.sh ENCODER DECODER [STEPS]      folders of an encoder and of a language model [default: 40 and 12 steps]
#
#   LORAXS    the binary [default: target/release/loraxs]
#
# On an idle machine with two cores. Each is run three times, turn by turn; the table has medians. A sum waits for the slower process: the one
# that waits least tells what the sum itself takes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
LORAXS=$(realpath "${LORAXS:-target/release/loraxs}")
if [ $# -lt 2 ]; then echo "usage: $0 ENCODER DECODER [STEPS]" >&2; exit 2; fi
encoder=$(realpath "$1") decoder=$(realpath "$2") steps=${3:-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Stories of the quick start, as pairs of a text and a class, and as questions.
cat > "$work/datasets.toml" <<EOF
["stories"]
task = "classification"
files = { train = "$PWD/quickstart/city/train.jsonl", validation = "$PWD/quickstart/city/validation.jsonl" }
text = ["story"]
label = "city"
labels  = ["Paris", "Rome", "Oslo", "Cairo", "Lima", "Delhi", "Tokyo", "Boston"]
metrics = ["accuracy"]
["questions"]
task = "instruction"
files = { train = "$PWD/quickstart/city/train.jsonl" }
prompt = "{story} "
response = "{city}"
EOF
# recipe NAME MODEL DATASET STEPS BATCH RANK
recipe() {
    cat > "$work/$1.toml" <<EOF
[model]
name = "$2"
[adapter]
rank = $6
alpha = 16.0
dropout = 0.05
[data]
dataset = "$3"
max_length = 128
[train]
max_steps = ${steps:-$4}
batch_size = $5
log_every = 1
checkpoint_every = "never"
[eval]
every = "never"
EOF
}
recipe encoder "$encoder" stories 40 32 16
recipe decoder "$decoder" questions 12 16 16

# median FILE: of the numbers of a file.
median() { sort -g "$1" | awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }

# once RECIPE PROCESSES: appends seconds a step and seconds in the sum of a step.
once() {
    local out=$work/run
    rm -rf "$out"
    LORAXS_CACHE=$work/cache "$LORAXS" train --recipe "$work/$1.toml" --datasets "$work/datasets.toml" --device cpu --threads $((2 / $2)) \
        --processes "$2" --out "$out" -v > "$work/log" 2>&1 || { tail -n 5 "$work/log" >&2; exit 1; }
    /usr/bin/env awk -v steps="$(wc -l < "$out/metrics.jsonl")" 'match($0, /"train_seconds": *[0-9.]+/) {
        text = substr($0, RSTART, RLENGTH); sub(/.*: */, "", text); print text / steps }' "$out/results.json" >> "$work/$1.$2.step"
    # With one process there is none.
    sed -n 's/.*sums took \([0-9.]*\) s.*/\1/p' "$work/log" | sort -g | awk -v steps="$(wc -l < "$out/metrics.jsonl")" -v files="$work/$1.$2.sum" '
        { print $1 / steps >> (files (NR == 1 ? ".least" : ".most")) }'
}

echo "| | 1 process, 2 threads, s a step | 2 processes, 1 thread each, s a step | ratio | ms in the sum: least, most | share of a step |"
echo "|---|---|---|---|---|---|"
for name in encoder decoder; do
    # The basis comes from the cache from here on.
    once $name 1
    rm "$work/$name".1.step
    for _ in 1 2 3; do once $name 1; once $name 2; done
    one=$(median "$work/$name.1.step") two=$(median "$work/$name.2.step") least=$(median "$work/$name.2.sum.least")
    most=$(median "$work/$name.2.sum.most")
    awk -v name="$name" -v one="$one" -v two="$two" -v least="$least" -v most="$most" 'BEGIN {
        printf "| %s | %.3f | %.3f | %.2f | %.2f, %.2f | %.1f %%, %.1f %% |\n", name, one, two, two / one, 1e3 * least, 1e3 * most,
            100 * least / two, 100 * most / two }'
done
