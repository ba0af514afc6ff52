"""Tiny runs of the real program in children that may be killed: how one begins, goes on, and what it must end in."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from children import Call, Child, Family, Work
from program import options
from tiny_runs import course, ending, files_of

from densesiam_seg.io.run_directory import STATUS
from densesiam_seg.training.checkpoint import Checkpoint, load_checkpoint

Program = Callable[..., Child]
"""The program with slim backbones: its arguments → a child that has ended."""


def sabotage(name: str, **arguments: Any) -> Call:
    """A preparation of a child."""
    return ("sabotage", name, arguments)


def slim(arguments: Sequence[object], *prepare: Call) -> Work:
    """The program with slim backbones."""
    return Work(list(map(str, arguments)), prepare=[sabotage("slim"), *prepare])


OFTEN = ("--checkpoint-every", "1")
"""A checkpoint after every step."""


@dataclass
class Programs:
    """Runs of `densesiam-seg train` in the folder of a family of children."""

    family: Family
    images: str
    settings: dict[str, Any] = field(default_factory=dict)

    def path(self, name: str) -> Path:
        return self.family.folder / name

    def begin(
        self, out: str | Path, *prepare: Call, more: Sequence[str] = (), **settings: Any
    ) -> Work:
        """A run in `out`."""
        given = options({**self.settings, **settings})
        where = ("--out", self.path(str(out)))
        return slim(["train", self.images, "--no-report", *where, *OFTEN, *given, *more], *prepare)

    def resume(self, out: str | Path, *prepare: Call) -> Work:
        """The same run, going on."""
        return slim(
            ["train", "--no-report", "--resume", "--out", self.path(str(out)), *OFTEN], *prepare
        )

    def again(self, out: str | Path, *prepare: Call, **settings: Any) -> Work:
        """What a user does after a sudden end: go on; where nothing had begun, give the first command again."""
        run = self.path(str(out))
        if (run / STATUS).exists():
            return self.resume(out, *prepare)
        return self.begin(out, *prepare, **settings)

    def finish(self, out: str | Path, **settings: Any) -> Child:
        """Go on to the end, which must be reached at once."""
        child = self.family.run(self.again(out, **settings))
        assert child.wait() == 0, child.stderr
        return child

    def whole(self, out: str | Path, **settings: Any) -> Path:
        """An uninterrupted run."""
        child = self.family.run(self.begin(out, **settings))
        assert child.wait() == 0, child.stderr
        return self.path(str(out))


def newest(run: Path) -> Checkpoint:
    """The last checkpoint of a run."""
    loaded = load_checkpoint(run / "checkpoints")
    assert loaded is not None, f"{run}: no checkpoint"
    return loaded


def digests(run: Path) -> dict[str, str]:
    """SHA-256 of every tensor of the last checkpoint: weights, moments, centroids; and of every file of the model."""
    found = {
        name: hashlib.sha256(tensor.contiguous().flatten().numpy().tobytes()).hexdigest()
        for name, tensor in newest(run).tensors.items()
    }
    model = {
        name: hashlib.sha256(data).hexdigest() for name, data in files_of(run / "model").items()
    }
    assert "config.json" in model
    return found | model


def same_bits(run: Path, reference: Path) -> None:
    """The run ended as the reference did, to the last bit, with every record once, and left nothing half done."""
    ours, theirs = digests(run), digests(reference)
    different = [name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)]
    assert not different, f"{run}: {sorted(different)[:5]} differ"
    assert course(run) == course(reference)
    assert ending(run) == ("done", 0)
    leftovers = [path for path in run.rglob("*") if path.name.startswith((".tmp-", ".del-"))]
    assert not leftovers, leftovers


def told_once(child: Child, name: str | None = None) -> str:
    """The one error line of a program that has ended, which is no traceback; of that name, if one is given."""
    text = child.stderr
    assert "Traceback" not in text, text
    lines = [line for line in text.splitlines() if line.startswith("error[")]
    assert len(lines) == 1, text
    assert text.splitlines()[-1] == lines[0]
    found, _, words = lines[0].removeprefix("error[").partition("]: ")
    assert words and name in (None, found), lines[0]
    return words
