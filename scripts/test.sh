#!/usr/bin/env bash
# Installs libtorch if it is missing, and runs the tests.
#
#   scripts/test.sh [arguments of cargo test]
#
# Tests on real data need LORAXS_TEST_DATA, a folder with it; those on SmolLM2-135M-Instruct need LORAXS_TEST_MODELS, its
# folder or the one above. Without them, these tests print that they are skipped. The fuzzer (tests/it/fuzz) tries 500
# inputs, or 5,000 if LORAXS_FUZZ is set, as in CI.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh
# Some tests wait for a server, a killed run or each other: four more threads than cores keep the cores busy.
export RUST_TEST_THREADS=${RUST_TEST_THREADS:-$(($(nproc) + 4))}
# Release, like the binary: libtorch's bindings take minutes to compile, so there is one profile for everything.
exec cargo test --release --locked "$@"
