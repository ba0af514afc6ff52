"""The program as a whole: a fast start, its commands and options, one line and one code for every error."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import typer

from densesiam_seg import __version__
from densesiam_seg.cli import app as app_module
from densesiam_seg.errors import (
    BusyError,
    DenseSiamError,
    ImageError,
    InputError,
    ModelError,
    NumericError,
    OutputError,
    PartialError,
    StoppedError,
    UsageError,
    WorkerError,
)

Cli = Callable[..., tuple[int, str, str]]

OPTIONS = {
    "": "--version --debug --install-completion --show-completion",
    "train": "--out/-o --overwrite --resume --config --init-from --max-bad --visualize-every --json --quiet/-q "
    "--preset --method --clusters/-k --epochs --batch-size/-b --image-size --learning-rate --weights --backbone "
    "--freeze/--no-freeze --max-time --seed --over-clusters --channels --prior --prior-weight --similarity "
    "--balance --image-weight --pixel-weight --over-cluster-weight --segmentation-weight --region-weight "
    "--region-start --region-stop-gradient/--no-region-stop-gradient --replay --optimizer --schedule --rate-scaling "
    "--momentum --weight-decay --device --precision --workers/-j --threads --cache --cache-dir --max-pixels",
    "predict": "--model/-m --out/-o --overlay --overwrite --resume --json --quiet/-q --readout --clusters/-k "
    "--fit-images --over-clusters --seed --flip --scales --refine --device --precision --batch-size/-b --max-pixels",
    "evaluate": "--root --model/-m --split --list --allow-missing --out/-o --overwrite --json --quiet/-q --protocol "
    "--image-size --readout --clusters/-k --fit-images --over-clusters --seed --flip --scales --refine --device "
    "--precision",
    "pretrain": "--out/-o --overwrite --resume --config --init-from --max-bad --visualize-every --json --quiet/-q "
    "--preset --epochs --batch-size/-b --image-size --learning-rate --weights --backbone "
    "--freeze/--no-freeze --features --max-time --seed "
    "--channels --categories --correspondence --sampling --grid --oversample --importance --distance-threshold "
    "--similarity --image-weight --pixel-weight --region-weight "
    "--region-stop-gradient/--no-region-stop-gradient --min-scale --max-scale --optimizer --schedule --rate-scaling "
    "--momentum --weight-decay --device --precision --workers/-j --threads --cache --cache-dir --max-pixels",
    "probe": "--dataset --root --split --train-split --out/-o --overwrite --json --quiet/-q --kind --protocol "
    "--image-size --clusters/-k --seed --device --precision",
    "visualize": "--out/-o --overwrite --json --quiet/-q --clusters-shown --limit --columns --readout --clusters/-k "
    "--fit-images --over-clusters --seed --device --precision --max-pixels",
    "export": "--out/-o --backbone --overwrite --json --quiet/-q",
    "study": "--root --images --out/-o --overwrite --resume --config --split --train-split --json --quiet/-q --seeds "
    "--seed --preset --epochs --batch-size/-b --image-size --learning-rate --weights --backbone --channels --protocol "
    "--device --precision --workers/-j --threads",
    "demo": "--out/-o --overwrite --json --quiet/-q --seed --epochs",
    "doctor": "--json",
}
ARGUMENTS = {
    "train": ["images"],
    "predict": ["images"],
    "evaluate": ["dataset"],
    "pretrain": ["images"],
    "probe": ["run"],
    "visualize": ["run", "images"],
    "export": ["run"],
    "study": ["study", "dataset"],
}

HELP_PROBE = """
import contextlib, io, json, os, sys
from densesiam_seg.cli.app import main
calls = [["--help"], ["-h"], [], ["--version"]]
calls += [[name, "--help"] for name in sys.argv[1:]]
found = []
for arguments in [*calls, "completion"]:
    sys.argv = ["densesiam-seg", *arguments]
    if arguments == "completion":
        sys.argv = ["densesiam-seg"]
        os.environ |= {"_DENSESIAM_SEG_COMPLETE": "complete_bash", "COMP_WORDS": "densesiam-seg tr", "COMP_CWORD": "1"}
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            main()
        except SystemExit as end:
            code = end.code
    heavy = {"torch", "torchvision", "faiss", "numpy", "scipy", "PIL", "safetensors"} & sys.modules.keys()
    found.append([" ".join(arguments), code, out.getvalue(), sorted(heavy)])
