#!/usr/bin/env bash
# Tests and measures loraxs on a GPU.
#
#   LORAXS=target/release/loraxs scripts/gpu.sh --data DIR --encoder-tokenizer DIR --decoder-tokenizer DIR [--peer peer.py]
#
# Arguments go to scripts/reference/gpu.py, which measures. The CUDA libraries come from the PyTorch 2.11 of `python3`
# (or of PYTHON). If LORAXS_TESTS names the built integration tests, those that compute run on the GPU first;
# LORAXS_TEST_FILTERS selects among them. To try it without a GPU, add
# `--tiny --device cpu --standin "$(scripts/standin.sh --library)"`.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
loraxs=${LORAXS:-target/release/loraxs}
out=${OUT:-gpu-out}
mkdir -p "$out"

torch=$("$python" -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0])') || exit 1
libraries=$torch/lib
for folder in "$torch"/../nvidia/*/lib; do libraries+=:$folder; done
export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}

failed=0
if [ -n "${LORAXS_TESTS:-}" ]; then
    export LORAXS_TEST_DEVICE=${LORAXS_TEST_DEVICE:-cuda:0} RUST_TEST_THREADS=${RUST_TEST_THREADS:-12}
    filters=${LORAXS_TEST_FILTERS:-devices:: contract:: parity:: decoders:: decoder_training:: training:: generation:: merge_decoders:: resume::}
    # shellcheck disable=SC2086 # several filters
    timeout "${LORAXS_TEST_LIMIT:-150}" "$LORAXS_TESTS" $filters >"$out/tests.log" 2>&1 || failed=1
    grep -E '^test result|FAILED|panicked' "$out/tests.log" | head -60
    # A base over two GPUs.
    if [ "$("$python" -c 'import torch; print(torch.cuda.device_count())')" -ge 2 ]; then
        LORAXS_TEST_DEVICE=cuda:0,cuda:1 timeout "${LORAXS_TEST_LIMIT:-150}" "$LORAXS_TESTS" divided:: doctor::a_sound contract:: \
            >"$out/tests-two.log" 2>&1 || failed=1
        grep -E '^test result|FAILED|panicked' "$out/tests-two.log" | head -60
    else
        echo "skipped: one GPU"
    fi
fi
"$python" scripts/reference/gpu.py --loraxs "$loraxs" --out "$out" "$@" || failed=1
exit "$failed"
