"""`doctor` on the command line: findings are data, and a broken installation is an error."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from densesiam_seg import doctor
from densesiam_seg.doctor import Finding

Cli = Callable[..., tuple[int, str, str]]

FINDINGS = [
    Finding("python", "ok", "3.12.1"),
    Finding("cuda", "note", "no GPU"),
    Finding("torchvision", "broken", "does not import; pip install torch torchvision"),
]


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    findings = FINDINGS[:2]
    monkeypatch.setattr(doctor, "examine", lambda: findings)
    return findings


def test_a_line_for_each_finding(cli: Cli, found: list[Finding]) -> None:
    assert cli("doctor") == (0, "     ok  python: 3.12.1\n   note  cuda: no GPU\n", "")


def test_json(cli: Cli, found: list[Finding]) -> None:
    code, out, error = cli("doctor", "--json")
    assert (code, error) == (0, "")
    assert json.loads(out) == [
        {"subject": "python", "state": "ok", "text": "3.12.1"},
        {"subject": "cuda", "state": "note", "text": "no GPU"},
    ]


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_broken_installation(cli: Cli, found: list[Finding], options: list[str]) -> None:
    found.append(FINDINGS[2])
    code, out, error = cli("doctor", *options)
    assert code == 2
    assert "pip install torch torchvision" in out
    assert error == "error[usage]: doctor: the installation is broken, see the lines above\n"


def test_this_installation(cli: Cli) -> None:
    code, out, error = cli("doctor")
    assert (code, error) == (0, "")
    assert "torchvision" in out
