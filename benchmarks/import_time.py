"""What ``import hybridhash`` adds to ``import timm``, in fresh processes.

python benchmarks/import_time.py
"""

import statistics
import subprocess
import sys

from common import machine, table

REPEATS = 7
TIMER = """
from time import perf_counter
start = perf_counter()
import timm
middle = perf_counter()
import hybridhash
print(middle - start, perf_counter() - middle)
"""


def main():
    runs = []
    for _ in range(REPEATS + 1):
        out = subprocess.run([sys.executable, "-c", TIMER], capture_output=True, check=True, text=True)
        runs.append([float(seconds) for seconds in out.stdout.split()])
    # The first process fills the file cache.
    alone, added = (statistics.median(column) for column in zip(*runs[1:], strict=True))
    rows = [["import timm", f"{alone:.2f} s"], ["then import hybridhash", f"{added * 1000:.0f} ms"]]
    print(machine())
    print(f"median of {REPEATS} fresh processes\n")
    print(table(["statement", "time"], rows))


if __name__ == "__main__":
    main()
