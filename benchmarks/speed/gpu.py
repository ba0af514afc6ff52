"""Everything about a GPU in one script of at most six minutes: step, profile, input, memory, masks, compiler.

    python benchmarks/speed --gpu                  # writes benchmarks/results/gpu-CARD.json
    python benchmarks/speed --gpu --rehearse       # the same stages on a processor with small numbers

A stage has a budget of seconds, is saved as soon as it is measured, and where it fails the others go on.
"""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from epochs import fed_rows, store_of
from material import copies, jpegs
from measure import Row, alternate, in_new_process, peak_bytes, rate_row, ratio_row, timed
from profiling import shares, table
from steps import bare, compile_now, epochs_of, ready_training, settings

from densesiam_seg.backbones import PACKAGED
from densesiam_seg.config import TrainConfig
from densesiam_seg.images.scan import scan
from densesiam_seg.images.store import epoch_batches, on_device
from densesiam_seg.inference.model_card import ModelCard
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io import devices
from densesiam_seg.io.devices import make_repeatable, pick_precision
from densesiam_seg.network.architecture import Architecture
from densesiam_seg.network.encoder import PYRAMID_ZOOM
from densesiam_seg.network.model import build_network
from densesiam_seg.prediction.plan import plan
from densesiam_seg.prediction.predict import predict_events
from densesiam_seg.training.loop import Training
from densesiam_seg.training.recipes import build_method, choose_settings
from densesiam_seg.training.weights import load_encoder

LIMIT = 355.0
"""Seconds after which the script ends, whatever it does."""
LIMITS = {"resnet18": 1.25, "resnet50": 1.15}
GIGABYTES = 0.27
"""Of GPU memory that an image of the batch takes at 320 px: 66 GB of 256."""


@dataclass(frozen=True)
class Numbers:
    """How much is measured."""

    device: torch.device
    size: int = 320
    batch: int = 256
    steps: int = 4
    repeats: int = 4
    images: int = 2048
    source: tuple[int, int] = (640, 480)
    drawn: int = 64
    """Pictures that the images are copies of."""
    described: int = 112
    """Images of the default recipe."""

    def settings(self, backbone: str, **more: Any) -> TrainConfig:
        """The paper's losses."""
        more = {"epochs": 1000, "backbone": backbone, "device": self.device.type, **more}
        return settings(self.size, self.batch, **more)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def on_this_card() -> Numbers:
    """The whole measurement; a batch that fits where memory is small."""
    if not torch.cuda.is_available():
        raise SystemExit("--gpu: no CUDA device here; --rehearse tries the script on the processor")
    memory = torch.cuda.get_device_properties(0).total_memory / 1e9
    batch = 256
    while batch > 16 and batch * GIGABYTES > 0.9 * memory:
        batch //= 2
    return Numbers(torch.device("cuda"), batch=batch)


REHEARSAL = Numbers(
    torch.device("cpu"),
    size=32, batch=4, steps=1, repeats=1, images=8, source=(96, 72), drawn=4, described=8,
)  # fmt: skip

Stage = Callable[[Numbers, Path], Iterator[Row]]


def step(backbone: str, numbers: Numbers, scratch: Path) -> Iterator[Row]:
    """The step with all losses against the bare network, in turns: as it was, then compiled."""
    config, images = numbers.settings(backbone), numbers.steps * numbers.batch
    facts = backbone, numbers.size, numbers.batch
    alone = bare(*facts, fast=True, device=numbers.device, repeats=numbers.steps)
    for mode in ("--no-compile", "compiled"):
        training = ready_training(config, numbers.steps, numbers.device)
        if mode == "compiled":
            yield _told(f"compile seconds, {backbone}", [compile_now(training)], "s")
        _peak(reset=True)
        taken, network = alternate(epochs_of(training), alone, repeats=numbers.repeats)
        note = f"{images / min(taken):.0f} images/s, {1e3 * min(taken) / numbers.steps:.1f} ms"
        limit = LIMITS[backbone] if mode == "compiled" else None
        name = f"step, {mode} / bare network, {backbone}"
        yield ratio_row(name, taken, network, limit, note=note)
        yield _told(f"largest memory, {mode}, {backbone}", [_peak()], "GB")
    yield rate_row(f"bare network, {backbone}", images, network, "images/s", None)


