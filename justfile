# Each recipe is what CI runs, or what helps to make it pass. `just` comes with `pip install rust-just`.

[private]
default:
    @just --list --unsorted

# Install libtorch where it is missing and tell cargo where it is
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

# Run clippy; every warning is an error
lint:
    cargo clippy --release --locked --all-targets -- -D warnings

# Build the documentation, private items too; every warning is an error
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --release --locked --no-deps --document-private-items

# Build, train, score and merge the example of the README
quickstart:
    scripts/quickstart.sh

# Run the tests, or some: `just test --test it -- tidy::`
test *arguments:
    scripts/test.sh {{ arguments }}

# Run the tests that concern devices on a stand-in for a GPU
standin *filters:
    scripts/standin.sh {{ filters }}

# Try inputs changed at random, for so many minutes
fuzz minutes="30":
    scripts/fuzz.sh {{ minutes }}

# Run all that CI runs, in its order
ci:
    .ci/run
