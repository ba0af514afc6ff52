"""Saves that the disk or the system's end cuts off, and checkpoints that are damaged later."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from children import Child, Family, Work
from disks import mounted
from disturbance import Disturbance
from programs import Programs, sabotage, same_bits, told_once
from programs import newest as newest_of
from saving import names, newest, save
from tiny_runs import ending
from trials import Trials, fault

from densesiam_seg.errors import ModelError, OutputError
from densesiam_seg.io.files import is_leftover, remove_leftovers
from densesiam_seg.io.lock import LOCK
from densesiam_seg.io.run_directory import read_status
from densesiam_seg.training.checkpoint import MANIFEST, TENSORS, load_checkpoint

pytestmark = pytest.mark.skipif(os.name != "posix", reason="POSIX processes")

CODES = (errno.ENOSPC, errno.EIO, errno.EROFS)


def saver(folder: Path, step: int, *prepare: object, size: int = 4, **options: bool) -> Work:
    """A child that saves once."""
    arguments = {"folder": str(folder), "step": step, "size": size, **options}
    return Work(call=("sabotage", "save_again", arguments), prepare=list(prepare))  # type: ignore[arg-type]


class TestKill:
    @pytest.mark.parametrize("advance", [1, 0], ids=["next step", "same step"])
    @fault("F1", "kill -9 in place of each change of the disk in a save", "the old or the new one")
    def test_every_call(
        self, trials: Trials, programs: Programs, tmp_path: Path, advance: int
    ) -> None:
        for step in (1, 2):
            save(tmp_path, step)
        step = 2
        for number in range(1, 100):
            with trials.trial(number):
                kill = sabotage("kill_at", number=number)
                child = programs.family.run(saver(tmp_path, step + advance, kill))
                before, step = step, newest(tmp_path) or 0
                assert step in (before, before + advance)
                if child.wait() == 0:
                    assert step == before + advance
                    break
                assert child.wait() == -9, child.stderr
        remove_leftovers(tmp_path)
        assert len(names(tmp_path)) == 2
        assert number > 15

    @fault("F1", "kill -9 at random while one save follows another", "none that ended is lost")
    def test_at_random(self, trials: Trials, programs: Programs, tmp_path: Path) -> None:
        draw = random.Random(0)
        step = 0
        for number in trials.several(10, 60):
            with trials.trial(number):
                options = {"folder": str(tmp_path), "first": step + 1, "size": 100_000}
                work = Work(call=("sabotage", "save_for_ever", options))
                (child,) = programs.family.start(work)
                finished = sum(child.next() == "saved" for _ in range(draw.randrange(3)))
                time.sleep(draw.uniform(0, 0.02))
                child.send(9)
                assert child.wait() == -9
                finished += child.told.count("saved")
                found = newest(tmp_path) or 0
                assert found in (step + finished, step + finished + 1)
                step = found
                remove_leftovers(tmp_path)
                assert len(names(tmp_path)) <= 3
        assert step >= trials.count / 2


class TestFailure:
    @pytest.mark.parametrize("advance", [1, 0], ids=["next step", "same step"])
    @pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
    @fault(
        "F3", "no space, a broken disk, a read-only one: each call", "exit 5; what was saved stays"
    )
    def test_of_every_call(
        self, trials: Trials, tmp_path: Path, lasting: bool, advance: int
    ) -> None:
        for code in CODES[: len(trials.several(1, 3))]:
            folder = tmp_path / str(code)
            for step in (1, 2):
                save(folder, step)
            step, number, left = 2, 0, 0
            while left <= 0:
                number += 1
                assert number < 100
                with trials.trial(f"{os.strerror(code)}, call {number}"):
                    left = self.fails(folder, step + advance, number, code, lasting)
                    assert newest(folder) in (step, step + advance)
                    # What cannot be deleted is deleted at the next start.
                    assert lasting or not list(folder.glob(".tmp-*"))
                    remove_leftovers(folder)
                    assert not any(map(is_leftover, folder.iterdir()))
                    step += advance
                    save(folder, step)  # a retry works
                    assert newest(folder) == step
            assert number > 15

    def fails(self, folder: Path, step: int, number: int, code: int, lasting: bool) -> int:
        """A save whose n-th call fails, or all from it on; returns how many calls more there would have to be."""

        def fail() -> None:
            if lasting:
                disturbance.left = 1
            raise OSError(code, os.strerror(code))

        with pytest.MonkeyPatch.context() as patch:
            disturbance = Disturbance(patch, number, fail)
            try:
                save(folder, step)
                failed = disturbance.seen[number - 1 : number]
                assert failed not in (["fsync"], ["write"], ["rename"]), f"{failed} is not told"
            except OutputError as error:
                assert error.exit_code == 5
                assert str(folder) in str(error) and os.strerror(code) in str(error)
                return 0
        return disturbance.left if not lasting or len(disturbance.seen) < number else 0

    @fault("F3", "every write takes half of what it is given", "the bits of an undisturbed run")
    def test_short_writes(
        self, trials: Trials, programs: Programs, reference: Path, tmp_path: Path
    ) -> None:
        with trials.trial("a save"):
            child = programs.family.run(saver(tmp_path, 7, sabotage("short_writes"), size=10_000))
            assert child.wait() == 0, child.stderr
            assert newest(tmp_path) == 7
        with trials.trial("a run"):
            child = programs.family.run(programs.begin("short-writes", sabotage("short_writes")))
            assert child.wait() == 0, child.stderr
            same_bits(programs.path("short-writes"), reference)

    CALLS = (
        *(("fsync", "EIO"), ("write", "ENOSPC"), ("rename", "EIO"), ("mkdir", "ENOSPC")),
        *(("openat", "EROFS"), ("unlinkat", "EIO"), ("rmdir", "EIO"), ("close", "EIO")),
    )

    @fault("F3", "the system refuses: strace, each call", "exit 5; what was saved stays")
    def test_of_the_system(self, trials: Trials, programs: Programs, tmp_path: Path) -> None:
        if os.getuid() != 0 or shutil.which("strace") is None:
            pytest.skip("strace, and root to use it on another process, are needed")
        injected = 0
        for call, error in self.CALLS[: len(trials.several(3, 8))]:
            folder = tmp_path / call
            for step in (1, 2):
                save(folder, step)
            step, hit, number = 2, True, 0
            while hit and number < 100:
                number += 1
                with trials.trial(f"{call} {number}"):
                    before, hit = step, False
                    child, log = traced(programs.family, folder, step + 1, call, error, number)
                    hit = "(INJECTED)" in log
                    injected += hit
                    step = newest(folder) or 0
                    assert step in (before, before + 1)
                    assert child.wait() in ((0, 5) if hit else (0,)), child.stderr
                    assert (step == before + 1) or child.wait() == 5, "lost in silence"
                    # The others may be those that delete what is no longer needed.
                    assert child.wait() == 5 or not hit or call not in TOLD, "not told"
                    if child.wait() == 5:
                        told_once(child, "output")
                    remove_leftovers(folder)
                    assert not any(map(is_leftover, folder.iterdir()))
        assert injected >= 6

    @fault("F3", "a save on a disk of 2 MB, 0 to 1.8 of them taken", "exit 5 or saved; retry works")
    def test_full_disk(self, trials: Trials, tmp_path: Path) -> None:
        draw = random.Random(0)
        ends = {True: 0, False: 0}
        with mounted(tmp_path / "disk", "size=2m") as disk:
            folder, filler, step = disk / "checkpoints", disk / "filler", 2
            for first in (1, 2):
                save(folder, first, size=50_000)
            for number in trials.several(10, 100):
                with trials.trial(number):
                    free = shutil.disk_usage(disk).free
                    filler.write_bytes(b"x" * min(free, draw.randrange(1_800_000)))
                    try:
                        save(folder, step + 1, size=50_000)
                        saved = True
                    except OutputError as error:
                        assert error.exit_code == 5 and "No space" in str(error)
                        saved = False
                    ends[saved] += 1
                    step += saved
                    assert newest(folder) == step
                    assert not any(map(is_leftover, folder.iterdir()))
                    filler.unlink()
                    step += 1
                    save(folder, step, size=50_000)
                    assert newest(folder) == step
        assert ends[True] and ends[False]

    @fault("F3", "a disk that fills up before a run, or under way", "exit 5; goes on to the bits")
    def test_disk_fills_up(
        self, trials: Trials, programs: Programs, reference: Path, tmp_path: Path
    ) -> None:
        draw = random.Random(0)
        with mounted(tmp_path / "small", "size=1m") as disk, trials.trial("no room for a run"):
            child = programs.family.run(programs.begin(disk / "run", sabotage("tell_phases")))
            assert child.wait() == 5, child.stderr
            told_once(child, "output")
            assert "training" not in child.told and "saving" not in child.told
            assert read_status(disk / "run")["exit_code"] == 5
        with mounted(tmp_path / "disk", "size=24m") as disk:
            for number in trials.several(3, 30):
                with trials.trial(number):
                    left = draw.randrange(200_000) if number % 3 else 0
                    run, step = disk / f"run-{number}", 1 + number % 4
                    fill = sabotage("fill_disk", step=step, left=left, folder=str(disk))
                    child = programs.family.run(programs.begin(run, fill))
                    (disk / "filler").unlink()
                    if left == 0:
                        assert child.wait() == 5
                    if child.wait():
                        assert child.wait() == 5, child.stderr
                        text = told_once(child, "output")
                        assert "No space" in text and str(run) in text
                        assert newest_of(run).step >= step - 1
                        programs.finish(run)
                    same_bits(run, reference)
                shutil.rmtree(run)

    @fault("F3", "each change of the disk in a run fails once", "exit 5 or no harm; then the bits")
    def test_in_a_run(self, trials: Trials, programs: Programs) -> None:
        whole = programs.whole("unhurt", epochs=1)
        codes = (*CODES, errno.EDQUOT, errno.EACCES)
        failed = 0
        for number in range(1, 10_000):
            if not trials.full and number % 46 != 7 and number < 200:
                continue
            out, code = f"fails-{number}", codes[number % len(codes)]
            way = "fail_from" if number % 3 == 0 else "fail_at"
            fail = sabotage(way, number=number, code=code)
            child = programs.family.run(programs.begin(out, fail, epochs=1))
            if not child.told:
                assert child.wait() == 0 and number > 80
                break
            with trials.trial(f"{number}: {child.told[0]}, {os.strerror(code)}, {way}"):
                assert child.wait() in (0, 5), child.stderr
                if child.wait() == 5:
                    failed += 1
                    text = told_once(child, "output")
                    assert os.strerror(code) in text and str(programs.path(out)) in text
                    run = programs.path(out)
                    # Before the lock is taken there is no run that could be noted.
                    if way == "fail_at" and (run / LOCK).exists() and LOCK not in text:
                        status = read_status(run)
                        # The very last call is after the run's end was noted, and what is done stays so.
                        assert status["exit_code"] == 5 or status["status"] == "done"
                programs.finish(out, epochs=1)
                same_bits(programs.path(out), whole)
        assert failed > trials.count / 2


TOLD = ("fsync", "write", "rename")
"""System calls that no save may do without."""


def traced(
    family: Family, folder: Path, step: int, call: str, error: str, number: int
) -> tuple[Child, str]:
    """A child whose n-th system call of a kind fails while it saves; and what strace wrote."""
    (child,) = family.start(saver(folder, step, warm=True, wait=True))
    assert child.next() == "ready"
    log = folder.parent / "strace.log"
    options = ["-f", "-qq", "-o", str(log), "-e", f"trace={call}"]
    inject = ["-e", f"inject={call}:error={error}:when={number}", "-p", str(child.pid)]
    with subprocess.Popen(["strace", *options, *inject], stderr=subprocess.PIPE) as tracer:
        status = Path("/proc", str(child.pid), "status")
        while tracer.poll() is None and "TracerPid:\t0\n" in status.read_text():
            time.sleep(0.002)
        child.send(signal.SIGUSR1)
        child.wait()
        if tracer.wait():
            assert tracer.stderr is not None
            pytest.skip(f"strace may not be used here ({tracer.stderr.read()!r})")
    return child, log.read_text()


class TestDamage:
    @fault(
        "F4", "cut at every length, a bit changed in every byte", "never loaded; the older one is"
    )
    def test_every_byte_of_a_small_one(self, trials: Trials, tmp_path: Path) -> None:
        draw = random.Random(0)
        save(tmp_path, 1)
        damaged = save(tmp_path, 2)
        for name in (TENSORS, MANIFEST):
            data = (damaged / name).read_bytes()
            mutants = [data[:length] for length in range(len(data))] + [data + b"\0"]
            for position in range(len(data)):
                flipped = bytearray(data)
                flipped[position] ^= 1 << draw.randrange(8)
                mutants.append(bytes(flipped))
            for number, mutant in enumerate(mutants):
                with trials.trial(f"{name} {number}"):
                    (damaged / name).write_bytes(mutant)
                    assert newest(tmp_path) == 1
            (damaged / name).write_bytes(data)
            assert newest(tmp_path) == 2
        assert trials.count > 500

    @fault("F4", "a run's checkpoints damaged at random", "never loaded; the older one, or exit 4")
    def test_at_random(self, trials: Trials, reference: Path, tmp_path: Path) -> None:
        folder = shutil.copytree(reference / "checkpoints", tmp_path / "checkpoints")
        draw = random.Random(0)
        older, last = sorted(folder.iterdir())
        files = {path: path.read_bytes() for run in (older, last) for path in run.iterdir()}
        assert len(files) == 4
        for number in trials.several(200, 2000):
            with trials.trial(number):
                path = last / draw.choice((TENSORS, MANIFEST))
                other = older / draw.choice((TENSORS, MANIFEST))
                both = number % 10 == 0
                for each in (path, other) if both else (path,):
                    damage(draw, files[each], each)
                if both:
                    with pytest.raises(ModelError, match=r"no checkpoint is sound \(2") as caught:
                        load_checkpoint(folder)
                    assert caught.value.exit_code == 4
                else:
                    loaded = load_checkpoint(folder)
                    assert loaded is not None
                    assert loaded.path == older
                    assert [refused for refused, _ in loaded.rejected] == [last]
                for each in (path, other):
                    each.write_bytes(files[each])
        loaded = load_checkpoint(folder)
        assert loaded is not None and loaded.path == last

    @fault("F4", "--resume with damaged checkpoints", "a warning and the bits; exit 4 without any")
    def test_in_a_run(self, trials: Trials, programs: Programs, reference: Path) -> None:
        draw = random.Random(0)
        for number in trials.several(2, 10):
            with trials.trial(number):
                out = f"damaged-{number}"
                run = programs.path(out)
                stop = sabotage("stop_itself", step=2 + number % 2, numbers=[15])
                assert programs.family.run(programs.begin(out, stop)).wait() == 143
                older, last = sorted((run / "checkpoints").iterdir())
                damage(draw, (last / TENSORS).read_bytes(), last / TENSORS)
                if number % 2:
                    damage(draw, (older / MANIFEST).read_bytes(), older / MANIFEST)
                    child = programs.family.run(programs.resume(out))
                    assert child.wait() == 4, child.stderr
                    told_once(child, "model")
                    assert ending(run) == ("failed", 4)
                    assert older.exists() and last.exists(), "nothing is deleted"
                else:
                    child = programs.family.run(programs.resume(out))
                    assert child.wait() == 0, child.stderr
                    assert "warning: " in child.stderr and str(last) in child.stderr
                    same_bits(run, reference)


def damage(draw: random.Random, data: bytes, path: Path) -> None:
    """Write other bytes to the file, or take it away."""
    place = draw.randrange(len(data))

    def cut() -> bytes:
        return data[:place]

    def flip() -> bytes:
        return data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :]

    def lengthen() -> bytes:
        return data + draw.randbytes(1 + draw.randrange(100))

    def blank() -> bytes:
        """A block of zeros, as disks leave where a write never came."""
        end = min(place + 4096, len(data))
        zeros = data[:place] + bytes(end - place) + data[end:]
        return zeros if zeros != data else flip()

    def repeat() -> bytes:
        half = data[: len(data) // 2]
        return half + half

    ways: list[Callable[[], bytes]] = [cut, cut, flip, flip, flip, flip, lengthen, blank, repeat]
    if draw.random() < 0.02:
        path.unlink()
    else:
        changed = draw.choice(ways)()
        assert changed != data
        path.write_bytes(changed)
