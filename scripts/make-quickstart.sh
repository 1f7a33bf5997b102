#!/usr/bin/env bash
# Rebuilds `quickstart/`: the stories, and the base, which loraxs pretrains with the method `full`.
#
#   scripts/make-quickstart.sh [arguments of every loraxs call, such as --threads 1]
#
# Takes about 5 minutes and works in runs/make-quickstart. LORAXS names a binary to use instead of building one. The
# stories are the same bytes on every machine; the base only with the same number of threads on the same kind of CPU,
# because the order of sums affects rounding.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
work=runs/make-quickstart

if [ -z "${LORAXS:-}" ]; then
    scripts/setup.sh
    cargo build --release --locked --quiet
    LORAXS=${CARGO_TARGET_DIR:-target}/release/loraxs
fi
rm -rf "$work"
python3 scripts/make-quickstart.py data quickstart/city
python3 scripts/make-quickstart.py start $work
"$LORAXS" train --recipe quickstart-pretrain --datasets quickstart/datasets.toml --out $work/run "$@"
"$LORAXS" merge --run $work/run --out $work/merged "$@"
python3 scripts/make-quickstart.py trunk $work/merged quickstart/base
