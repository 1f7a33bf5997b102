"""Draws the terminal output of a command as an SVG, as the terminal shows it at the end.

    script -qec "stty cols 110; scripts/quickstart.sh --fresh" /dev/null \
        | python3 scripts/terminal_svg.py --from "== LoRA-XS" > docs/quickstart.svg

Understands what loraxs writes: colours, and the cursor movements of progress bars. Prints the rows from the first one
that begins with --from.
"""

import argparse
import re
import sys
from html import escape

COLUMNS = 110
COLOURS = {"1": "bold", "2": "dim", "31": "red", "32": "green", "33": "yellow", "34": "blue"}
STYLE = """
    rect { fill: #0d1117; }
    text { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; fill: #d1d7e0; white-space: pre; }
    .bold { font-weight: bold; fill: #f0f6fc; } .dim { fill: #9198a1; } .red { fill: #ff7b72; }
    .green { fill: #56d364; } .yellow { fill: #e3b341; } .blue { fill: #79c0ff; }"""
TOKEN = re.compile(r"\x1b\[([\d;?]*)([A-Za-z])|\x1b.|(.)", re.DOTALL)


def screen(text):
    """The rows of the terminal at the end: lists of (character, class)."""
    rows, row, column, style = [[]], 0, 0, ""
    for numbers, command, char in TOKEN.findall(text):
        count = int(numbers) if numbers.isdigit() else 1
        if command == "m":
            style = " ".join(COLOURS[n] for n in numbers.split(";") if n in COLOURS)
        elif command == "A":
            row = max(0, row - count)
        elif command == "B" or char == "\n":
            row += count if command else 1
        elif command == "K":
            rows[row] = [] if numbers == "2" else rows[row][:column]
        elif char == "\r":
            column = 0
        elif char and char >= " ":
            if column == COLUMNS:
                row, column = row + 1, 0
            while row >= len(rows):
                rows.append([])
            rows[row] += [(" ", "")] * (column + 1 - len(rows[row]))
            rows[row][column] = (char, style)
            column += 1
        while row >= len(rows):
            rows.append([])
    return rows


def spans(row):
    """A row as SVG, one `tspan` for each stretch of one class."""
    out, start = [], 0
    for end in range(1, len(row) + 1):
        if end == len(row) or row[end][1] != row[start][1]:
            text = escape("".join(char for char, _ in row[start:end]))
            style = row[start][1]
            out.append(f'<tspan class="{style}">{text}</tspan>' if style else text)
            start = end
    return "".join(out)


def plain(row):
    return "".join(char for char, _ in row).rstrip()


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--from", dest="start", default="")
options = parser.parse_args()

rows = screen(sys.stdin.buffer.read().decode("utf-8", "replace"))
first = next(index for index, row in enumerate(rows) if plain(row).startswith(options.start))
rows = rows[first:]
while rows and not plain(rows[-1]):
    rows.pop()
for row in rows:
    # Headings and commands of the script, which prints them without colours.
    if plain(row).startswith(("== ", "$ ")):
        row[:] = [(char, "bold" if plain(row).startswith("==") else "blue") for char, _ in row]

width, height = 20 + round(7.83 * COLUMNS), 24 + 18 * len(rows)
print(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">')
print(f"  <style>{STYLE}\n  </style>")
print('  <rect width="100%" height="100%" rx="8"/>')
for index, row in enumerate(rows):
    if plain(row):
        print(f'  <text x="10" y="{26 + 18 * index}" xml:space="preserve">{spans(row[: len(plain(row))])}</text>')
print("</svg>")
