#!/usr/bin/env bash
# Runs tests on a stand-in for a GPU: our own libtorch_cuda, which computes on the CPU (tests/standin/standin.cpp).
#
#   scripts/standin.sh [FILTER]...               [default: all tests that concern devices]
#   scripts/standin.sh --library                 only builds the library, and prints the folder to put on LD_LIBRARY_PATH
#
# The library is cached in ~/.cache/loraxs (or LORAXS_CACHE), by its sources and libtorch; versions that nothing has called for in a day go
# when a new one is built. Without a C++ compiler the tests are skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh
cache=${LORAXS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/loraxs}
source=tests/standin/standin.cpp

compiler=${CXX:-$(command -v c++ || command -v g++ || command -v clang++ || true)}
if [ -z "$compiler" ]; then
    echo "skipped: the tests on the stand-in for a GPU need a C++ compiler" >&2
    exit 0
fi
libtorch=$(sed -n 's/^LIBTORCH = { value = "\([^"]*\)".*/\1/p' .cargo/config.toml)
real=$(cat "$libtorch/origin" 2>/dev/null || echo "$libtorch")
folder=$cache/standin-$(cat "$source" tests/standin/cuda_on_cpu.h "$libtorch/origin" 2>/dev/null | sha256sum | cut -c1-12)
if [ ! -f "$folder/libtorch_cuda.so" ]; then
    # Earlier versions; one that was called for within a day may still be in use.
    find "$cache" -maxdepth 1 -type d -name 'standin-*' -mmin +1440 -exec rm -rf {} + 2>/dev/null || true
    mkdir -p "$folder"
    rm -f "$folder"/partial.*
    "$compiler" -std=c++17 -O1 -fPIC -shared "-DSTANDIN_COMPILER=\"$compiler\"" -isystem "$libtorch/include" -isystem "$libtorch/include/torch/csrc/api/include" "$source" \
        -o "$folder/partial.$$" -L"$real/lib" -ltorch_cpu -lc10
    cp tests/standin/cuda_on_cpu.h "$folder"
    ln -sf libtorch_cuda.so "$folder/libcaffe2_nvrtc.so"
    mv "$folder/partial.$$" "$folder/libtorch_cuda.so"
fi
touch "$folder"
if [ "${1:-}" = --library ]; then
    echo "$folder"
    exit 0
fi

all=(standin:: own_kernels:: slots:: gpu_memory:: divided:: doctor:: devices:: contract:: parity:: decoders:: decoder_training:: training:: generation:: eval_generation:: merge_decoders::
    resume:: interchange:: heads:: svd:: cli_inputs::broken sweeps::a_run_of_a_group sweeps::on_a_gpu)
export LD_LIBRARY_PATH=$folder${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} LORAXS_TEST_DEVICE=cuda:0 LORAXS_STANDIN=1
export RUST_TEST_THREADS=${RUST_TEST_THREADS:-$(($(nproc) + 1))}
# Shows what tests print of counts, and everything if one fails.
run() {
    local log status=0
    log=$(mktemp)
    cargo test --release --locked --test it -- "$@" --show-output >"$log" 2>&1 || status=$?
    if [ "$status" = 0 ]; then grep -E '^test | launches|replays' "$log"; else cat "$log"; fi
    rm -f "$log"
    return "$status"
}
run "${@:-${all[@]}}"
if [ $# = 0 ]; then
    # Attention where there is no FlashAttention.
    STANDIN_TURING=1 run devices::attention
    # The same over both devices of the stand-in.
    export LORAXS_TEST_DEVICE=cuda:0,cuda:1
    run doctor::a_sound contract:: training::twenty decoder_training:: merge_decoders:: resume::a_run_killed_again
fi
