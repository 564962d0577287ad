"""Memory of the analyses of a long history: 154 checkpoints x 13 layers x 512 probes within a ``--memory`` figure.

Run with ``python benchmarks/memory.py [FIGURE ...]``; it needs about 1 GB of disk for some minutes.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from opening import N_LAYERS, N_PROBES, N_REVISIONS, fill

QUESTIONS = (
    ("analyze", "embed", "--method", "mds"),
    ("analyze", "path"),
    ("analyze", "similarity", "--across", "steps"),
)


def main(figures: list[str]) -> None:
    """Print the time and the peak memory of each question under each figure, asked of a fresh store."""
    for figure in figures:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "store"
            fill(root, Path(folder) / "plain")
            print(f"{N_REVISIONS} checkpoints x {N_LAYERS} layers x {N_PROBES} probes, --memory {figure}")
            for question in QUESTIONS:
                command = [sys.executable, "-m", "cli", "--store", str(root), *question, "--memory", figure]
                start = time.perf_counter()
                process = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603 (our own command line)
                _, status, usage = os.wait4(process.pid, 0)
                seconds, peak = time.perf_counter() - start, usage.ru_maxrss / 1e3
                print(f"{' '.join(question):42} {seconds:7.1f} s   peak {peak:6.0f} MB   exit {status}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or ["2GB"])
