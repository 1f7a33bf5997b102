# The steps of CI, and commands for development. Install `just` with `pip install rust-just`.

[private]
default:
    @just --list --unsorted

# Install libtorch if it is missing, and tell cargo where it is
set-up *options:
    scripts/setup.sh {{ options }}

# Format the code
fmt:
    cargo fmt

# Check the format
fmt-check:
    cargo fmt --check

# Check the spelling
typos:
    typos

# Check licences, sources and versions of the dependencies
deny:
    cargo deny --locked check --hide-inclusion-graph bans licenses sources

# Check that the oldest supported Rust is enough for the dependencies
msrv:
    python3 scripts/msrv.py

# Run clippy; every warning is an error
lint:
    cargo clippy --release --locked --all-targets -- -D warnings

# Build the documentation, private items too; every warning is an error
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --release --locked --no-deps --document-private-items

# Build, train, score and merge the README's example
quickstart:
    scripts/quickstart.sh

# Run all tests, or some: `just test --test it -- tidy::`
test *arguments:
    scripts/test.sh {{ arguments }}

# Run the tests that concern devices on a stand-in for a GPU
standin *filters:
    scripts/standin.sh {{ filters }}

# Fuzz the command for this many minutes
fuzz minutes="30":
    scripts/fuzz.sh {{ minutes }}

# Time a training step and a decoding step
bench *arguments:
    cargo bench --locked --bench steps {{ arguments }}

# Pack the binary with its libtorch into an archive that runs anywhere
release:
    scripts/release.sh

# Run the steps of CI in order
ci:
    .ci/run
