"""The `densesiam-seg` program: its commands, and errors as one line with an exit code."""

from __future__ import annotations

import atexit
import io
import os
import re
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import Annotated, Any, TextIO, cast

import typer
from typer.core import TyperCommand, TyperGroup

from densesiam_seg import __version__
from densesiam_seg.cli import (
    clusters,
    compare,
    demo,
    doctor,
    evaluate,
    export,
    predict,
    report,
    review,
    serve,
    study,
    train,
    visualize,
)
from densesiam_seg.errors import DenseSiamError, UsageError, one_line
from densesiam_seg.io.signals import SIGNALS
from densesiam_seg.peers.shard import Shard, launched

_TAG = re.compile(r"(\\*)(\[[a-zA-Z#/@][^\[\]]*\])")
"""What Rich takes for markup, as `rich.markup.escape` has it, whose import takes longer than the rest of the start."""


class _Literal:
    """A command whose help is shown as it is written: Rich would read `[timm]` as markup and leave it out."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        for each in (self, *cast("Sequence[Any]", self.params)):  # type: ignore[attr-defined]
            for name in ("help", "short_help", "epilog"):
                text = getattr(each, name, None)
                if text:
                    setattr(each, name, _TAG.sub(r"\1\1\\\2", text))


class _Shared(_Literal, TyperCommand):
    """A command with such a help, whose work the processes of a launcher share."""


class _Command(_Shared):
    """One that works in one process: several would write the same files, each of them."""

    def invoke(self, context: Any) -> Any:
        shard = launched()
        if not shard.alone:
            raise UsageError(
                f"{context.command_path.partition(' ')[2]}: works in one process, and this is process {shard} of a "
                "launcher; start it alone (train, pretrain, predict and evaluate share their work)"
            )
        return super().invoke(context)


ORDER = (
    *(
        "train",
        "report",
        "clusters",
        "predict",
        "export",
        "review",
        "compare",
        "serve",
        "visualize",
    ),
    *("evaluate", "pretrain", "probe", "study", "demo", "doctor"),
)
"""Of the commands in `--help`: as people come to them. typer lists groups last."""


class _Group(_Literal, TyperGroup):
    """The program with such a help."""

    def list_commands(self, context: Any) -> list[str]:
        """Those in `ORDER` first."""
        return sorted(self.commands, key=lambda name: (*ORDER, name).index(name))


class _GroupWithDefault(_Group):
    """A group of commands whose first is meant where no name of one follows: `clusters RUN` is `clusters list RUN`."""

    def resolve_command(self, context: Any, words: list[str]) -> Any:
        if words and not words[0].startswith("-") and words[0] not in self.commands:
            words = [next(iter(self.commands)), *words]
        return super().resolve_command(context, words)


app = typer.Typer(
    name="densesiam-seg",
    cls=_Group,
    help="Semantic segmentation from unlabelled images (DenseSiam, ECCV 2022).\n\n"
    "Start with `densesiam-seg demo`, or with your own pictures: `densesiam-seg train images/`, then "
    "`densesiam-seg predict img.jpg --out mask.png`.",
    epilog="Exit codes: 0 ok, 1 bug, 2 usage, 3 bad input, 4 model refused, 5 cannot write, 6 numeric failure, "
    "7 directory in use, 8 lost worker, 9 done but some inputs failed, 130/143 stopped by a signal after saving.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train", cls=_Shared)(train.train)
app.command("predict", cls=_Shared)(predict.command)
app.command("evaluate", cls=_Shared)(evaluate.evaluate)
app.command("pretrain", cls=_Shared)(train.pretrain)
app.command("probe", cls=_Command)(evaluate.probe)
app.command("visualize", cls=_Command)(visualize.command)
named = typer.Typer(
    help="List, name and merge a model's clusters: `clusters RUN` lists them.",
    no_args_is_help=True,
)
named.command("list", cls=_Command)(clusters.list_clusters)
named.command("rename", cls=_Command)(clusters.rename)
named.command("merge", cls=_Command)(clusters.merge)
named.command("name", cls=_Command)(clusters.name)
named.command("suggest", cls=_Command)(clusters.suggest)
named.command("cut", cls=_Command)(clusters.cut)
named.command("undo", cls=_Command)(clusters.undo)
app.add_typer(named, name="clusters", cls=_GroupWithDefault)
app.command("serve", cls=_Command)(serve.command)
app.command("report", cls=_Command)(report.command)
app.command("review", cls=_Command)(review.command)
app.command("compare", cls=_Command)(compare.command)
exported = typer.Typer(
    help="Write masks, the model or its backbone for other programs.", no_args_is_help=True
)
exported.command("masks", cls=_Command)(export.masks)
exported.command("model", cls=_Command)(export.model)
exported.command("backbone", cls=_Command)(export.backbone)
app.add_typer(exported, name="export", cls=_Group)
app.command("study", cls=_Command)(study.command)
app.command("demo", cls=_Command)(demo.command)
app.command("doctor", cls=_Command)(doctor.command)


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


def program() -> None:
    """`main` as a process of its own, which ends at once when its work is done and told.

    Python would take everything apart that torch has made, which takes half a second and is of no use. What was
    registered to be done at the end is done before: the first to be registered comes last.
    """
    process, code = os.getpid(), 1

    def leave() -> None:
        if os.getpid() != process:
            return
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, _StdoutError):
                stream.flush()
        os._exit(code)

    atexit.register(leave)
    try:
        main()
    except SystemExit as end:
        assert isinstance(end.code, int)
        code = end.code
        raise


def main() -> None:
    """Run the program and raise SystemExit with the documented exit code."""
    _replace_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that the terminal's encoding lacks must not end the program.
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.stdout = cast("TextIO", _Stream(sys.stdout, BrokenPipeError))
    sys.stderr = cast("TextIO", _Stream(sys.stderr, OSError))
    # Until a command takes over its signals (`io.signals`) nothing is under way that would have to be saved.
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        # torch would tell each process that its parameters might all be used.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    code = 0
    try:
        code = _run(debug="--debug" in sys.argv[1:2])
        sys.stdout.flush()
    except _StdoutError as error:
        code = _stdout_lost(error)
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
        if error.told:
            return error.exit_code
        return _fail(error.name, str(error), error.exit_code, own=error.own)
    except (_Interrupted, KeyboardInterrupt, typer.Abort) as stop:
        number = stop.number if isinstance(stop, _Interrupted) else signal.SIGINT
        return _fail("stopped", "stopped by a signal; nothing had to be saved", 128 + number)
    except _StdoutError:
        raise
    except Exception as error:
        if debug:
            raise
        return _bug(error)


class _Interrupted(BaseException):
    """A signal outside the work that saves its state first; no handler of other errors may take it for one."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise _Interrupted(number)


