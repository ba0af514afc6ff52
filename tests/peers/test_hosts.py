"""Two hosts, as network namespaces of this machine with a cable between them, which train together whatever happens."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from launcher import PROGRAM
from program import options
from slow_cable import slow_cable
from tiny_runs import course, files_of

from densesiam_seg.io.records import read_records
from densesiam_seg.io.run_directory import read_status

pytestmark = pytest.mark.cluster

NAMES = ("densesiam0", "densesiam1")
ADDRESSES = ("10.213.0.1", "10.213.0.2")
DEVICES = ("ds-veth0", "ds-veth1")
PORT = 29470
PATIENCE = 500
"""Seconds that a whole run may take."""
EPOCHS = 60
"""Of three steps each."""


def run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def inside(host: int, *words: str) -> list[str]:
    return ["ip", "netns", "exec", NAMES[host], *words]


def cable(host: int, *words: str) -> None:
    """Change the end of the cable at a host: `up`, `down`."""
    run(*inside(host, "ip", "link", "set", DEVICES[host], *words))


@pytest.fixture(scope="module")
def network() -> Iterator[None]:
    """Two namespaces that reach each other and nothing else."""
    if sys.platform != "linux" or shutil.which("ip") is None:
        pytest.skip("needs Linux and ip (iproute2)")
    remove()
    try:
        for name in NAMES:
            run("ip", "netns", "add", name)
        run("ip", "link", "add", "ds-veth0", "type", "veth", "peer", "name", "ds-veth1")
        for host, (name, address) in enumerate(zip(NAMES, ADDRESSES, strict=True)):
            run("ip", "link", "set", DEVICES[host], "netns", name)
            run(*inside(host, "ip", "addr", "add", f"{address}/24", "dev", DEVICES[host]))
            run(*inside(host, "ip", "link", "set", "lo", "up"))
            cable(host, "up")
    except subprocess.CalledProcessError as error:
        remove()
        pytest.skip(f"network namespaces are not allowed here: {error.stderr.decode().strip()}")
    yield
    remove()


def remove() -> None:
    for name in NAMES:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


class Hosts:
    """An agent of torchrun on each, which is started again when it ends with an error, as a scheduler does."""

    def __init__(
        self,
        out: Path,
        words: list[str],
        addresses: Sequence[str] = ADDRESSES,
        devices: Sequence[str] = DEVICES,
    ) -> None:
        self.out, self.logs, self.words = out, out.parent, words
        self.addresses, self.devices = addresses, devices
        self.agents = [self._start(host) for host in range(2)]
        self.started = time.monotonic()
        self.again = 0

    def _start(self, host: int) -> subprocess.Popen[bytes]:
        command = inside(
            host,
            *(sys.executable, "-P", "-m", "torch.distributed.run", "--nnodes", "2"),
            *("--nproc-per-node", "1", "--max-restarts", "5", "--rdzv-backend", "c10d"),
            *("--rdzv-endpoint", f"{self.addresses[0]}:{PORT}", "--rdzv-id", "job"),
            *("--rdzv-conf", f"is_host={int(host == 0)}", "--local-addr", self.addresses[host]),
            *(str(PROGRAM), *self.words),
        )
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": self.devices[host],
            "DENSESIAM_SEG_TIMEOUT": "15",
        }
        with (self.logs / f"host{host}.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def steps(self) -> int:
        """How far the run is."""
        path = self.out / "metrics.jsonl"
        return max((each["step"] for each in read_records(path)), default=0) if path.exists() else 0

    def wait_for(self, step: int) -> None:
        self._until(lambda: self.steps() >= step)

    def end(self) -> float:
        """Wait for the end of the run; the seconds that it took. torchrun's agents may wait for each other longer."""
        self._until(lambda: read_status(self.out).get("status") == "done")
        return time.monotonic() - self.started

    def _until(self, reached: Callable[[], bool]) -> None:
        while not reached():
            assert time.monotonic() - self.started < PATIENCE, self.told()
            for host, agent in enumerate(self.agents):
                if agent.poll() not in (None, 0):
                    self.again += 1
                    assert self.again < 10, self.told()
                    self.agents[host] = self._start(host)
            time.sleep(0.2)

    def rank(self, host: int) -> int:
        """The process that trains on a host."""
        agent = self.agents[host].pid
        (child,) = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
        return int(child)

    def told(self) -> str:
        return "\n".join(path.read_text()[-3000:] for path in sorted(self.logs.glob("*.log")))

    def end_all(self) -> None:
        """Kill whatever is left in both namespaces."""
        for name in NAMES:
            left = subprocess.run(["ip", "netns", "pids", name], capture_output=True, check=False)
            for pid in left.stdout.split():
                os.kill(int(pid), signal.SIGKILL)
        for agent in self.agents:
            agent.wait()


