"""`doctor` on the command line: findings are data, and a broken installation is an error."""

from __future__ import annotations

import json

import pytest
from program import Cli, Patch

from densesiam_seg import doctor
from densesiam_seg.doctor import Finding

NOTES = [Finding("python", "ok", "3.12.1"), Finding("cuda", "note", "no GPU")]
BROKEN = Finding("torchvision", "broken", "does not import; pip install torch torchvision")


def test_a_line_for_each_finding(cli: Cli, monkeypatch: Patch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: NOTES)
    assert cli("doctor") == (0, "     ok  python: 3.12.1\n   note  cuda: no GPU\n", "")
    code, out, error = cli("doctor", "--json")
    assert (code, error) == (0, "")
    assert json.loads(out) == [
        {"subject": "python", "state": "ok", "text": "3.12.1"},
        {"subject": "cuda", "state": "note", "text": "no GPU"},
    ]


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_broken_installation(cli: Cli, monkeypatch: Patch, options: list[str]) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: [*NOTES, BROKEN])
    code, out, error = cli("doctor", *options)
    assert (code, BROKEN.text in out) == (2, True)
    assert error.startswith("error[usage]: doctor: ")