def _bug(error: Exception) -> int:
    """A line for what no command foresaw; a run's `run.json` has the traceback."""
    if _is_of_memory(error):
        text = "memory is full; give a smaller --batch-size or --image-size, or end other programs"
        return _fail("memory", text, 1)
    text = f"{type(error).__name__}: {error}; report it with what densesiam-seg --debug … shows"
    return _fail("bug", text, 1)


def _is_of_memory(error: Exception) -> bool:
    """Whether memory is full. torch has a class of its own for a GPU's, and none for the processor's."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))
    )


def _fail(name: str, message: str, code: int, *, own: bool = False) -> int:
    try:
        shard = launched()
    except UsageError:  # it is what is told
        shard = Shard()
    # Of several processes all have the same command line, whose mistakes the first one tells.
    if shard.index == 0 or code != 2 or own:
        where = "" if shard.alone else f" (process {shard.index} of {shard.count})"
        print(f"error[{name}]{where}: {one_line(message)}", file=sys.stderr)
    return code


def _replace_closed_streams() -> None:
    """Put the null device where a standard stream is closed (`>&-`): the next file opened would take its place."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115


class _StdoutError(Exception):
    """What kept stdout from being written, apart from a reader that has left."""


class _Stream:
    """stdout or stderr, where some failures end no work: from the first of them on, nothing more is written.

    A reader that has left (`| head`) is no error, and a message that cannot be shown is none either.
    """

    def __init__(self, stream: TextIO, forgiven: type[OSError]) -> None:
        self._stream = stream
        self._forgiven = forgiven

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except self._forgiven:
            _to_nowhere(self._stream)
            return len(text)
        except OSError as error:
            raise _StdoutError(error.strerror) from error

    def flush(self) -> None:
        try:
            self._stream.flush()
        except self._forgiven:
            _to_nowhere(self._stream)
        except OSError as error:
            raise _StdoutError(error.strerror) from error


def _to_nowhere(stream: TextIO) -> None:
    """Let all that is written from now on vanish; Python would complain again when it flushes on exit."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _stdout_lost(error: _StdoutError) -> int:
    """The exit code when stdout could not be written, such as on a full disk."""
    _to_nowhere(sys.stdout)
    return _fail("output", f"standard output: cannot be written ({error})", 5)
