#!/usr/bin/env bash
# Answers to prompts as an earlier release of loraxs wrote them, interrupted after three of five.
# usage: scripts/reference/earlier_answers.sh BINARY OUT
set -euo pipefail
binary=$(realpath "$1") out=$(realpath -m "$2") fixtures=$(realpath "$(dirname "$0")/../../tests/it/fixtures")
mkdir -p "$out"
cd "$out"
for i in 1 2 3 4 5; do
    echo "{\"question\": \"What is $i + 2?\", \"answer\": \"It is #### $((i + 2))\"}"
done >sums.jsonl
cat >sums.toml <<END
[sums]
task = "generation"
dir = "."
files = { test = "sums.jsonl" }
prompt = "Question: {question}\\nAnswer:"
answer = "{answer}"
scorers = ["gsm8k/flexible"]
max_new_tokens = 8
stop = ["Question:"]
END
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
LORAXS_CACHE=$place HF_HUB_OFFLINE=1 "$binary" eval --model "$fixtures/decoders/llama-linear" --device cpu --threads 1 -q \
    --adapter "$fixtures/peft/llama-linear/lora" --task sums --datasets sums.toml --temperature 0.5 --top-k 20 --out "$place/out"
head -n 3 "$place/out/predictions/sums.jsonl" >answers.jsonl
cp "$place/out/predictions/sums.settings.json" settings.json
