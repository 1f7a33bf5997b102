#!/usr/bin/env bash
# Goes on with inputs changed at random (tests/it/fuzz), with fresh seeds, for so many minutes, and prints a table by kind.
#
#   scripts/fuzz.sh [minutes, 30 without]
#
# LORAXS_FUZZ_SEED sets the first seed, LORAXS_FUZZ_KIND (names separated by commas) the kinds. What fails is printed with
# its seed and kept below the target folder. `LORAXS_FUZZ=1 scripts/test.sh fuzz::` tries the first seeds, as CI does: 5,000 inputs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export LORAXS_FUZZ_MINUTES=${1:-30}
exec scripts/test.sh --test it fuzz::long -- --ignored --nocapture
