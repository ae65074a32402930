"""``python -m benchmarks gpu``: the benchmarks that are run by name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # they import one another by name

NAMES = ("gpu",)

if __name__ == "__main__":
    if sys.argv[1:2] != ["gpu"]:
        raise SystemExit(f"usage: python -m benchmarks {' | '.join(NAMES)} [--help]")
    import bench_gpu

    bench_gpu.main(sys.argv[2:])
