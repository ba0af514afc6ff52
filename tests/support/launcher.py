"""The program as torchrun starts it: several processes of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).with_name("slim_program.py")
SECONDS = 180


def launched(count: int, *words: str | Path, restarts: int = 0) -> subprocess.CompletedProcess[str]:
    """The program with slim backbones in `count` processes with a thread each."""
    command = [
        *(sys.executable, "-P", "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(count), "--max-restarts", str(restarts), PROGRAM, *words),
    ]
    return subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env={**os.environ, "OMP_NUM_THREADS": "1", "DENSESIAM_SEG_TIMEOUT": "60"},
        check=False,
    )
