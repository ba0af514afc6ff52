"""Runs that are killed, stopped, given numbers that are none, hurried, crowded and kept long."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from children import NOBODY, PATIENCE, Child
from disks import mounted
from program import options
from programs import OFTEN, Programs, digests, newest, sabotage, same_bits, slim, told_once
from tiny_runs import ending, files_of
from trials import Trials, fault

from densesiam_seg.io.records import read_records
from densesiam_seg.io.run_directory import read_status

pytestmark = pytest.mark.skipif(os.name != "posix", reason="POSIX processes and signals")

ROOT = Path(__file__).resolve().parents[2]
PHASES = ("reading", "clustering", "training", "saving", "deleting", "model")
"""As a run tells them; see sabotage.tell_phases."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)


def phase_counts(programs: Programs, out: str, **settings: Any) -> dict[str, int]:
    """How often an uninterrupted run comes to each phase."""
    (child,) = programs.family.start(programs.begin(out, sabotage("tell_phases"), **settings))
    told = list(iter(child.next, None))
    assert child.wait() == 0, child.stderr
    return {phase: told.count(phase) for phase in PHASES}


def wait_for(child: Child, phase: str, number: int) -> bool:
    """Until the run gets to a phase for the n-th time; False if it has ended before."""
    while number and (told := child.next()) is not None:
        number -= told == phase
    return not number


def pause(child: Child) -> None:
    """Stop the process where it is, for a look at it."""
    child.send(signal.SIGSTOP)
    stat = Path("/proc", str(child.pid), "stat")
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] not in "TZX":
        time.sleep(0.001)


class TestKill:
    @fault("F1", "kill -9, 1 to 3 times in a run, at random", "the bits of an uninterrupted run")
    def test_at_random(self, trials: Trials, programs: Programs, reference: Path) -> None:
        draw = random.Random(0)
        counts = phase_counts(programs, "counted")
        assert all(counts.values()), counts
        names = set(digests(reference))
        assert {"method.centroids_1", "method.epoch", "config.json"} <= names
        # Pseudo-labels follow from the encoder as it was when their epoch began.
        for kind in ("optimizer.", "method.start."):
            assert any(name.startswith(kind) for name in names)
        landed = dict.fromkeys(PHASES, 0)
        for number in trials.several(4, 100):
            with trials.trial(number):
                out = f"killed-{number}"
                for kill in range(draw.randint(1, 3)):
                    phase = PHASES[number % len(PHASES)] if kill == 0 else draw.choice(PHASES)
                    work = programs.again(out, sabotage("tell_phases"))
                    (child,) = programs.family.start(work)
                    if wait_for(child, phase, draw.randint(1, counts[phase])):
                        time.sleep(draw.uniform(0, 0.01))
                        child.send(signal.SIGKILL)
                    code = child.wait()
                    assert code in (0, -signal.SIGKILL), child.stderr
                    landed[phase] += code == -signal.SIGKILL
                programs.finish(out)
                same_bits(programs.path(out), reference)
        assert sum(landed.values()) >= trials.count, landed
        assert all(landed.values()) or not trials.full, landed

    @fault("F1", "kill -9 in place of each change of the disk", "the bits of an uninterrupted run")
    def test_in_place_of_every_call(self, trials: Trials, programs: Programs) -> None:
        whole = programs.whole("short", epochs=1)
        for number in range(1, 10_000):
            if not trials.full and number % 46 != 5 and number < 200:
                continue
            out = f"call-{number}"
            child = programs.family.run(
                programs.begin(out, sabotage("kill_at", number=number), epochs=1)
            )
            if child.wait() == 0:
                assert number > 80
                break
            with trials.trial(number):
                assert child.wait() == -signal.SIGKILL, child.stderr
                programs.finish(out, epochs=1)
                same_bits(programs.path(out), whole)


