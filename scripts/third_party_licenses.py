"""Prints the licences of the crates that are linked into loraxs, each text once, below the crates it belongs to.

    python3 scripts/third_party_licenses.py

Reads `cargo metadata` and the licence files of the crates' sources; needs no network after a build.
"""

import json
import subprocess
from collections import defaultdict
from pathlib import Path

PREFIXES = ("license", "licence", "copying", "notice", "unlicense", "copyright")


def linked(metadata):
    """The packages that the program is built from, without itself and what only its tests and build need."""
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    root = metadata["resolve"]["root"]
    seen, left = {root}, [root]
    while left:
        for dependency in nodes[left.pop()]["deps"]:
            normal = any(kind["kind"] is None for kind in dependency["dep_kinds"])
            if normal and dependency["pkg"] not in seen:
                seen.add(dependency["pkg"])
                left.append(dependency["pkg"])
    return sorted((packages[one] for one in seen - {root}), key=lambda package: (package["name"], package["version"]))


def texts(package):
    for path in sorted(Path(package["manifest_path"]).parent.iterdir()):
        if path.is_file() and path.name.lower().startswith(PREFIXES):
            yield path.read_text(encoding="utf-8", errors="replace").strip()


def main():
    host = next(line.split()[1] for line in subprocess.check_output(["rustc", "-vV"], text=True).splitlines() if line.startswith("host:"))
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", host]
    packages = linked(json.loads(subprocess.check_output(command)))
    for package in packages:
        print(f"{package['name']} {package['version']}: {package['license'] or 'see its text'}")
    owners, shown = defaultdict(list), {}
    for package in packages:
        for text in texts(package):
            key = " ".join(text.split())
            shown.setdefault(key, text)
            owners[key].append(f"{package['name']} {package['version']}")
    for key, text in shown.items():
        print(f"\n{'=' * 100}\n{', '.join(dict.fromkeys(owners[key]))}\n{'=' * 100}\n\n{text}")


main()