@pytest.fixture
def hosts(
    network: None, tmp_path: Path, image_folder: Path, tiny_settings: dict[str, Any]
) -> Iterator[Callable[..., Hosts]]:
    """Starts a run on both hosts."""
    started: list[Hosts] = []

    def start(epochs: int = EPOCHS, **network: Any) -> Hosts:
        out = tmp_path / "run"
        settings = options({**tiny_settings, "prior": "none", "epochs": epochs})
        words = ["train", str(image_folder), "--out", str(out), "--resume", *settings]
        words += ["--no-report", "--checkpoint-every", "30", "--quiet"]
        started.append(Hosts(out, words, **network))
        return started[-1]

    yield start
    for each in started:
        each.end_all()


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, Any]:
    """What a run comes to that nothing happens to; the first test fills it."""
    return {}


def ended_as_ever(out: Path, undisturbed: dict[str, Any]) -> None:
    """The same bytes of the model and the same records as those of a run that nothing happened to."""
    assert read_status(out)["status"] == "done"
    assert course(out) == undisturbed["course"]
    assert files_of(out / "model") == undisturbed["model"]


def tell(what: str, seconds: float, hosts: Hosts) -> None:
    print(f"\n{what}: {seconds:.0f} s, agents started again {hosts.again} times")


def test_two_hosts_train_together(hosts: Callable[..., Hosts], undisturbed: dict[str, Any]) -> None:
    job = hosts()
    tell("nothing happens", job.end(), job)
    assert read_status(job.out)["status"] == "done"
    undisturbed |= {"course": course(job.out), "model": files_of(job.out / "model")}
    assert undisturbed["course"][-1]["step"] == 3 * EPOCHS


@pytest.mark.parametrize("host", [0, 1])
def test_a_process_is_killed(
    hosts: Callable[..., Hosts], undisturbed: dict[str, Any], host: int
) -> None:
    job = hosts()
    job.wait_for(70)
    os.kill(job.rank(host), signal.SIGKILL)
    tell(f"process of host {host} killed", job.end(), job)
    ended_as_ever(job.out, undisturbed)


def test_an_agent_is_killed_with_its_host(
    hosts: Callable[..., Hosts], undisturbed: dict[str, Any]
) -> None:
    job = hosts()
    job.wait_for(70)
    rank = job.rank(1)
    job.agents[1].kill()
    os.kill(rank, signal.SIGKILL)
    tell("agent killed", job.end(), job)
    ended_as_ever(job.out, undisturbed)


def test_an_agent_is_killed_and_leaves_its_process(
    hosts: Callable[..., Hosts], undisturbed: dict[str, Any]
) -> None:
    job = hosts()
    job.wait_for(70)
    job.agents[1].kill()
    tell("agent killed, its process left", job.end(), job)
    ended_as_ever(job.out, undisturbed)


def test_the_cable_is_out_for_40_seconds(
    hosts: Callable[..., Hosts], undisturbed: dict[str, Any]
) -> None:
    job = hosts()
    job.wait_for(70)
    cable(1, "down")
    try:
        time.sleep(40)
    finally:
        cable(1, "up")
    tell("cable out for 40 s", job.end(), job)
    ended_as_ever(job.out, undisturbed)


def test_a_slow_cable_that_loses_packets(hosts: Callable[..., Hosts]) -> None:
    """50 ms each way, and one packet in a hundred is lost."""
    addresses = ("10.213.1.1", "10.213.1.2")
    with ExitStack() as stack:
        try:
            devices = stack.enter_context(slow_cable(NAMES, addresses, 0.05, 0.01))
        except OSError as error:
            pytest.skip(f"tunnels are not allowed here: {error}")
        job = hosts(epochs=2, addresses=addresses, devices=devices)
        tell("50 ms each way, 1 % lost, 6 steps", job.end(), job)
        job.end_all()
    assert course(job.out)[-1]["step"] == 6
