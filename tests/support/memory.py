"""What a process takes of the memory."""

from __future__ import annotations

from pathlib import Path


def taken(what: str, process: int | str = "self") -> int:
    """Bytes by the system's word: VmSize of addresses, VmRSS resident now, VmHWM the most that were."""
    status = Path("/proc", str(process), "status").read_text(encoding="ascii", errors="replace")
    (line,) = (line for line in status.splitlines() if line.startswith(f"{what}:"))
    return 1024 * int(line.split()[1])
