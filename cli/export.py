"""`densesiam-seg export`: masks, the model, or its backbone, for programs other than this one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from densesiam_seg.cli.options import (
    FollowLinks,
    ImagesArgument,
    Json,
    Overwrite,
    Quiet,
    RefineOptions,
    RunArgument,
    import_torch,
    io_option,
    require_model,
)
from densesiam_seg.cli.settings import checked, takes
from densesiam_seg.config import RECIPE, RunConfig
from densesiam_seg.events import Predicted

if TYPE_CHECKING:
    from densesiam_seg.cli.console import Console
    from densesiam_seg.images.manifest import Manifest

Format = Literal[
    "voc", "cvat", "label-studio", "labelme", "coco", "yolo", "mmseg", "lightly-train", "hf"
]


@takes(
    refining=RefineOptions,
    settings=checked("max_pixels", "device", "precision", "page", "bands"),
)
def masks(
    run: RunArgument,
    images: ImagesArgument,
    *,
    format: Annotated[
        Format,
        io_option("--format", "-f", help="What reads it; docs/export.md tells what each holds."),
    ],
    out: Annotated[
        Path, io_option("--out", "-o", help="New folder to write; for cvat a .zip file.")
    ],
    masks: Annotated[
        Path | None,
        io_option("--masks", help="Take masks that predict wrote into this folder."),
    ] = None,
    follow_links: FollowLinks = False,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
    refining: RefineOptions,
    settings: RunConfig,
) -> None:
    """Write images and their masks as another program's data set or pre-annotations, under the clusters' names."""
    refinement = refining.refinement()
    from densesiam_seg.images.scan import scan

    pages = settings.page == "all"
    manifest = scan(images, merge=False, follow_links=follow_links, out=out, pages=pages)
    require_model(run)

    # Only now, as mistakes need not wait for it.
    import_torch()
    from densesiam_seg.cli.console import Console
    from densesiam_seg.exporting.masks import export_masks, plan_masks
    from densesiam_seg.inference.segmenter import Segmenter

    work = plan_masks(manifest, out, format, masks=masks, overwrite=overwrite)
    # Read with its weights even where masks are there already: it says how images are read.
    segmenter = Segmenter.load(run, device=settings.device, precision=settings.precision)
    decoding = segmenter.new_decoding(settings)
    console = Console(quiet=quiet)
    console.passed_over(manifest.passed_over)
    console.skipped(manifest.skipped)
    results: list[Predicted] = console.follow(
        export_masks(
            work,
            segmenter.clusters,
            segmenter if masks is None else None,
            decoding,
            refinement=refinement,
        )
    )
    console.noted(decoding.notes)
    _show(console, results, manifest, out, format, json=json)


def _show(
    console: Console,
    results: Sequence[Predicted],
    manifest: Manifest,
    out: Path,
    format: str,
    *,
    json: bool,
) -> None:
    """Tell what was exported; raises the error that the command ends with."""
    from densesiam_seg.packed.members import as_shown
    from densesiam_seg.prediction.predict import overall_error

    failed = [result for result in results if result.error is not None]
    done = [as_shown(result.image) for result in results if result.error is None]
    if len(results) > 1:
        console.failed(failed)
    if json:
        console.data(
            {
                "out": str(out) if done else None,
                "format": format,
                "images": done,
                "failed": [
                    {"image": as_shown(each.image), "message": str(each.error)} for each in failed
                ],
                "skipped": [asdict(item) for item in manifest.skipped],
                "passed_over": asdict(manifest.passed_over),
            }
        )
    if done:
        console.say(f"{len(done)} {'image' if len(done) == 1 else 'images'} as {format}: {out}")
    error = overall_error(results, manifest.skipped)
    if error is not None:
        raise error


def model(
    run: RunArgument,
    *,
    format: Annotated[
        Literal["onnx", "torch"],
        io_option("--format", "-f", help="ONNX, or a program of torch.export."),
    ],
    out: Annotated[Path, io_option("--out", "-o", help="New folder to write.")],
    refine: Annotated[
        str,
        typer.Option(
            "--refine",
            metavar="auto|none|guided|pamr",
            help="The filter for the edges of masks; auto: the model's own.",
            rich_help_panel=RECIPE,
        ),
    ] = "auto",
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write the model as one file that makes masks without this program, checked against its own masks."""
    from densesiam_seg.inference.options import Refinement

    chosen = Refinement(refine=refine)
    require_model(run)
    from densesiam_seg.exporting.model import export_model, require_model_target

    require_model_target(out, format, overwrite=overwrite)
    from densesiam_seg.cli.console import Console
    from densesiam_seg.inference.segmenter import Segmenter

    console = Console(quiet=quiet)
    segmenter = Segmenter.load(run, device="cpu", precision="fp32")
    console.say("exporting; this takes a minute")
    found: dict[str, Any] = export_model(segmenter, out, format, chosen)
    if json:
        console.data({"out": str(out), **found})
    console.say(
        f"{100 * found['equal_pixels']:.2f} % of the pixels of a drawn image as predicted here"
    )
    console.say(
        f"model: {out / found['file']}, with what it takes and gives in {out / 'model.json'}"
    )


def backbone(
    run: RunArgument,
    out: Annotated[Path, io_option("--out", "-o", help="File to write: .pth or .safetensors.")],
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a model's backbone as a plain state dict of torchvision or timm."""
    from densesiam_seg.backbones import TIMM

    require_model(run)

    # Only now, as mistakes need not wait for it.
    import_torch()
    from densesiam_seg.cli.console import Console
    from densesiam_seg.exporting.backbone import export_backbone, require_export_target
    from densesiam_seg.inference.segmenter import Segmenter

    require_export_target(out, overwrite=overwrite)
    segmenter = Segmenter.load(run, device="cpu", precision="fp32")
    export_backbone(segmenter, out)
    name = segmenter.card.architecture.backbone
    console = Console(quiet=quiet)
    if json:
        console.data({"file": str(out), "backbone": name})
    console.say(f"backbone ({name}): {out}")
    library = (
        f"timm.create_model('{name.removeprefix(TIMM)}')"
        if name.startswith(TIMM)
        else f"torchvision.models.{name}()"
    )
    console.say(f"next: {library}.load_state_dict(…, strict=False), or --weights {out}")