class TestStop:
    @fault("F2", "SIGTERM, SIGINT; to one process, to its group", "exit 143, 130; saved in a step")
    def test_at_random(self, trials: Trials, programs: Programs) -> None:
        draw = random.Random(1)
        wholes = {w: programs.whole(f"workers-{w}", workers=w) for w in (0, 2)}
        counts = phase_counts(programs, "counted-stops")
        stopped = 0
        for number in trials.several(4, 50):
            with trials.trial(number):
                out, workers, kind = f"stopped-{number}", 2 * (number % 2), SIGNALS[number // 2 % 2]
                (child,) = programs.family.start(
                    programs.begin(out, sabotage("tell_phases"), workers=workers)
                )
                # In the last step there is nothing left to stop; before the first one, nothing to save.
                phase = ("", *PHASES[:4])[number % 5]
                if not phase:
                    time.sleep(draw.uniform(0.01, 0.1))
                if not phase or wait_for(child, phase, draw.randint(1, counts[phase] - 1)):
                    time.sleep(draw.uniform(0, 0.01))
                    pause(child)
                    child.send(kind, group=draw.random() < 0.5)
                    while programs.family.read(0):
                        pass
                    child.told.clear()
                    child.send(signal.SIGCONT)
                code = child.wait()
                assert code in (0, 128 + kind), child.stderr
                if code:
                    stopped += 1
                    told_once(child, "stopped")
                    assert child.told.count("training") <= 1, child.told
                    if phase:
                        assert ending(programs.path(out)) == ("stopped", 128 + kind)
                programs.finish(out, workers=workers)
                same_bits(programs.path(out), wholes[workers])
        assert stopped >= trials.count / 2

    @fault("F2", "SIGTERM, SIGINT after each step", "that very step is saved; exit 143, 130")
    def test_after_each_step(self, trials: Trials, programs: Programs, reference: Path) -> None:
        for number in trials.several(2, 8):
            with trials.trial(number):
                out, step, kind = f"step-{number}", 1 + (number + 1) % 4, SIGNALS[number % 2]
                stop = sabotage("stop_itself", step=step, numbers=[kind])
                child = programs.family.run(programs.begin(out, stop, sabotage("tell_phases")))
                assert child.wait() == 128 + kind, child.stderr
                assert child.told.count("training") == step
                assert newest(programs.path(out)).step == step
                programs.finish(out)
                same_bits(programs.path(out), reference)

    @fault("F2", "a second signal while the first is obeyed", "an exit at once; the bits of a run")
    def test_twice(self, trials: Trials, programs: Programs, reference: Path) -> None:
        for number in trials.several(2, 12):
            with trials.trial(number):
                out, step = f"twice-{number}", 1 + number % 3
                kinds = [SIGNALS[number % 2], SIGNALS[number // 2 % 2]]
                stop = sabotage("stop_itself", step=step, numbers=kinds)
                child = programs.family.run(programs.begin(out, stop))
                assert child.wait() == 128 + kinds[1], child.stderr
                run = programs.path(out)
                assert newest(run).step == step - 1, "the second signal waits for no save"
                assert read_status(run)["status"] == "running"
                programs.finish(out)
                same_bits(run, reference)

    @fault(
        "F2", "the same to `python -m densesiam_seg train`, a ResNet-18", "exit 143, 130; the bits"
    )
    def test_the_real_program(self, trials: Trials, programs: Programs) -> None:
        if not trials.full:
            pytest.skip("five starts of Python take too long for `make test`")
        settings = {**programs.settings, "epochs": 4, "workers": 2, "cache": "none"}
        words = [programs.images, *options(settings), "--out"]
        whole = programs.path("real")
        with real(programs, *words, str(whole)) as process:
            assert process.wait(PATIENCE) == 0
        for kind in SIGNALS:
            with trials.trial(kind.name):
                run = programs.path(f"real-{kind.name}")
                with real(programs, *words, str(run)) as process:
                    while process.poll() is None and not read_records(run / "metrics.jsonl"):
                        time.sleep(0.01)
                    os.killpg(process.pid, kind)
                    assert process.stderr is not None
                    text = process.stderr.read()
                    assert process.wait(PATIENCE) == 128 + kind, text
                assert "error[stopped]: " in text.splitlines()[-1]
                with real(programs, "--resume", "--out", str(run)) as process:
                    assert process.wait(PATIENCE) == 0
                same_bits(run, whole)


class TestNumbers:
    CASES: tuple[tuple[str, dict[str, str]], ...] = (
        ("spoil_loss", {}),
        ("spoil_gradient", {}),
        *(("spoil_features", {"kind": kind}) for kind in ("nan", "inf", "huge", "constant")),
    )

    @fault("F9", "NaN, infinities, 1e19 and constants in training", "exit 6; good weights stay")
    def test_in_training(self, trials: Trials, programs: Programs) -> None:
        # The loop is the same for all methods, so `make test` tries one.
        methods = (("densesiam", 2), ("simsiam", 2), ("picie", 4), ("mdc", 2))
        for method, step in methods[: len(trials.several(1, 4))]:
            for name, given in self.CASES:
                with trials.trial(f"{method} {name} {given}"):
                    self.spoiled(programs, method, step, name, given)

    @fault("F9", "NaN, infinities, 1e19 and constants in clustering", "exit 6; good weights stay")
    def test_in_clustering(self, trials: Trials, programs: Programs) -> None:
        for method in ("mdc", "picie")[: len(trials.several(1, 2))]:
            for name, given in self.CASES[2:]:
                with trials.trial(f"{method} {given}"):
                    self.spoiled(programs, method, 3, name, given)

    @fault("F9", "the same features in a read-out by k-means", "exit 6 or 3, never an abort")
    def test_in_a_read_out(self, trials: Trials, programs: Programs, reference: Path) -> None:
        image = next(Path(programs.images).parent.iterdir())
        for kind, error in (
            *(("nan", "numeric"), ("inf", "numeric"), ("huge", "numeric"), ("constant", "input")),
        ):
            with trials.trial(kind):
                mask = programs.path(f"{kind}.png")
                words = ["predict", image, "--model", reference, "--out", mask]
                words += ["--device", "cpu", "--readout", "kmeans"]
                spoil = sabotage("spoil_features", kind=kind)
                child = programs.family.run(slim(words, spoil))
                assert child.wait() == (6 if error == "numeric" else 3), child.stderr
                told_once(child, error)
                assert not mask.exists()

    def spoiled(
        self, programs: Programs, method: str, step: int, name: str, given: dict[str, Any]
    ) -> None:
        out = f"{method}-{name}-{given.get('kind', '')}-{step}"
        spoil = sabotage(name, step=step, **given)
        tell = sabotage("tell_phases")
        child = programs.family.run(programs.begin(out, spoil, tell, method=method))
        assert child.wait() == 6, f"exit {child.wait()}: {child.stderr}"
        text = told_once(child, "numeric")
        status = read_status(programs.path(out))
        assert (status["status"], status["exit_code"], status["reason"]) == ("failed", 6, text)
        assert f"step {step}" in text
        assert status["step"] == step
        names = {path.name for path in Path(programs.images).parent.iterdir()}
        assert len(status["files"]) == 4 and set(status["files"]) <= names
        assert all(image in text for image in status["files"])
        kept = newest(programs.path(out))
        assert kept.step == step - 1
        finite(kept.tensors)
        programs.finish(out)
        whole = programs.path(f"whole-{method}")
        if not whole.exists():
            programs.whole(whole.name, method=method)
        same_bits(programs.path(out), whole)


def finite(tensors: dict[str, Any]) -> None:
    bad = [name for name, t in tensors.items() if not bool(t.float().isfinite().all())]
    assert not bad, bad


def real(programs: Programs, *words: str) -> subprocess.Popen[str]:
    """The program as a user starts it, in a process group of its own."""
    command = [sys.executable, "-m", "densesiam_seg", "train", "--no-report", *words]
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=ROOT
    )


UNUSUAL = ("SystemExit", "GeneratorExit", "BaseException", "StopIteration")
"""What ends Python itself or a loop, and is told in other words."""


class TestThreads:
    ERRORS = (
        *("MemoryError", "RuntimeError", "OSError", "AssertionError", "RecursionError"),
        *("KeyboardInterrupt", "SystemExit", "GeneratorExit", "BaseException", "StopIteration"),
    )

    @fault("F11", "a thread that reads images dies", "exit 1, of memory 8, no hang; then the bits")
    def test_dies(self, trials: Trials, programs: Programs, reference: Path) -> None:
        """Worker processes are for GPUs (`tests/images/test_crew.py`). What no reader raises is a bug of ours."""
        errors = self.ERRORS if trials.full else self.ERRORS[:4]
        for number, error in enumerate(errors):
            for workers in (0, 2) if trials.full else (2 * (number % 2),):
                with trials.trial(f"{error}, {workers} workers"):
                    out = f"dead-{error}-{workers}"
                    # In memory, so that images are read at the beginning, or anew in each epoch.
                    cache = ("ram", "none")[number % 2]
                    spoil = sabotage(
                        "spoil_decoding", number=5 + 8 * (cache == "none"), error=error
                    )
                    more: dict[str, Any] = {"workers": workers, "cache": cache}
                    (child,) = programs.family.start(programs.begin(out, spoil, **more))
                    code = (
                        8 if error == "MemoryError" else 130 if error == "KeyboardInterrupt" else 1
                    )
                    assert child.wait() == code, child.stderr
                    if code == 8:
                        told_once(child, "worker")
                    elif code == 1 and error not in UNUSUAL:
                        assert "injected" in told_once(child, "bug")
                    status = read_status(programs.path(out))
                    assert status["status"] == "failed" and status["reason"]
                    assert status["exit_code"] == (code if code == 8 else 1)
                    programs.finish(out, **more)
                    same_bits(programs.path(out), reference)

    @fault("F11", "a thread that reads images hangs", "exit 8 that names the image; then the bits")
    def test_hangs(self, trials: Trials, programs: Programs, reference: Path) -> None:
        for number in trials.several(2, 6):
            with trials.trial(number):
                out, cache = f"hung-{number}", ("none", "ram")[number % 2]
                more: dict[str, Any] = {"workers": 2, "cache": cache}
                hang = sabotage("spoil_decoding", number=3 + 2 * (number % 3), error="hang")
                impatient = sabotage("less_patience", seconds=1.0)
                child = programs.family.run(programs.begin(out, hang, impatient, **more))
                assert child.wait() == 8, child.stderr
                text = told_once(child, "worker")
                assert any(str(path) in text for path in Path(programs.images).parent.iterdir())
                assert ending(programs.path(out)) == ("failed", 8)
                programs.finish(out, **more)
                same_bits(programs.path(out), reference)

    @fault("F11", "an image hangs where no thread reads ahead", "two signals end it, nothing else")
    def test_hangs_without_threads(self, trials: Trials, programs: Programs) -> None:
        hang = [sabotage("spoil_decoding", number=3, error="hang")]
        with trials.trial("two signals"):
            (child,) = programs.family.start(programs.begin("hung", *hang, workers=0))
            assert child.next() == "decoding hang"
            while child.status is None:
                child.send(signal.SIGTERM)
                programs.family.read(0.1)
            assert child.wait() == 143
            programs.finish("hung")


class TestPlace:
    @fault(
        "F12", "two starts in one folder at once", "one runs; exit 7, or 2 for what it has begun"
    )
    def test_two_starts(self, trials: Trials, programs: Programs) -> None:
        whole = programs.whole("first", epochs=1)
        ways = ("", "--overwrite", "--resume")
        codes: list[int] = []
        for number in trials.several(3, 20):
            way = ways[number % 3]
            with trials.trial(f"{number} {way}"):
                out = f"both-{number}"
                work = programs.begin(out, more=[way] if way else [], epochs=1)
                if way == "--resume":
                    stop = sabotage("stop_itself", step=1, numbers=[signal.SIGTERM])
                    assert programs.family.run(programs.begin(out, stop, epochs=1)).wait() == 143
                    work = programs.resume(out)
                both = programs.family.start(work, work)
                ends = [child.wait() for child in both]
                assert 0 in ends, [child.stderr for child in both]
                loser = both[ends.index(0) - 1]
                winner = both[ends.index(0)]
                if loser.wait() == 7:
                    assert f"process {winner.pid} on " in told_once(loser, "busy")
                elif loser.wait() == 2:
                    # Not in use yet or no longer, and not empty.
                    assert way == "" and "is not empty" in told_once(loser, "usage")
                else:
                    # The first had ended before the second looked: a run of its own, or nothing to do.
                    assert loser.wait() == 0 and way, loser.stderr
                codes.append(loser.wait())
                same_bits(programs.path(out), whole)
        assert 7 in codes or not trials.full, codes

    @fault("F12", "a start, a resume while a run is under way", "exit 7 that names it; it goes on")
    def test_under_way(self, trials: Trials, programs: Programs, reference: Path) -> None:
        for number in trials.several(1, 5):
            out = f"busy-{number}"
            (holder,) = programs.family.start(programs.begin(out, sabotage("tell_phases")))
            assert wait_for(holder, "training", 1 + number % 3)
            pause(holder)
            assert holder.status is None
            before = files_of(programs.path(out))
            for way in ("--resume", "--overwrite", ""):
                with trials.trial(way or "a start"):
                    work = programs.begin(out, more=[way] if way else [])
                    if way == "--resume":
                        work = programs.resume(out)
                    child = programs.family.run(work)
                    if way:
                        assert child.wait() == 7, child.stderr
                        assert f"process {holder.pid} on " in told_once(child, "busy")
                    else:
                        assert child.wait() in (2, 7), child.stderr
                    assert files_of(programs.path(out)) == before
            holder.send(signal.SIGCONT)
            assert holder.wait() == 0, holder.stderr
            same_bits(programs.path(out), reference)

    @fault("F12", "a place that cannot be written, or is a file", "exit 5 (2 for a file) at once")
    def test_bad_places(self, trials: Trials, programs: Programs, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        with trials.trial("a file"):
            child = programs.family.run(programs.begin(tmp_path / "file", sabotage("tell_phases")))
            assert child.wait() == 5, child.stderr
            told_once(child, "output")
            assert not child.told
            assert (tmp_path / "file").read_text() == "mine"
        with trials.trial("below a file"):
            child = programs.family.run(programs.begin(tmp_path / "file" / "run"))
            assert child.wait() == 5, child.stderr
            told_once(child, "output")

    @fault("F12", "a read-only disk", "exit 5 before any work, and nothing is changed")
    def test_read_only_disk(
        self, trials: Trials, programs: Programs, reference: Path, tmp_path: Path
    ) -> None:
        with mounted(tmp_path / "disk", "size=16m") as disk:
            (disk / "empty").mkdir()
            shutil.copytree(reference, disk / "run")
            stopped = programs.path("stopped")
            stop = sabotage("stop_itself", step=2, numbers=[signal.SIGTERM])
            assert programs.family.run(programs.begin("stopped", stop)).wait() == 143
            shutil.copytree(stopped, disk / "stopped")
            before = files_of(disk)
            subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
            tell = sabotage("tell_phases")
            works = {
                "new": programs.begin(disk / "new", tell),
                "empty": programs.begin(disk / "empty", tell),
                "overwrite": programs.begin(disk / "run", tell, more=["--overwrite"]),
                "resume": programs.resume(disk / "stopped", tell),
            }
            for name, work in works.items():
                with trials.trial(name):
                    child = programs.family.run(work)
                    assert child.wait() == 5, child.stderr
                    assert "Read-only" in told_once(child, "output")
                    assert not child.told, "work was done"
            with trials.trial("nothing changed"):
                assert files_of(disk) == before

    @fault("F12", "a folder of another user", "exit 5 before any work, and nothing is changed")
    def test_folder_of_another(
        self, trials: Trials, programs: Programs, reference: Path, shared: Path
    ) -> None:
        if os.getuid() != 0:
            pytest.skip("only root becomes someone else")
        shared.chmod(0o755)
        images = shutil.copytree(Path(programs.images).parent, shared / "images")
        images.chmod(0o755)
        shutil.copytree(reference, shared / "run")
        (shared / "empty").mkdir()
        for name, more in (("new", []), ("empty", []), ("run", ["--overwrite"]), ("run", [])):
            with trials.trial(f"{name} {more}"):
                before = files_of(shared)
                work = programs.begin(shared / name, sabotage("tell_phases"), more=more)
                work.arguments[1] = str(images)
                if name == "run" and not more:
                    work = programs.resume(shared / name, sabotage("tell_phases"))
                child = programs.family.run(replace(work, user=NOBODY))
                assert child.wait() == 5, child.stderr
                told_once(child, "output")
                assert not child.told
                assert files_of(shared) == before


class TestLong:
    @fault("F24", "thousands of steps", "memory grows < 1 MB in 1,000; descriptors, threads stay")
    def test_soak(self, trials: Trials, programs: Programs) -> None:
        steps = len(trials.several(100, 5000))
        watch = sabotage("watch_resources", every=5 if trials.full else 2)
        more: dict[str, Any] = {"method": "densesiam", "workers": 2, "cache": "none"}
        # Checkpoints take longer than all else.
        work = programs.begin("long", watch, epochs=steps // 2, **more)
        rarely = ["--checkpoint-every", "25"]
        place = work.arguments.index(OFTEN[0])
        work.arguments[place : place + 2] = rarely
        (child,) = programs.family.start(work)
        lines = [line.split() for line in iter(child.next, None)]
        assert child.wait() == 0, child.stderr
        rows = np.array([line[1:] for line in lines if line[0] == "resources"], dtype=np.float64)
        at, resident, handles, threads = rows[len(rows) // 5 :].T
        with trials.trial("memory"):
            slope, _ = np.polyfit(2 * at, resident, 1)
            # Memory settles in the first 1,000 steps, which is more than `make test` makes.
            assert slope < (1.0 if trials.full else 100.0), f"{slope:.2f} MB in 1,000 steps"
        with trials.trial("descriptors"):
            assert len(set(handles)) == 1, sorted(set(handles))
        with trials.trial("threads"):
            assert len(set(threads)) == 1, sorted(set(threads))
