#!/usr/bin/env bash
# Makes `quickstart/` again: the stories, and the base, pretrained by loraxs itself with the method `full`.
#
#   scripts/make-quickstart.sh    about MINUTES minutes on 2 cores; works in runs/make-quickstart
#
# The data come out the same anywhere. The base does so only with the same libtorch on the same kind of CPU,
# because sums are rounded in another order elsewhere.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
work=runs/make-quickstart
loraxs=${CARGO_TARGET_DIR:-target}/release/loraxs

scripts/setup.sh
cargo build --release --locked --quiet
rm -rf "$work"
python3 scripts/make-quickstart.py data quickstart/key
python3 scripts/make-quickstart.py start $work
"$loraxs" train --recipe quickstart-pretrain --datasets quickstart/datasets.toml --out $work/run
"$loraxs" merge --run $work/run --out $work/merged
python3 scripts/make-quickstart.py trunk $work/merged quickstart/base
