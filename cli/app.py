"""The `densesiam-seg` program: its commands, and errors as one line with an exit code."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from densesiam_seg import __version__
from densesiam_seg.cli import demo, doctor, evaluate, predict, train
from densesiam_seg.errors import DenseSiamError

app = typer.Typer(
    name="densesiam-seg",
    help="Semantic segmentation from unlabelled images (DenseSiam, ECCV 2022).\n\n"
    "Start with `densesiam-seg demo`, or with your own pictures: `densesiam-seg train images/`, then "
    "`densesiam-seg predict img.jpg --out mask.png`.",
    epilog="Exit codes: 0 ok, 1 bug, 2 usage, 3 bad input, 4 model refused, 5 cannot write, 6 numeric failure, "
    "7 directory in use, 9 done but some inputs failed, 130/143 stopped by a signal after saving.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train")(train.command)
app.command("predict")(predict.command)
app.command("evaluate")(evaluate.command)
app.command("demo")(demo.command)
app.command("doctor")(doctor.command)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"densesiam-seg {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show a traceback with every error.")
    ] = False,
) -> None:
    """Options of the program itself."""
    context.obj = {"debug": debug}


def main() -> None:
    """Run the program and leave with the documented exit code."""
    debug = "--debug" in sys.argv[1:2]
    try:
        code = app(standalone_mode=False)
    except typer.TyperException as error:
        if debug:
            raise
        code = _fail("usage", error.format_message(), error.exit_code)
    except DenseSiamError as error:
        if debug:
            raise
        code = _fail(error.name, str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = _fail("stopped", "interrupted", 130)
    except BrokenPipeError:
        # The reader of stdout has left; Python would complain again when it flushes on exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code if isinstance(code, int) else 0)


def _fail(name: str, message: str, code: int) -> int:
    # File names may hold newlines, and bytes that are not text.
    text = message.replace("\n", "\\n").encode("utf-8", "backslashreplace").decode("utf-8")
    print(f"error[{name}]: {text}", file=sys.stderr)
    return code
