#!/usr/bin/env bash
# Sets up libtorch where it is missing and runs every test.
#
#   scripts/test.sh [arguments of cargo test]
#
# Tests over real data run where LORAXS_TEST_DATA names a folder with it, those with SmolLM2-135M-Instruct where
# LORAXS_TEST_MODELS names its folder or one that holds it; both are skipped by name elsewhere. Of the inputs changed at
# random (tests/it/fuzz) 500 are tried, and 5,000 where LORAXS_FUZZ is set, as in CI.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh
# Some tests wait, for a server, a killed run or each other: four more than cores keep the cores busy.
export RUST_TEST_THREADS=${RUST_TEST_THREADS:-$(($(nproc) + 4))}
# Release, as the binary is built: libtorch's bindings take minutes to compile, so one profile serves everything.
exec cargo test --release --locked "$@"
