"""`densesiam-seg doctor`."""

from __future__ import annotations

from densesiam_seg.cli.options import Json


def command(json: Json = False) -> None:
    """Check the installation: versions, devices, and each known trap with its remedy."""
    from densesiam_seg.doctor import examine
    from densesiam_seg.errors import UsageError

    findings = examine()
    if json:
        import json as jsonlib

        print(jsonlib.dumps([vars(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            print(f"{finding.state:>7}  {finding.subject}: {finding.text}")
    if any(finding.state == "broken" for finding in findings):
        raise UsageError("doctor: the installation is broken, see the lines above")
