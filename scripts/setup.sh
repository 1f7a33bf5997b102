#!/usr/bin/env bash
# Installs libtorch and writes its path to .cargo/config.toml, where `cargo build` and `cargo test` find it.
#
#   scripts/setup.sh           for CPUs: a 0.5 GB download, 1 GB on disk, in ~/.cache/loraxs
#   scripts/setup.sh --cuda    with NVIDIA's libraries, for GPUs: a 2.9 GB download
#
# An installed libtorch of the right version is used instead: $LIBTORCH, else the PyTorch of `python3`. Wheels are
# checked against the hashes in scripts/libtorch-*.txt. An interrupted install is started afresh; a finished one is
# found at once.
set -euo pipefail

version=2.11.0
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${LORAXS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/loraxs}
flavour=cpu

say() { printf 'setup: %s\n' "$*" >&2; }
die() { printf 'setup: error: %s\n' "$1" >&2; [ $# -lt 2 ] || printf 'hint: %s\n' "$2" >&2; exit 1; }

for argument in "$@"; do
    case $argument in
        --cuda) flavour=cuda ;;
        -h | --help) sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
        *) die "unknown argument \`$argument\`" 'the only one is `--cuda`' ;;
    esac
done

# Prints the version of the libtorch in folder $1, from a header that every distribution has.
version_of() {
    awk '/^#define TORCH_VERSION_(MAJOR|MINOR|PATCH) / { printf "%s%s", dot, $3; dot = "." }' \
        "$1/include/torch/headeronly/version.h" 2>/dev/null || true
}

# Succeeds if folder $1 is a complete libtorch of the right version (with --cuda, one with CUDA).
usable() {
    [ -f "$1/lib/libtorch_cpu.so" ] && [ -f "$1/lib/libc10.so" ] && [ "$(version_of "$1")" = "$version" ] || return 1
    [ "$flavour" = cpu ] || [ -f "$1/lib/libtorch_cuda.so" ]
}

# Prints the folder of `python3`'s PyTorch, without importing it.
python_torch() {
    python3 - <<'PY' 2>/dev/null
import importlib.util, os
spec = importlib.util.find_spec("torch")
if spec and spec.origin:
    print(os.path.dirname(spec.origin))
PY
}

# Installs the wheels into the cache. The finished folder appears by a single rename.
install_wheels() {
    local target=$1 arch partial platforms=() glibc
    arch=$(uname -m)
    case $arch in x86_64 | aarch64) ;; *) die "no libtorch wheel for $arch" "install libtorch $version and set LIBTORCH" ;; esac
    python3 -m pip --version >/dev/null 2>&1 || die "python3 has no pip" "apt-get install python3-pip"
    for glibc in 2_28 2_27 2_26 2_25 2_24 2_18 2_17; do platforms+=(--platform "manylinux_${glibc}_$arch"); done
    platforms+=(--platform "manylinux2014_$arch")
    mkdir -p "$cache"
    rm -rf "$cache"/partial.* "$cache"/partial-link.*
    partial=$(mktemp -d "$cache/partial.XXXXXX")
    trap 'rm -rf "$partial"' EXIT
    say "installing libtorch $version ($flavour) into $target"
    # One fixed wheel whatever the local Python: only headers and libraries are used, never the module.
    PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --no-deps --no-compile --only-binary=:all: --require-hashes \
        --python-version 3.12 --implementation cp --abi cp312 --abi abi3 --abi none "${platforms[@]}" \
        --target "$partial" -r "$root/scripts/libtorch-$flavour.txt" \
        || die "the wheels could not be installed" "check the network and the free disk, then run this again"
    [ "$flavour" = cuda ] || rm -f "$partial"/torch/lib/libtorch_cuda*.so "$partial"/torch/lib/libtorch_nvshmem.so
    usable "$partial/torch" || die "the installed wheel is not libtorch $version"
    rm -rf "$target"
    chmod 755 "$partial"
    mv "$partial" "$target"
    trap - EXIT
}

# Makes the folder that the build links against, and prints it. It names the CPU library alone; the CUDA one is loaded at
# run time if there is a GPU, so one binary serves both (src/torch/device.rs). The folder is in the cache, so that other
# checkouts share its path and do not compile libtorch's bindings again.
make_link_folder() {
    local torch=$1 folder partial
    folder=$cache/link-$version-$(printf '%s' "$torch" | cksum | cut -d ' ' -f 1)
    # An unchanged folder keeps its time stamps, so that cargo rebuilds nothing.
    if [ "$(cat "$folder/origin" 2>/dev/null)" != "$torch" ]; then
        mkdir -p "$cache"
        partial=$(mktemp -d "$cache/partial-link.XXXXXX")
        mkdir "$partial/lib"
        ln -s "$torch/include" "$partial/include"
        ln -s "$torch/lib/libtorch_cpu.so" "$torch/lib/libc10.so" "$partial/lib/"
        printf 'INPUT(libtorch_cpu.so)\n' >"$partial/lib/libtorch.so"
        printf '%s\n' "$version" >"$partial/build-version"
        printf '%s\n' "$torch" >"$partial/origin"
        chmod 755 "$partial"
        rm -rf "$folder"
        mv "$partial" "$folder"
    fi
    printf '%s\n' "$folder"
}

# Writes .cargo/config.toml, so that cargo needs no exported variables.
write_config() {
    local config=$root/.cargo/config.toml text
    text=$(printf '# Written by scripts/setup.sh.\n[env]\nLIBTORCH = { value = "%s", force = true }' "$1")
    [ "$(cat "$config" 2>/dev/null)" = "$text" ] && return
    mkdir -p "$root/.cargo"
    printf '%s\n' "$text" >"$config.partial"
    mv "$config.partial" "$config"
}

choose() {
    local found
    # Ignore our own link folder, which cargo exports as LIBTORCH to the programs it runs.
    if [ -n "${LIBTORCH:-}" ] && [ ! -f "$LIBTORCH/origin" ]; then
        usable "$LIBTORCH" || die "LIBTORCH=$LIBTORCH is not a libtorch $version ($flavour); found version '$(version_of "$LIBTORCH")'" \
            "unset LIBTORCH to install one, or point it at a folder with lib/ and include/"
        readlink -f "$LIBTORCH"
        return
    fi
    for found in "$cache/libtorch-$version-cuda/torch" "$cache/libtorch-$version-$flavour/torch" "$(python_torch)"; do
        if [ -n "$found" ] && usable "$found"; then printf '%s\n' "$found"; return; fi
    done
    install_wheels "$cache/libtorch-$version-$flavour" >&2
    printf '%s\n' "$cache/libtorch-$version-$flavour/torch"
}

command -v cargo >/dev/null || die "cargo is not installed" "see https://rustup.rs"
command -v c++ >/dev/null || die "no C++ compiler" "apt-get install g++"
command -v python3 >/dev/null || die "python3 is not installed" "apt-get install python3 python3-pip"
chosen=$(choose)
write_config "$(make_link_folder "$chosen")"
say "libtorch $version: $chosen"
