"""`densesiam-seg export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from densesiam_seg.cli.options import Json, Overwrite, Quiet, RunArgument, io_option, require_model


def command(
    run: RunArgument,
    out: Annotated[Path, io_option("--out", "-o", help="File to write: .pth or .safetensors.")],
    backbone: Annotated[
        bool,
        io_option(
            "--backbone", help="Required: the backbone, as a state dict of torchvision or timm."
        ),
    ] = False,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a model's backbone as a plain state dict of torchvision or timm, for programs other than this one."""
    from densesiam_seg.backbones import TIMM
    from densesiam_seg.errors import UsageError

    if not backbone:
        raise UsageError("export: only the backbone can be exported so far; give --backbone")
    require_model(run)

    # Only now, as torch comes with it, which mistakes need not wait for.
    from densesiam_seg.cli.console import Console
    from densesiam_seg.inference.export import export_backbone, require_export_target
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