def parts(numbers: Numbers, scratch: Path) -> Iterator[Row]:
    """Milliseconds by part, compiled and not, with the views of real batches."""
    for compiled in (False, True):
        training = fed_training(numbers, scratch, compiled=compiled)
        found = shares(training, max(numbers.steps // 2, 1))
        print(table(found))
        mode = "compiled" if compiled else "--no-compile"
        for share in found:
            value = share.gpu if numbers.device.type == "cuda" else share.processor
            yield _told(f"part, {mode}: {share.part}", [value], "ms")


def fed(numbers: Numbers, scratch: Path) -> Iterator[Row]:
    """Epochs from JPEGs, the first with decoding, and the input alone."""
    yield from fed_rows(
        scratch,
        None,
        min(numbers.repeats, 2),
        device=numbers.device,
        size=numbers.size,
        batch=numbers.batch,
        count=numbers.images,
        pixels=numbers.source,
        limits=(1.5, 1.1),
    )
    training = fed_training(numbers, scratch)
    for keep in ("ram", "none"):
        config = numbers.settings("resnet18")
        store = training.store
        pinned = numbers.device.type == "cuda"
        if keep == "none":
            folder = _images(numbers, scratch, numbers.images)
            # By processes, as in a run.
            store = store_of(folder, config, keep, scratch, processes=pinned)
        groups = epoch_batches(len(store), numbers.batch, seed=0, epoch=0)

        def drain(store: Any = store, groups: Any = groups, pinned: bool = pinned) -> None:
            for _ in on_device(store.batches(groups, pinned=pinned), numbers.device):
                pass
            numbers.wait()

        source = "from memory" if keep == "ram" else "decoded every time"
        yield rate_row(f"input alone, {source}", numbers.images, [timed(drain)], "images/s", None)
    yield _told("largest memory of the process", [peak_bytes() / 1e9], "GB")


def default_recipe(numbers: Numbers, scratch: Path) -> Iterator[Row]:
    """What `train` does on a small folder: EfficientNet-Lite0's stages, clusters of them, steps of the K-way layer."""
    (backbone,) = PACKAGED
    count = numbers.described
    folder = _images(numbers, scratch, count)
    gpu = numbers.device.type == "cuda"
    given = {"backbone": backbone, "device": numbers.device.type, "epochs": 1000}
    given |= {} if gpu else {"image_size": numbers.size, "batch_size": numbers.batch}
    _, config = choose_settings("train", "balanced", count, gpu, given, learned=True)
    assert isinstance(config, TrainConfig)
    # A store has squares of twice the size.
    store = store_of(
        folder, replace(config, image_size=PYRAMID_ZOOM * config.image_size // 2), "ram", scratch
    )
    precision = pick_precision("auto", numbers.device)
    method = build_method(config, store, numbers.device, precision)
    load_encoder(method.network.encoder, backbone, "packaged")
    training = Training(method, config, store, numbers.device, precision)
    before = timed(lambda: [*method.prepare(store, 0)])
    course = epochs_of(training)
    course()
    taken = [timed(course) for _ in range(numbers.repeats)]
    per_step = [1e3 * second / training.steps_per_epoch for second in taken]
    note = f"{count} images, size {config.image_size}, batch {config.batch_size}"
    yield _told("default recipe, before the first step", [before], "s", note=note)
    yield _told("default recipe, a step", per_step, "ms", note=note)


def masks(numbers: Numbers, scratch: Path) -> Iterator[Row]:
    """`predict` over a folder."""
    folder = _images(numbers, scratch, max(numbers.images // 4, 4))
    architecture = Architecture(clusters=27)
    card = ModelCard(architecture, numbers.size)
    segmenter = Segmenter(build_network(architecture, 0), card, device=numbers.device.type)
    manifest = scan([folder])

    def whole() -> None:
        work = plan(manifest, scratch / "masks", overwrite=True)
        assert all(result.error is None for result in predict_events(segmenter, work))

    whole()
    taken = [timed(whole) for _ in range(min(numbers.repeats, 3))]
    yield rate_row("predict, JPEG to PNG", len(manifest), taken, "images/s", None)


def warm(numbers: Numbers, scratch: Path) -> Iterator[Row]:
    """The compiler's seconds in another process, which finds what this one has kept."""
    facts = numbers.device.type, numbers.size, numbers.batch, devices.COMPILER
    yield _told("compile seconds, warm, resnet18", [in_new_process(_compile_seconds, *facts)], "s")


def _compile_seconds(device: str, size: int, batch: int, compiler: str) -> float:
    devices.COMPILER = compiler
    make_repeatable(torch.device(device))
    numbers = Numbers(torch.device(device), size, batch)
    return compile_now(ready_training(numbers.settings("resnet18"), 1, numbers.device))


def network_compiled(numbers: Numbers, scratch: Path) -> Iterator[Row]:
    """What compiling the backbone too would give, which the program does not do."""
    facts = "resnet18", numbers.size, numbers.batch
    options: dict[str, Any] = {"fast": True, "device": numbers.device, "repeats": numbers.steps}
    plain, compiled = bare(*facts, **options), bare(*facts, **options, compiled=True)
    seconds = timed(compiled)
    taken, alone = alternate(compiled, plain, repeats=min(numbers.repeats, 3))
    note = f"{seconds:.0f} s with the compiler"
    yield ratio_row("bare network compiled / as it is, resnet18", taken, alone, None, note=note)


STAGES: dict[str, tuple[float, Stage]] = {
    "step-18": (80, partial(step, "resnet18")),
    "step-50": (50, partial(step, "resnet50")),
    "parts": (35, parts),
    "input": (55, fed),
    "predict": (20, masks),
    "default": (30, default_recipe),
    "warm": (30, warm),
    "network": (25, network_compiled),
}
"""Seconds and work of each, the most wanted first; what a stage leaves over no other one gets, so that the script ends
in time."""


def measure_gpu(
    numbers: Numbers, scratch: Path, results: Path, facts: dict[str, Any], names: list[str] | None
) -> Path:
    """Carry out the stages and return where the results lie."""
    cuda = numbers.device.type == "cuda"
    card = torch.cuda.get_device_name(numbers.device) if cuda else "rehearsal"
    path = results / f"gpu-{re.sub(r'[^a-z0-9]+', '-', card.lower())}.json"
    found: dict[str, Any] = {**facts, "card": card, "cores": os.cpu_count(), "stages": {}}
    found |= {"size": numbers.size, "batch": numbers.batch}
    ending = threading.Timer(LIMIT, _end, (path,))
    ending.daemon = True
    make_repeatable(numbers.device)  # as in a run
    ending.start()
    # An empty folder: cold. A rehearsal makes no machine code.
    compiler = "inductor" if cuda else "aot_eager"
    with (
        patch.dict(os.environ, {"TORCHINDUCTOR_CACHE_DIR": str(scratch / "compiler")}),
        patch.object(devices, "COMPILER", compiler),
    ):
        for name in names or list(STAGES):
            found["stages"][name] = _stage(name, numbers, scratch)
            results.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
            if cuda:
                torch.cuda.empty_cache()
    ending.cancel()
    return path


def _stage(name: str, numbers: Numbers, scratch: Path) -> dict[str, Any]:
    """Rows of a stage as far as it got, its seconds, and what went wrong."""
    budget, work = STAGES[name]
    began, rows, error = time.perf_counter(), [], None
    try:
        with _at_most(budget):
            for row in work(numbers, scratch):
                rows.append({**asdict(row), "verdict": row.verdict})
                figure = f"{row.value:10.2f} {row.unit:<9} {row.verdict:<7} {row.note}"
                print(f"{row.name:<60} {figure}", flush=True)
    except Exception as failure:  # another stage may go well
        error = f"{type(failure).__name__}: {failure}"[:500]
        traceback.print_exc()
    seconds = time.perf_counter() - began
    print(f"-- {name}: {seconds:.0f} of {budget:.0f} s{', FAILED' if error else ''}", flush=True)
    return {"seconds": round(seconds, 1), "budget": budget, "error": error, "rows": rows}


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """A TimeoutError in the block after so many seconds, as soon as the interpreter gets a word in."""

    def late(number: int, frame: object) -> None:
        raise TimeoutError(f"more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _end(path: Path) -> None:
    """Where a stage does not even notice its alarm."""
    print(f"-- ended after {LIMIT:.0f} s; what was measured lies in {path}", flush=True)
    os._exit(3)


def fed_training(numbers: Numbers, scratch: Path, *, compiled: bool = False) -> Training:
    """A training over JPEGs, which are decoded now and lie in memory."""
    config = numbers.settings("resnet18", region_start=0.0)
    store = store_of(_images(numbers, scratch, numbers.images), config, "ram", scratch)
    precision = pick_precision("auto", numbers.device)
    method = build_method(config, store, numbers.device, precision)
    training = Training(method, config, store, numbers.device, precision)
    if compiled:
        compile_now(training)
    return training


def profile_step() -> None:
    """Print a step by its parts: on a GPU as the paper trains, else as small sets without weights, on one thread."""
    gpu = torch.cuda.is_available()
    numbers = on_this_card() if gpu else Numbers(torch.device("cpu"), 160, 16, images=64)
    torch.set_num_threads(torch.get_num_threads() if gpu else 1)
    make_repeatable(numbers.device)
    with TemporaryDirectory() as scratch:
        for compiled in (False, True) if gpu else (False,):
            training = fed_training(numbers, Path(scratch), compiled=compiled)
            print(table(shares(training, 4)))


def _images(numbers: Numbers, scratch: Path, count: int) -> Path:
    """A folder of so many JPEGs."""
    sources = jpegs(scratch / "drawn", numbers.drawn, numbers.source, None)
    return copies(scratch / f"{count} images", sources, count)


def _told(name: str, values: list[float], unit: str, note: str = "") -> Row:
    middle = sorted(values)[len(values) // 2]
    return Row(name, middle, min(values), max(values), unit=unit, note=note)


def _peak(*, reset: bool = False) -> float:
    """GB of GPU memory at most since the last reset; 0 without a GPU."""
    if not torch.cuda.is_available():
        return 0.0
    if reset:
        torch.cuda.reset_peak_memory_stats()
    return torch.cuda.max_memory_allocated() / 1e9
