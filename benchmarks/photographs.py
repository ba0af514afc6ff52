"""docs/photographs.jpg: photographs above, below them the same with a model's masks over them.

The photographs are those that come with scikit-image and scikit-learn (chelsea.png, rocket.jpg and astronaut.png are in
the public domain; china.jpg and flower.jpg, by danielbuechele and vultilion, are CC BY 2.0); the model is that of a
plain `densesiam-seg train` on the 113 photographs of COCO's training sample:

    python -P benchmarks/photographs.py RUN china.jpg chelsea.png … --out docs/photographs.jpg
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from densesiam_seg.images.decode import load_image
from densesiam_seg.inference.segmenter import Segmenter
from densesiam_seg.io.files import replace_file
from densesiam_seg.pictures.masks import encode_jpeg, overlay
from densesiam_seg.pictures.sheet import Tile, sheet

SIZE = (240, 180)


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/photographs.jpg"))
    given = parser.parse_args()
    segmenter = Segmenter.load(given.model, device="cpu", precision="fp32")
    above, below = [], []
    for path in given.images:
        image = load_image(path, segmenter.decoding).permute(1, 2, 0).numpy()
        mask = segmenter.predict(path)
        for row, picture in (
            (above, image),
            (below, overlay(image, mask, segmenter.palette)),
        ):
            row.append(
                np.asarray(ImageOps.fit(Image.fromarray(picture), SIZE, centering=(0.5, 0.3)))
            )
    page = sheet([[Tile(each) for each in row] for row in (above, below)], side=max(SIZE))
    replace_file(given.out, encode_jpeg(page))


if __name__ == "__main__":
    main()
