"""The program with slim backbones, as a process of its own: `python slim_program.py COMMAND …`.

Where PEAK names a file, it gets the most memory that the process was in, in bytes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from memory import taken


def _note_peak() -> None:
    Path(os.environ["PEAK"]).write_text(str(taken("VmHWM")), encoding="ascii")


if __name__ == "__main__":
    from densesiam_seg.cli.app import main

    # Not of torch before it is needed, as the slim backbones would have it.
    if sys.argv[1:] and sys.argv[1] in ("train", "predict", "evaluate", "serve"):
        from slim import slim_resnets

        slim = slim_resnets()  # kept, as it would end with its last name
        slim.__enter__()
    try:
        main()
    finally:
        if "PEAK" in os.environ:
            _note_peak()
