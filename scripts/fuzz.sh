#!/usr/bin/env bash
# Fuzzes the command with randomly changed inputs (tests/it/fuzz) under fresh seeds, and prints a table by kind of input.
#
#   scripts/fuzz.sh [MINUTES]                [default: 30]
#
# LORAXS_FUZZ_SEED sets the first seed, LORAXS_FUZZ_KIND the kinds (separated by commas). Failing inputs are printed with
# their seed and kept in the target folder. `LORAXS_FUZZ=1 scripts/test.sh fuzz::` runs the first 5,000 seeds, as CI does.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export LORAXS_FUZZ_MINUTES=${1:-30}
exec scripts/test.sh --test it fuzz::long -- --ignored --nocapture
