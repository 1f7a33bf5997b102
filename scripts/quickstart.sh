#!/usr/bin/env bash
# Installs libtorch, builds loraxs, trains LoRA-XS on `quickstart/base`, scores it and merges it.
#
#   scripts/quickstart.sh            a minute of training, after set-up and build
#   scripts/quickstart.sh --fresh    deletes runs/quickstart and trains again
#
# Finished parts are skipped and interrupted ones resumed, so later runs take seconds. LORAXS names a binary to use
# instead of building one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
runs=runs/quickstart
case "${1:-}" in
    "") ;;
    --fresh) rm -rf "$runs" ;;
    *) echo "usage: $0 [--fresh]" >&2; exit 2 ;;
esac

say() { printf '\n== %s\n' "$*" >&2; }
call() {
    set -- "$@" --datasets quickstart/datasets.toml
    printf '$ loraxs %s\n' "$*" >&2
    "$LORAXS" "$@"
}

if [ -z "${LORAXS:-}" ]; then
    say "set-up and build"
    scripts/setup.sh
    cargo build --release --locked --quiet
    LORAXS=${CARGO_TARGET_DIR:-target}/release/loraxs
fi

say "before training"
call train --recipe quickstart --out $runs/untrained --resume --quiet --set data.limit=32 --set train.epochs=1 \
    --set train.learning_rate=0 --set train.head_learning_rate=0 >/dev/null

say "the head alone"
call train --recipe quickstart --out $runs/head --resume --quiet --set adapter.method=head >/dev/null

say "LoRA-XS"
call train --recipe quickstart --out $runs/lora-xs --resume
call eval --run $runs/lora-xs

say "merged"
[ -f $runs/merged/config.json ] || call merge --run $runs/lora-xs --out $runs/merged
call eval --model $runs/merged --task quickstart/city --out $runs/merged-eval --quiet

say "held-out accuracy"
python3 - "$runs" <<'PY'
import json
import sys

def read(path):
    with open(f"{sys.argv[1]}/{path}/results.json") as file:
        return json.load(file)

def trained(run):
    count = read(run)["parameters"]
    return f"trained: adapter {count['adapter']:,}, head {count['head']:,}"

def scored(run):
    (result,) = read(run).values()
    return result["metrics"]["accuracy"]["value"]

rows = [
    ("before training", "", read("untrained")["last"]["metrics"]["accuracy"]),
    ("head alone", trained("head"), read("head")["best"]["metrics"]["accuracy"]),
    ("LoRA-XS", trained("lora-xs"), scored("lora-xs/eval")),
    ("LoRA-XS, merged", "", scored("merged-eval")),
]
for name, numbers, accuracy in rows:
    print(f"{name:<16}  {accuracy:7.1%}   {numbers}".rstrip())
print(f"LoRA-XS trained for {read('lora-xs')['train_seconds']:.0f} s")
PY
