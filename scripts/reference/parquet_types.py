#!/usr/bin/env python3
"""Writes a Parquet file with a column of each type, and what Python prints of its values.

    python scripts/reference/parquet_types.py tests/it/fixtures/rows

`null` in `types.json` marks values without a text: nulls, bytes, lists of several, objects, and NaN.
Needs: pyarrow 26.0, pandas 3.1, numpy.
"""

import argparse
import datetime
import decimal
import json
import math
from pathlib import Path

import numpy
import pyarrow as pa
import pyarrow.parquet

UTC = datetime.timezone.utc


def columns():
    number, day = decimal.Decimal, datetime.date(2020, 1, 2)
    moment = datetime.datetime(2020, 1, 2, 3, 4, 5, 123000)
    return {
        "timestamp_s": pa.array([datetime.datetime(1969, 12, 31, 23, 59, 58)] * 2, pa.timestamp("s")),
        "timestamp_ms": pa.array([moment, datetime.datetime.min], pa.timestamp("ms")),
        "timestamp_us": pa.array([moment.replace(microsecond=7), None], pa.timestamp("us")),
        "timestamp_utc": pa.array([moment.replace(tzinfo=UTC)] * 2, pa.timestamp("us", tz="UTC")),
        "timestamp_ns": pa.array([1577934245123456789, 1577934245123456000], pa.timestamp("ns")),
        "timestamp_whole_ns": pa.array([-1_000_000_000, 0], pa.timestamp("ns")),
        "date": pa.array([day, datetime.date(1, 1, 1)], pa.date32()),
        "time_ms": pa.array([datetime.time(23, 59, 59, 6000), datetime.time(0)], pa.time32("ms")),
        "time_us": pa.array([datetime.time(3, 4, 5, 6), None], pa.time64("us")),
        "time_ns": pa.array([11_045_000_001_000, 0], pa.time64("ns")),
        "decimal": pa.array([number("1.50"), number("-0.07")], pa.decimal128(5, 2)),
        "decimal_small": pa.array([number("0.0000001"), number("0.0000000")], pa.decimal128(20, 7)),
        "decimal_small_digits": pa.array([number("-0.00000123"), number("0.00123000")], pa.decimal128(20, 8)),
        "decimal_whole": pa.array([number(42), number(0)], pa.decimal128(38, 0)),
        "decimal_large": pa.array([number("-123456789012345678901234567890123456789012345.5"), None], pa.decimal256(60, 1)),
        "decimal_int32": pa.array([number("-1.5"), number("0.0")], pa.decimal32(5, 1)),
        "uint64": pa.array([2**64 - 1, 0], pa.uint64()),
        "int64": pa.array([-(2**63), 2**63 - 1]),
        "uint8": pa.array([200, 0], pa.uint8()),
        "int8": pa.array([-3, 127], pa.int8()),
        "float16": pa.array([numpy.float16(3.8), numpy.float16(-0.0)], pa.float16()),
        "float32": pa.array([3.8, 1e-5], pa.float32()),
        "float64": pa.array([1e16, 0.1], pa.float64()),
        "bool": pa.array([True, False]),
        "text": pa.array(["é\0", ""]),
        "large_text": pa.array(["large", None], pa.large_string()),
        "text_view": pa.array(["seen", "NaN"], pa.string_view()),
        "dictionary": pa.array(["x", "y"]).dictionary_encode(),
        "nan32": pa.array([math.nan, math.inf], pa.float32()),
        "nan64": pa.array([math.nan, -math.inf], pa.float64()),
        "null": pa.array([None, None]),
        "bytes": pa.array([b"\xff\xfe", None], pa.binary()),
        "list": pa.array([[1, 2], []]),
        "list_of_nan": pa.array([[math.nan], [math.nan, 1.0]]),
        "list_of_times": pa.array([[moment], None], pa.list_(pa.timestamp("ns"))),
        "object": pa.array([{"a": 1}, {"a": 2}]),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    path = out / "types.parquet"
    pa.parquet.write_table(pa.table(columns()), path)
    rows = pa.parquet.read_table(path).to_pylist()

    def printed(value):
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        is_text = not isinstance(value, (type(None), bytes, list, dict))
        return str(value) if is_text and not (isinstance(value, float) and not math.isfinite(value)) else None

    expected = {name: [printed(row[name]) for row in rows] for name in rows[0]}
    (out / "types.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
