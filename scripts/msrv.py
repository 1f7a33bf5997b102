"""Checks `rust-version` of Cargo.toml: no crate that loraxs is built from needs a newer Rust, and the documentation names it.

    python3 scripts/msrv.py

Clippy's `incompatible_msrv` checks the functions of the standard library that loraxs calls.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def number(version):
    return tuple(map(int, (version + ".0.0").split(".")[:3]))


metadata = json.loads(subprocess.check_output(["cargo", "metadata", "--locked", "--format-version", "1"], cwd=ROOT))
packages = {package["id"]: package for package in metadata["packages"]}
own = packages[metadata["resolve"]["root"]]["rust_version"]
newer = [
    f"{package['name']} {package['version']} needs Rust {package['rust_version']}"
    for package in packages.values()
    if package["rust_version"] and number(package["rust_version"]) > number(own)
]
silent = [name for name in ("README.md", "CONTRIBUTING.md") if f"{own} or later" not in (ROOT / name).read_text()]
if newer or silent:
    sys.exit("\n".join([*newer, *(f"{name} does not say `{own} or later`" for name in silent)]))
print(f"Rust {own}: enough for all of {len(packages)} crates")
