#!/usr/bin/env python3
"""Times anybit's joint step against plain PyTorch's, in turn in one run, and prints their ratio.

  python bench/compare.py [--rounds 3] [--python PYTHON] [-- ARGS of both benches]

Both sides print one JSON line a round (anyprec_torch.py bench, anybit-worker bench); the last
line is the ratio of the medians. Default arguments: CNN-8, expand 2, batch 128, float32.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--python", default=sys.executable, help="a Python with torch==2.11.0 and numpy")
    p.add_argument("args", nargs="*", help="arguments for both benches, after --")
    a = p.parse_args()
    same = a.args or ["--model", "cnn8", "--expand", "2", "--size", "40", "--batch", "128", "--threads", "2", "--steps", "10", "--warmup", "2"]
    sides = {
        "anybit": [str(ROOT / "target/release/anybit-worker"), "bench", *same],
        "pytorch": [a.python, str(ROOT / "bench/anyprec_torch.py"), "bench", "--channels-last", *same],
    }
    speed = {side: [] for side in sides}
    for _ in range(a.rounds):
        for side, command in sides.items():
            line = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip().splitlines()[-1]
            print(line, flush=True)
            speed[side].append(json.loads(line)["images_per_second"])
    median = {side: statistics.median(values) for side, values in speed.items()}
    print(json.dumps({"images_per_second": median, "anybit_over_pytorch": round(median["anybit"] / median["pytorch"], 3)}))


if __name__ == "__main__":
    main()
