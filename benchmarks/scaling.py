"""One process against two on the cores of this machine: seconds a step, and bytes sent for those of the gradients.

    python -P benchmarks/scaling.py [--rounds 3] [--steps 24]

Weak scaling: two processes have a batch that is twice as large, so that each does as much as one does alone; a thread
each. What two cores can do at best is what two single runs at the same time take, as cores share caches and memory. The
runs alternate. Bytes are those of the loopback device of a network namespace, where that is allowed.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import torch
from PIL import Image
from safetensors.torch import load_file

from densesiam_seg.datasets.scenes import scene
from densesiam_seg.io.records import read_records

SIDE, BATCH, SKIPPED = 160, 4, 4
"""Pixels of an image, images of a process, and steps before the first that counts."""
NAMESPACE = "densesiam-bench"
WAYS = {
    "DenseSiam from scratch (ResNet-18)": ["--prior", "none", "--weights", "none"],
    "default recipe (packaged weights)": [],
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--steps", type=int, default=24)
    options.add_argument("--ways", type=int, default=len(WAYS), help="of them the first")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder, "images")
        images.mkdir()
        for index in range(BATCH * given.steps):
            pixels, _ = scene(0, index, SIDE)
            Image.fromarray(pixels).save(images / f"{index:04}.png")
        inside = namespace()
        for name, words in list(WAYS.items())[: given.ways]:
            print(name)
            alone, beside, both, sent = [], [], [], []
            for turn in range(given.rounds):
                for processes, found in ((1, alone), (2, both)):
                    out = Path(folder, f"{len(name)}-{turn}-{processes}")
                    seconds, wire = run(images, out, processes, words, inside)
                    found.append(seconds)
                    if processes == 2 and wire is not None:
                        sent.append(wire / gradients(out))
                with ThreadPoolExecutor() as pool:
                    outs = [Path(folder, f"{len(name)}-{turn}-beside-{each}") for each in "ab"]
                    pair = [pool.submit(run, images, out, 1, words, inside) for out in outs]
                    beside.append(sum(each.result()[0] for each in pair) / 2)
            print(f"  seconds a step, 1 process: {told(alone)}")
            print(f"  two single runs at the same time: {told(beside)}")
            print(f"  2 processes of one run: {told(both)}")
            print(f"  weak scaling: {told(over(alone, both))}")
            print(f"  what the cores allow: {told(over(alone, beside))}")
            print(f"  bytes sent by a process over those of the gradients: {told(sent)}")
        if inside:
            subprocess.run(["ip", "netns", "del", NAMESPACE], check=False)


def over(ones: Sequence[float], others: Sequence[float]) -> list[float]:
    """The ratios of two rows of runs."""
    return [one / other for one, other in zip(ones, others, strict=True)]


def told(values: Sequence[float]) -> str:
    """The median and all values."""
    if not values:
        return "not measured, as network namespaces are not allowed here"
    return f"{median(values):.3f} ({', '.join(f'{value:.3f}' for value in values)})"


def namespace() -> list[str]:
    """What runs a command in a namespace whose loopback device nobody else uses; empty where that is not allowed."""
    inside = ["ip", "netns", "exec", NAMESPACE]
    try:
        subprocess.run(["ip", "netns", "add", NAMESPACE], check=True, capture_output=True)
        subprocess.run([*inside, "ip", "link", "set", "lo", "up"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return inside


def run(
    images: Path, out: Path, processes: int, words: Sequence[str], inside: Sequence[str]
) -> tuple[float, float | None]:
    """The median seconds of a step, and the bytes that a process sends in one."""
    command = [
        *inside,
        *(sys.executable, "-P", "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(processes), "-m", "densesiam_seg", "train", str(images)),
        *("--out", str(out), "--batch-size", str(BATCH * processes), "--image-size", str(SIDE)),
        *("--epochs", "2" if processes == 2 else "1", "--threads", "1", "--precision", "fp32"),
        *("--no-report", "--quiet", "--device", "cpu", "--checkpoint-every", "1h", *words),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    records, seen = out / "metrics.jsonl", list[tuple[int, int]]()
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as job:
        while job.poll() is None:
            time.sleep(0.05)
            if inside and records.exists():
                steps = [each["step"] for each in read_records(records)]
                if steps and (not seen or steps[-1] > seen[-1][0]):
                    seen.append((steps[-1], sent(inside)))
    assert job.returncode == 0, command
    steps = [each for each in read_records(records) if each["record"] == "step"]
    seconds = median(each["seconds"] for each in steps[SKIPPED:])
    later = [each for each in seen if each[0] > SKIPPED]
    if processes == 1 or len(later) < 2:
        return seconds, None
    (first, before), (last, after) = later[0], later[-1]
    return seconds, (after - before) / (last - first) / processes


def sent(inside: Sequence[str]) -> int:
    """Bytes that the loopback device has sent so far."""
    table = subprocess.run([*inside, "cat", "/proc/net/dev"], check=True, capture_output=True)
    found = re.search(r"lo:\s*(.*)", table.stdout.decode())
    assert found is not None
    return int(found[1].split()[8])


def gradients(out: Path) -> int:
    """Bytes of everything that has a gradient: an optimiser keeps moments of it."""
    checkpoint = max((out / "checkpoints").glob("step-*"))
    tensors = load_file(checkpoint / "tensors.safetensors")
    moved = {name.split(".", 2)[2] for name in tensors if name.startswith("optimizer.")}
    own = (tensors[f"network.{name}"] for name in moved)
    return sum(tensor.numel() * torch.finfo(tensor.dtype).bits // 8 for tensor in own)


if __name__ == "__main__":
    main()
