"""The `densesiam-seg` program: its commands, and errors as one line with an exit code."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import Annotated

import typer

from densesiam_seg import __version__
from densesiam_seg.cli import (
    demo,
    doctor,
    evaluate,
    export,
    predict,
    study,
    train,
    visualize,
)
from densesiam_seg.errors import DenseSiamError, one_line

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
app.command("train")(train.train)
app.command("predict")(predict.command)
app.command("evaluate")(evaluate.evaluate)
app.command("pretrain")(train.pretrain)
app.command("probe")(evaluate.probe)
app.command("visualize")(visualize.command)
app.command("export")(export.command)
app.command("study")(study.command)
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
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that the terminal's encoding lacks must not end the program.
        sys.stdout.reconfigure(errors="backslashreplace")
    code = 0
    try:
        code = _run(debug="--debug" in sys.argv[1:2])
        sys.stdout.flush()
    except OSError as error:
        # Everything that writes files turns these into our own errors; what is left is stdout.
        if error.filename is not None:
            raise
        code = _stdout_lost(error, code)
    sys.exit(code)


def _run(debug: bool) -> int:
    try:
        code = app(standalone_mode=False, prog_name="densesiam-seg")
        return code if isinstance(code, int) else 0
    except typer.TyperException as error:
        if debug:
            raise
        # Without a command the help was shown, and there is nothing to say.
        message = error.format_message()
        return _fail("usage", message, error.exit_code) if message else error.exit_code
    except DenseSiamError as error:
        if debug:
            raise
        return _fail(error.name, str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("stopped", "interrupted", 130)
    except SystemExit:
        # Typer's way to say that the reader of stdout has left.
        return 0


def _fail(name: str, message: str, code: int) -> int:
    print(f"error[{name}]: {one_line(message)}", file=sys.stderr)
    return code


def _stdout_lost(error: OSError, code: int) -> int:
    """The exit code when stdout could not be written: a reader that left (`| head`) is no error, a full disk is."""
    with suppress(OSError, ValueError):
        # Python would complain again when it flushes on exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        return code
    return _fail("output", f"standard output: cannot be written ({error.strerror})", 5)