print(json.dumps(found))
"""

MISTAKES = [
    ["nonsense"],
    ["predict"],
    ["predict", "x", "--batch-size", "some"],
    ["predict", "x", "--scales", "big"],
    ["evaluate", "camvid", "--root", "x", "--refine", "crf"],
    ["evaluate", "camvid", "--root", "x", "--out", "."],
    ["train", "x", "--epochs", "two"],
    ["train"],
    ["train", "x", "--max-time", "soon"],
    ["train", "x", "--config", "gone.toml"],
    ["pretrain"],
    ["export", "x", "--out", "y.pth"],
    ["probe", "x", "--dataset", "camvid", "--root", "x", "--out", "."],
]

MISTAKE_PROBE = """
import contextlib, io, json, sys
from densesiam_seg.cli.app import main
found = []
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["densesiam-seg", *arguments]
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            main()
        except SystemExit as end:
            code = end.code
    heavy = {"torch", "torchvision", "faiss", "numpy", "scipy", "PIL", "safetensors"} & sys.modules.keys()
    found.append([" ".join(arguments), code, sorted(heavy)])
print(json.dumps(found))
"""

PREDICT_PROBE = """
import sys
from PIL import Image
from densesiam_seg.cli.app import main
from densesiam_seg.network.model import Architecture, build_network
from densesiam_seg.inference.segmenter import ModelCard, Segmenter
architecture = Architecture(channels=8, clusters=5, over_clusters=6)
card = ModelCard(architecture, 32, clusters=5)
Segmenter(build_network(architecture, seed=1), card, device="cpu", precision="fp32").save("model")
Image.new("RGB", (32, 32)).save("a.png")
sys.argv = ["densesiam-seg", "predict", "a.png", "--model", "model", "--out", "mask.png"]
try:
    main()
except SystemExit as end:
    assert end.code == 0
