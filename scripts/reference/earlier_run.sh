#!/usr/bin/env bash
# Run folders as an earlier release of loraxs wrote them: half of a training, with the adapter that it then ended with.
# usage: scripts/reference/earlier_run.sh BINARY OUT
set -euo pipefail
binary=$(realpath "$1") out=$(realpath -m "$2") fixtures=$(realpath "$(dirname "$0")/../../tests/it/fixtures/encoders")
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
commit=0123456789abcdef0123456789abcdef01234567
model=hub/hub/models--owner--tiny
mkdir -p $model/snapshots $model/refs
cp -r "$fixtures/bert-gelu" $model/snapshots/$commit
printf %s $commit >$model/refs/main
export HF_HOME=$place/hub HF_HUB_OFFLINE=1 LORAXS_CACHE=$place/cache
for method in lora-xs tiny-lora vera; do
    sets=(adapter.method=$method adapter.rank=4 train.max_steps=8 train.checkpoint_every=4 train.keep_checkpoints=2 eval.every=4)
    [ $method = tiny-lora ] && sets+=(adapter.u=5 adapter.tie=2 adapter.tying=kind)
    printf '[model]\nname = "owner/tiny"\n[data]\ndataset = "tiny/pairs"\nmax_length = 24\n[train]\nbatch_size = 8\nlog_every = 1\n' >recipe.toml
    "$binary" train --recipe recipe.toml --datasets "$fixtures/data/datasets.toml" --out $method --threads 1 --device cpu -q \
        "${sets[@]/#/--set=}"
    mkdir -p "$out"
    rm -rf "${out:?}/$method"
    cp -r $method "$out/$method"
    # It stopped after step 4; the adapter stays for comparison.
    mv "$out/$method/adapter" "$out/$method/ended"
    rm -rf "$out/$method"/{results.json,.lock,events*,checkpoints/*8}
done
