"""The stages of a frozen backbone for views that never change, on the disk: computed once, read in every epoch.

Axes: N images of the store, B images of a batch, C h w a stage's channels and size, V numbers in all stages of a view.

With a frozen backbone and views drawn once for the run, the backbone's stages are a function of the image, the seed and
the weights. A row of the file holds both views' stages of one image, channels last, in the precision of the run: under
autocast the decoder rounds its inputs to that precision itself, so nothing is lost. The file's name is a hash of
everything that the numbers depend on, and it appears when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from math import prod
from pathlib import Path

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from torch import Tensor

from densesiam_seg.config import TrainConfig
from densesiam_seg.errors import UsageError
from densesiam_seg.images.store import DISK_SHARE, Batch, ImageStore, on_device
from densesiam_seg.io.devices import autocast
from densesiam_seg.io.files import free_space, make_folder, open_regular, replacing
from densesiam_seg.io.parallel import ahead
from densesiam_seg.io.tensors import digest_of
from densesiam_seg.network.encoder import Encoder
from densesiam_seg.views.pair import view_pair

_FORMAT = 2
_DIGEST_BYTES = 32
_PIECE = 1 << 24
"""Bytes that are read at once."""


class StageCache:
    """The stages of these images by this backbone, whether written yet or not: N rows, in the order of the store."""

    def __init__(
        self,
        encoder: Encoder,
        config: TrainConfig,
        store: ImageStore,
        device: torch.device,
        precision: torch.dtype,
    ) -> None:
        assert encoder.frozen and config.keeps_stages()
        self.backbone, self.config, self.store = encoder.backbone, config, store
        self.device, self.precision = device, precision
        side = config.image_size
        with torch.no_grad(), autocast(device, precision):
            stages = self.backbone(torch.zeros(1, 3, side, side, device=device))
        self.shapes = [stage.shape[1:] for stage in stages]
        """(C, h, w) of each stage."""
        self.row = 2 * sum(map(prod, self.shapes)) * precision.itemsize
        """Bytes of one image."""
        self.size = len(store) * self.row
        """Bytes of all images."""
        facts = [
            *(_FORMAT, PIL.__version__, torch.__version__, device.type, str(precision)),
            *(
                store.manifest.root,
                store.manifest.digest,
                store.side,
                store.fit,
                store.decoding.facts(),
            ),
            *(config.seed, config.exact(), config.backbone, digest_of(self.backbone.state_dict())),
        ]
        key = hashlib.sha256(json.dumps(facts).encode("ascii")).hexdigest()[:32]
        self.path = Path(config.cache_dir) / f"{key}.stages"

    def written(self) -> bool:
        """Whether the file is there and as it was written: the rows, and their SHA-256 in the last bytes."""
        with suppress(OSError), open_regular(self.path) as file:
            if os.fstat(file.fileno()).st_size != self.size + _DIGEST_BYTES:
                return False
            total, left = hashlib.sha256(), self.size
            while part := file.read(min(left, _PIECE)):
                total.update(part)
                left -= len(part)
            return file.read() == total.digest()
        return False

    def has_room(self, *, asked: bool) -> bool:
        """Whether the disk has room for it; where it was `asked` for and has none, raises UsageError."""
        free = free_space(self.path.parent)
        if asked and self.size > free:
            raise UsageError(
                f"--cache disk: the frozen backbone's features take {self.size / 1e9:.2f} GB and {free / 1e9:.2f} GB "
                f"are free in {self.path.parent}; give another --cache-dir, or --cache none to compute them every epoch"
            )
        return asked or self.size <= DISK_SHARE * free

    def write(self) -> Generator[int, None, None]:
        """Compute every row, yielding how many are done. Raises OutputError; a stop leaves no file."""
        count, size = len(self.store), self.config.batch_size
        # Batches as large as those of training: another size may be summed in another order.
        groups = [
            tuple(index % count for index in range(first, first + size))
            for first in range(0, count, size)
        ]
        make_folder(self.path.parent)
        done, total = 0, hashlib.sha256()
        with replacing(self.path, sync=False) as file:
            batches = self.store.batches(groups, pinned=self.device.type == "cuda")
            for batch in on_device(batches, self.device):
                rows = self._rows(batch)[: count - done]
                data = rows.cpu().view(torch.uint8).numpy().data
                file.write(data)
                total.update(data)
                done += len(rows)
                if done == count:
                    file.write(total.digest())
                yield done

    def batches(
        self, groups: Sequence[tuple[int, ...]], *, pinned: bool = False
    ) -> Iterator[Batch]:
        """The rows (B, bytes) of each group of images, read ahead of their use."""
        rows = self._mapped

        def gather(group: tuple[int, ...]) -> Batch:
            part = torch.from_numpy(rows[list(group)])
            return Batch(part.pin_memory() if pinned else part, group)

        return ahead(gather, groups, 1, max_waiting=2)

    def stages(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Rows (B, bytes) → the stages, each (2B, C, h, w), view 1 of all images first."""
        views = rows.view(self.precision).view(len(rows), 2, -1).transpose(0, 1).flatten(0, 1)
        parts = torch.split(views, [prod(shape) for shape in self.shapes], 1)
        return tuple(
            part.reshape(-1, height, width, channels).permute(0, 3, 1, 2)
            for part, (channels, height, width) in zip(parts, self.shapes, strict=True)
        )

    @cached_property
    def _mapped(self) -> NDArray[np.uint8]:
        """The file (N, bytes), mapped once: a run goes on when it is deleted meanwhile."""
        data = torch.from_file(str(self.path), False, self.size, dtype=torch.uint8)
        return data.view(-1, self.row).numpy()

    @torch.no_grad()
    def _rows(self, batch: Batch) -> Tensor:
        """(B, 2·V) of one batch of stored images."""
        seed, exact = self.config.seed, self.config.exact()
        views = view_pair(batch.images, batch.indices, seed=seed, round_=0, exact=exact)
        with autocast(self.device, self.precision):
            stages = self.backbone(torch.cat((views.image_1, views.image_2)))
        flat = [stage.permute(0, 2, 3, 1).flatten(1).to(self.precision) for stage in stages]
        return torch.cat(torch.cat(flat, 1).chunk(2), 1)
