#!/usr/bin/env python3
"""Make `presets/data/digits` from scikit-learn's wheel: the digits data set as IDX files.

Usage: digits.py WHEEL [FOLDER]

WHEEL comes from `pip download --no-deps scikit-learn`; only `digits.csv.gz` is read from it. Each
of its 1,797 lines holds 64 values of 0 to 16, row by row, and the digit. Values become
round(v * 255 / 16), and a pinned shuffle, spelled out here, puts 1,437 images into the training
files and the other 360 into the test files, in the shuffled order. The gzip headers carry neither
time nor name, so the same zlib gives the same bytes; the SHA-256 of what is inside is printed.
"""
import gzip
import hashlib
import pathlib
import struct
import sys
import zipfile
import zlib

SOURCE = "sklearn/datasets/data/digits.csv.gz"
TOTAL, TRAIN = 1797, 1437
SEED = 0
MASK = (1 << 64) - 1


def splitmix64(state):
    """The SplitMix64 generator (Steele, Lea and Flood 2014)."""
    while True:
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        yield z ^ (z >> 31)


def shuffled(count):
    """0..count in the order of a Fisher-Yates shuffle driven by SplitMix64."""
    order, random = list(range(count)), splitmix64(SEED)
    for i in range(count - 1, 0, -1):
        j = next(random) * (i + 1) >> 64
        order[i], order[j] = order[j], order[i]
    return order


def records(wheel):
    """(pixels, digit) of every line, checked."""
    with zipfile.ZipFile(wheel) as archive:
        lines = gzip.decompress(archive.read(SOURCE)).decode().split()
    rows = [[int(value) for value in line.split(",")] for line in lines]
    if len(rows) != TOTAL or any(len(r) != 65 or not 0 <= min(r) <= max(r[:64]) <= 16 or r[64] > 9 for r in rows):
        sys.exit(f"digits: {SOURCE} in {wheel} is not the {TOTAL} lines of 64 values and a digit that it should be")
    # The one half, 127.5 at v = 8, becomes 128 under round()'s half-to-even and the schoolbook's rule alike.
    return [(bytes(round(v * 255 / 16) for v in row[:64]), row[64]) for row in rows]


def write(file, dims, data):
    """One gzip-compressed IDX file of unsigned bytes."""
    raw = struct.pack(f">HBB{len(dims)}I", 0, 8, len(dims), *dims) + data
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    header = b"\x1f\x8b\x08\0\0\0\0\0\x02\xff"  # no flags, no time, best compression, unknown system
    tail = struct.pack("<II", zlib.crc32(raw), len(raw))
    file.write_bytes(header + packer.compress(raw) + packer.flush() + tail)
    print(f"{hashlib.sha256(raw).hexdigest()}  {file.name[:-3]}")


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    default = pathlib.Path(__file__).resolve().parent.parent / "presets/data/digits"
    folder = pathlib.Path(sys.argv[2]) if len(sys.argv) == 3 else default
    folder.mkdir(parents=True, exist_ok=True)
    rows = records(sys.argv[1])
    order = shuffled(TOTAL)
    for prefix, part in (("train", order[:TRAIN]), ("t10k", order[TRAIN:])):
        images = b"".join(rows[i][0] for i in part)
        write(folder / f"{prefix}-images-idx3-ubyte.gz", [len(part), 8, 8], images)
        write(folder / f"{prefix}-labels-idx1-ubyte.gz", [len(part)], bytes(rows[i][1] for i in part))


if __name__ == "__main__":
    main()
