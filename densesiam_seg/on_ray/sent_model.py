"""A model as it is sent to the workers of a cluster: its place, and the read-out that was chosen for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from densesiam_seg.errors import ModelError
from densesiam_seg.inference.identity import digest_of_model
from densesiam_seg.inference.segmenter import ReadOut, Segmenter
from densesiam_seg.io.devices import pick_device

_PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True)
class SentModel:
    """Enough to load a model elsewhere, where its folder can be seen."""

    path: Path
    read_out: ReadOut
    digest: str
    device: str
    """What a worker is asked for: auto, cpu or cuda."""
    kind: str
    """Of the device that this process uses."""
    precision: str
    """On such a device; on another the worker has its own."""
    exact: bool
    """On such a device: whether layers are computed one by one."""

    @classmethod
    def of(cls, segmenter: Segmenter, path: Path, device: str) -> SentModel:
        """Of a segmenter that was loaded from `path`."""
        return cls(
            path.resolve(),
            segmenter.fitted,
            digest_of_model(segmenter),
            device.partition(":")[0],  # a worker sees one GPU
            segmenter.device.type,
            _PRECISIONS[str(segmenter.precision).removeprefix("torch.")],
            segmenter.exact,
        )

    def load(self) -> Segmenter:
        """The same model. Raises ModelError where another one is there, or none."""
        alike = pick_device(self.device).type == self.kind
        precision = self.precision if alike else "auto"
        plain = Segmenter.load(self.path, device=self.device, precision=precision)
        if alike:
            plain.exact = self.exact
        segmenter = plain.fitted_as(self.read_out)
        if digest_of_model(segmenter) != self.digest:
            raise ModelError(f"{self.path}: is another model there")
        return segmenter
