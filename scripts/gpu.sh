#!/usr/bin/env bash
# Tests and measures loraxs on a GPU.
#
#   scripts/gpu.sh --data DIR --encoder-tokenizer DIR --decoder-tokenizer DIR [OPTION]...
#
# Options go to scripts/reference/gpu.py, which measures:
#   --data DIR                folder with glue, gsm8k and metamath
#   --encoder-tokenizer DIR   folder of a BERT tokenizer with 30,522 words
#   --decoder-tokenizer DIR   folder of a decoder's tokenizer
#   --peer FILE               the peer's script; without one, the parts that end in _peer are left out
#   --parts A,B               of the parts below                          [default: all]
#   --tasks A,B               of glue: sst2, mrpc                         [default: both]
#   --precisions A,B          of glue: fp32, tf32, bf16                   [default: all]
#   --budgets N,N             of lm: tokens of a micro-batch              [default: 8192]
#   --lm-steps N              of lm                                       [default: 12]
#   --slots N:N,N:N           of generate: prompts and slots of each run  [default: 256:256,64:64]
#   --new-tokens N            of generate                                 [default: 128]
#   --place DIR               for checkpoints and runs, 20 GB             [default: /tmp/loraxs-gpu]
#   --device DEVICE           [default: cuda:0]
#   --tiny --device cpu --standin "$(scripts/standin.sh --library)"       rehearses without a GPU
#
# Variables:
#   OUT                   folder for results and logs                                   [default: gpu-out]
#   PYTHON                a Python with PyTorch 2.11, which brings the CUDA libraries   [default: python3]
#   LORAXS                the built command                                             [default: target/release/loraxs]
#   LORAXS_TESTS          the built integration tests (target/release/deps/it-…); those that compute run on the GPU first
#   LORAXS_TEST_FILTERS   selects among them
#   LORAXS_TEST_LIMIT     seconds that they may take                                    [default: 150]
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
for argument in "$@"; do
    case $argument in -h | --help)
        sed -n '2,/^set /s/^# \{0,1\}//p' scripts/gpu.sh
        sed -n 's/^PARTS = \[\(.*\)\]$/\nParts: \1; only where it is named: generate_plain/p' scripts/reference/gpu.py | tr -d '"'
        exit 0
        ;;
    esac
done
python=${PYTHON:-python3}
loraxs=${LORAXS:-target/release/loraxs}
out=${OUT:-gpu-out}

if ! torch=$("$python" -c 'import importlib.util as u; print(u.find_spec("torch").submodule_search_locations[0])' 2>/dev/null); then
    printf 'gpu: error: `%s` has no PyTorch\nhint: name one that has by PYTHON\n' "$python" >&2
    exit 1
fi
mkdir -p "$out"
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