ours = {f"densesiam_seg.{name}" for name in ("evaluation", "training", "studies", "demo")}
theirs = {"faiss", "scipy"}
assert not (ours | theirs) & sys.modules.keys(), (ours | theirs) & sys.modules.keys()
"""


@pytest.fixture(scope="module")
def program() -> Any:
    return typer.main.get_command(app_module.app)


def raising(error: BaseException) -> Callable[..., int]:
    def app(*, standalone_mode: bool) -> int:
        assert standalone_mode is False
        raise error

    return app


class TestStart:
    def test_help_version_and_completion_load_nothing_heavy(self) -> None:
        environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
        run = subprocess.run(
            [sys.executable, "-c", HELP_PROBE, *list(OPTIONS)[1:]],
            env=environment,
            check=True,
            capture_output=True,
        )
        found = {call: (code, out) for call, code, out, _ in json.loads(run.stdout)}
        assert {call: heavy for call, _, _, heavy in json.loads(run.stdout) if heavy} == {}
        assert {call: code for call, (code, _) in found.items() if code} == {"": 2}
        for call in ("--help", "-h", ""):
            assert all(name in found[call][1] for name in OPTIONS), call
        assert found["--version"][1] == f"densesiam-seg {__version__}\n"
        assert found["c o m p l e t i o n"][1].split() == ["train"]
        assert run.stderr == b""

    def test_mistakes_load_nothing_heavy(self) -> None:
        run = subprocess.run(
            [sys.executable, "-c", MISTAKE_PROBE, json.dumps(MISTAKES)],
            check=True,
            capture_output=True,
        )
        for call, code, heavy in json.loads(run.stdout):
            assert code in (2, 3), call
            assert heavy == [], call

    def test_a_prediction_loads_no_clustering_and_no_other_command(self, tmp_path: Path) -> None:
        subprocess.run(
            [sys.executable, "-P", "-c", PREDICT_PROBE],
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )

    def test_without_a_command_the_help_and_no_empty_error(self, cli: Cli) -> None:
        code, out, error = cli()
        assert code == 2
        assert "Usage: densesiam-seg" in out
        assert error == ""

    def test_the_exit_codes_are_in_the_help(self, cli: Cli) -> None:
        _, out, _ = cli("--help")
        text = " ".join(out.split())
        assert "0 ok, 1 bug, 2 usage, 3 bad input, 4 model refused, 5 cannot write" in text
        assert "9 done but some inputs failed, 130/143 stopped by a signal after saving" in text


class TestOptions:
    """Frozen, so that a change of the command line is deliberate."""

    def shown(self, command: Any) -> list[str]:
        return [
            "/".join([*option.opts, *option.secondary_opts])
            for option in command.params
            if option.param_type_name == "option" and "--help" not in option.opts
        ]

    def test_commands(self, program: Any) -> None:
        assert ["", *program.commands] == list(OPTIONS)

    @pytest.mark.parametrize("name", OPTIONS)
    def test_options(self, program: Any, name: str) -> None:
        assert self.shown(program.commands[name] if name else program) == OPTIONS[name].split()

    @pytest.mark.parametrize("name", OPTIONS)
    def test_arguments(self, program: Any, name: str) -> None:
        command = program.commands[name] if name else program
        found = [each.name for each in command.params if each.param_type_name == "argument"]
        assert found == ARGUMENTS.get(name, [])

    @pytest.mark.parametrize("name", OPTIONS)
    def test_each_has_a_help_text_of_one_sentence(self, program: Any, name: str) -> None:
        command = program.commands[name] if name else program
        for option in command.params:
            assert option.help, option.name
            assert option.help.endswith("."), option.help

    def test_one_name_means_one_thing(self, program: Any) -> None:
        """An option that several commands have is spelled the same in each."""
        spellings: dict[str, set[str]] = {}
        for name in OPTIONS:
            for option in self.shown(program.commands[name]) if name else []:
                spellings.setdefault(option.split("/")[0], set()).add(option)
        assert {name: each for name, each in spellings.items() if len(each) > 1} == {}


class TestErrors:
    @pytest.mark.parametrize(
        ("error", "code", "name"),
        [
            (UsageError("x: wrong; mend it"), 2, "usage"),
            (InputError("x: wrong; mend it"), 3, "input"),
            (ImageError("x", "empty", "wrong", "mend it"), 3, "image"),
            (ModelError("x: wrong; mend it"), 4, "model"),
            (OutputError("x: wrong; mend it"), 5, "output"),
            (NumericError("x: wrong; mend it"), 6, "numeric"),
            (BusyError("x: wrong; mend it"), 7, "busy"),
            (WorkerError("x: wrong; mend it"), 8, "worker"),
            (PartialError("x: wrong; mend it"), 9, "partial"),
            (StoppedError("x: wrong; mend it", 2), 130, "stopped"),
            (StoppedError("x: wrong; mend it", 15), 143, "stopped"),
        ],
    )
    def test_one_line_and_the_documented_code(
        self,
        cli: Cli,
        monkeypatch: pytest.MonkeyPatch,
        error: DenseSiamError,
        code: int,
        name: str,
    ) -> None:
        monkeypatch.setattr(app_module, "app", raising(error))
        assert cli("train") == (code, "", f"error[{name}]: x: wrong; mend it\n")

    def test_debug_shows_the_traceback(self, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(app_module, "app", raising(ModelError("x")))
        with pytest.raises(ModelError):
            cli("--debug", "train")
        with pytest.raises(typer.TyperException):
            monkeypatch.undo()
            monkeypatch.setattr(sys, "argv", ["densesiam-seg", "--debug", "nonsense"])
            app_module.main()

    def test_a_bug_stays_a_traceback(self, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        for bug in (AssertionError("b"), FileNotFoundError(2, "none", "file.txt")):
            monkeypatch.setattr(app_module, "app", raising(bug))
            with pytest.raises(type(bug)):
                cli("train")

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), typer.Abort()])
    def test_an_interruption(
        self, cli: Cli, monkeypatch: pytest.MonkeyPatch, error: BaseException
    ) -> None:
        monkeypatch.setattr(app_module, "app", raising(error))
        assert cli("train") == (130, "", "error[stopped]: interrupted\n")

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["nonsense"], "No such command 'nonsense'."),
            (["train", "--bogus"], "No such option: --bogus"),
            (["predict"], "Missing argument 'images'."),
            (["evaluate", "camvid"], "Missing option '--root'."),
            (["train", "x", "--epochs", "two"], "Invalid value for '--epochs'"),
            (
                ["train", "x", "--preset", "huge"],
                "'huge' is not one of 'fast', 'balanced', 'paper'",
            ),
            (["train", "x", "--max-bad", "2"], "Invalid value for '--max-bad'"),
            (["demo", "--seed", "-1"], "Invalid value for '--seed'"),
            (["predict", "x", "--seed", str(2**63)], "Invalid value for '--seed'"),
            (["demo", "--epochs", "0"], "Invalid value for '--epochs'"),
            (["doctor", "--json", "more"], "unexpected extra argument"),
        ],
    )
    def test_usage(self, cli: Cli, arguments: list[str], words: str) -> None:
        code, out, error = cli(*arguments)
        assert (code, out) == (2, "")
        assert error.startswith("error[usage]: ")
        assert words in error
        assert len(error.splitlines()) == 1

    def test_strange_names_stay_on_one_printable_line(
        self, cli: Cli, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        message = "a\nb\r\x1b[2J\x85\u2028c" + os.fsdecode(b"\xff") + "[/red] é 木 …"
        monkeypatch.setattr(app_module, "app", raising(InputError(message)))
        _, _, error = cli("train")
        shown = r"a\nb\r\x1b[2J\x85\u2028c\udcff[/red] é 木 …"
        assert error == f"error[input]: {shown}\n"


class TestStdout:
    def test_characters_that_the_terminal_lacks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="latin-1"))

        def app(*, standalone_mode: bool) -> None:
            print("é – 木")

        monkeypatch.setattr(app_module, "app", app)
        with pytest.raises(SystemExit) as end:
            app_module.main()
        assert end.value.code == 0
        assert raw.getvalue() == b"\xe9 \\u2013 \\u6728\n"

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
    @pytest.mark.parametrize("unbuffered", ["", "1"])
    def test_a_full_disk(self, unbuffered: str) -> None:
        with Path("/dev/full").open("wb") as full:
            run = self.version(full, unbuffered)
        assert run.returncode == 5
        line = "error[output]: standard output: cannot be written (No space left on device)\n"
        assert run.stderr.decode() == line

    @pytest.mark.parametrize("unbuffered", ["", "1"])
    def test_a_reader_that_has_left(self, unbuffered: str) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        with os.fdopen(writer, "wb") as pipe:
            run = self.version(pipe, unbuffered)
        assert (run.returncode, run.stderr) == (0, b"")

    def version(self, stdout: Any, unbuffered: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [
                sys.executable,
                "-P",
                "-c",
                "from densesiam_seg.cli.app import main; main()",
                "--version",
            ],
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            stdout=stdout,
            stderr=subprocess.PIPE,
            check=False,
        )

    def test_an_earlier_error_keeps_its_code(
        self, cli: Cli, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(app_module, "app", raising(PartialError("some")))

        class Gone(io.StringIO):
            def flush(self) -> None:
                raise BrokenPipeError(32, "Broken pipe")

        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", Gone())
            patch.setattr(sys, "argv", ["densesiam-seg"])
            with pytest.raises(SystemExit) as end:
                app_module.main()
        assert cast(int, end.value.code) == 9
