"""Time to open a folder of images: the first time (decode, build the cache) and again, each in a new process.

python -m benchmarks.images                     # 10,000 PNG files of 64 x 64
python -m benchmarks.images --count 10000 --side 256 --format jpg
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

OPEN = """
import sys, time
start = time.perf_counter()
from onestep_adapters.data import open_dataset
imported = time.perf_counter()
data = open_dataset("folder:" + sys.argv[1], size=32)
opened = time.perf_counter()
data.sample(64)
drawn = time.perf_counter()
print(f"import {imported - start:.2f} s, open {opened - imported:.2f} s, first images {drawn - opened:.3f} s;")
print(data.name, data.counts)
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--format", default="png")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "images")
        coarse = np.random.default_rng(0)
        for k in range(chosen.count):
            file = folder / f"class{k % 10}" / f"{k}.{chosen.format}"
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = coarse.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((chosen.side, chosen.side), Image.Resampling.BICUBIC).save(file)
        print(f"{chosen.count} files, {chosen.format}, {chosen.side} x {chosen.side}, {os.cpu_count()} cores")
        environment = {**os.environ, "ONESTEP_CACHE": str(Path(place, "cache"))}
        for name in ("first start", "second start", "third start"):
            start = time.perf_counter()
            command = [sys.executable, "-c", OPEN, str(folder)]
            told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()
            print(f"{name}: {time.perf_counter() - start:.2f} s in all; {told}")


if __name__ == "__main__":
    main()
