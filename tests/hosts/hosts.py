"""Hosts on one machine: namespaces of network, mounts, host names and IPC, joined by a bridge; for tests of jobs over
several hosts. Only Python's own modules, iproute2 and util-linux.

All of them live in a sandbox (see `enter_sandbox`): a PID namespace whose first process is the test. When that ends, in
whatever way, the kernel ends every process in it, and with them go the namespaces, their interfaces and their mounts.
The sandbox has a network of its own without a way out.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent.parent
MODEL = Path("/tmp/model")  # each host's own copy of the bundled model
SKIPPED = 77
#: Open MPI asks root twice.
ENVIRONMENT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}

_INSIDE = "ZI_TEST_SANDBOX"
_SANDBOX = ["unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"]


def skip(reason: str) -> NoReturn:
    print(f"skipped: {reason}")
    raise SystemExit(SKIPPED)


def enter_sandbox(*programs: str) -> None:
    """Starts this test anew as the first process of a sandbox, or skips it with the reason; inside, mounts what all
    hosts share: the sources and the build at `shared(..)`. Called once, before anything else."""
    if os.environ.get(_INSIDE) != "1":
        if os.geteuid() != 0:
            skip("only root can make namespaces")
        for program in ("unshare", "nsenter", "setpriv", "ip", "tc", "mpirun", *programs):
            if not shutil.which(program):
                skip(f"{program} is not installed (launch/install_packages.sh --tests says more)")
        tried = subprocess.run([*_SANDBOX, "ip", "link", "add", "type", "bridge"], capture_output=True, text=True)
        if tried.returncode != 0:
            skip(f"no namespaces or bridges here: {tried.stderr.strip()}")
        os.environ[_INSIDE] = "1"
        # unshare ignores SIGTERM; it dies with this process, and its child with it.
        command = ["setpriv", "--pdeathsig", "KILL", *_SANDBOX, sys.executable, *sys.argv]
        raise SystemExit(subprocess.run(command).returncode)
    # Of a terminal; nothing is to be cleared away.
    signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))
    _run("mount", "--make-rprivate", "/")
    _run("mount", "-t", "tmpfs", "shared", _SHARED)
    _run("ip", "link", "set", "lo", "up")


def _shared_folder() -> Path:
    """A folder that every machine has and that holds nothing of ours: the sandbox mounts one of its own there."""
    ours = [*ROOT.parents, *Path(sys.executable).parents]
    return next(p for p in map(Path, ("/mnt", "/media", "/srv")) if p.is_dir() and p not in ours)


_SHARED = _shared_folder()


def shared(path: str | Path) -> Path:
    """The file or folder under a name that it has on every host: a host's /tmp is its own, and may hide it.
    For hosts that are made later."""
    path = Path(path).resolve()
    folder = path if path.is_dir() else path.parent
    place = _SHARED / "machine" / folder.relative_to("/")
    if not place.is_mount():
        place.mkdir(parents=True, exist_ok=True)
        _run("mount", "--bind", folder, place)
    return place if path.is_dir() else place / path.name


def _run(*command: object) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr.strip()}")


#: What the host's first process does: its own name, folders and addresses of the others.
_KEEPER = """
set -e
hostname "$1"
mount -t tmpfs tmp /tmp
mount -t tmpfs shm /dev/shm
mount --bind "$2" /etc/hosts
ip link set lo up
cp -r "$3" /tmp/model
echo ready
exec sleep infinity
"""


class Host:
    """One of them. `run` and `start` are as a login there is; the keeper holds its namespaces."""

    def __init__(self, name: str, address: str, hosts_file: Path) -> None:
        self.name, self.address = name, address
        model = shared(ROOT / "tests/data/bloom-kjv")
        self.keeper = subprocess.Popen(
            ["unshare", "--net", "--uts", "--ipc", "--mount", "bash", "-c", _KEEPER, "keeper", name, hosts_file, model],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.keeper.stdout is not None
        if self.keeper.stdout.readline() != "ready\n":
            raise RuntimeError(f"{name} does not start")
        self.network = os.readlink(f"/proc/{self.keeper.pid}/ns/net")

    def enter(self, *command: object) -> list[str]:
        spaces = ["--net", "--uts", "--ipc", "--mount"]
        return ["nsenter", "--target", str(self.keeper.pid), *spaces, "--", *map(str, command)]

    def run(self, *command: object) -> str:
        return subprocess.run(self.enter(*command), check=True, capture_output=True, text=True).stdout

    def processes(self) -> list[int]:
        """All but the keeper."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == self.keeper.pid:
                continue
            try:
                if os.readlink(entry / "ns/net") == self.network and "Z" not in (entry / "stat").read_text().split()[2]:
                    found.append(int(entry.name))
            except OSError:
                continue  # it has ended
        return found

    def ranks(self) -> list[int]:
        """Those of its processes that are zero-infer."""
        found = []
        for pid in self.processes():
            try:
                if Path(f"/proc/{pid}/comm").read_text() == "zero-infer\n":
                    found.append(pid)
            except OSError:
                continue
        return found

    def signal(self, number: int) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def wait_until_empty(self, seconds: float) -> None:
        """Until none of its processes is left."""
        end = time.monotonic() + seconds
        while left := self.processes():
            if time.monotonic() > end:
                raise AssertionError(f"{len(left)} processes are still on {self.name} after {seconds} s: {left}")
            time.sleep(0.05)

    def cut_off(self) -> None:
        """Its link goes down: nobody is told."""
        self.run("ip", "link", "set", "eth0", "down")

    def freeze(self) -> None:
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)

    def limit_rate(self, megabits: int) -> None:
        """Of what it sends. A token bucket: netem is not in every kernel."""
        self.run(*f"tc qdisc replace dev eth0 root tbf rate {megabits}mbit burst 256kb latency 20ms".split())

    def received_bytes(self) -> int:
        link = json.loads(self.run("ip", "-json", "-stats", "link", "show", "eth0"))  # /sys is the machine's
        return link[0]["stats64"]["rx"]["bytes"]


@dataclass
class Ended:
    code: int
    out: str
    err: str
    seconds: float


@dataclass
class Job:
    """A command on a host, with what it says in files."""

    command: list[str]
    log: Path
    process: subprocess.Popen = field(init=False)
    begin: float = field(init=False, default_factory=time.monotonic)

    def __post_init__(self) -> None:
        with open(f"{self.log}.out", "w") as out, open(f"{self.log}.err", "w") as err:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                                            env={**os.environ, **ENVIRONMENT})  # fmt: skip

    def out(self) -> str:
        return Path(f"{self.log}.out").read_text(errors="replace")

    def err(self) -> str:
        return Path(f"{self.log}.err").read_text(errors="replace")

    def wait(self, seconds: float = 60) -> Ended:
        try:
            code = self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"does not end in {seconds} s: {self.command}\n{self.err()}") from None
        return Ended(code, self.out(), self.err(), time.monotonic() - self.begin)


class Hosts:
    """`count` hosts at one bridge, named host0, host1, ..; `name` tells several sets apart. Folder `files` is shared
    by all of them, as a network file system is."""

    def __init__(self, count: int, name: str = "a") -> None:
        self.files = _SHARED / name
        self.files.mkdir()
        names = [f"host{i}" for i in range(count)]
        addresses = [f"10.77.0.{i + 1}" for i in range(count)]
        hosts_file = self.files / "hosts"
        lines = [f"{a} {n}\n" for a, n in zip(addresses, names)]
        hosts_file.write_text("127.0.0.1 localhost\n" + "".join(lines))
        bridge = f"br-{name}"
        _run("ip", "link", "add", bridge, "type", "bridge")
        _run("ip", "link", "set", bridge, "up")
        self.hosts = [Host(n, a, hosts_file) for n, a in zip(names, addresses)]
        for i, host in enumerate(self.hosts):
            port = f"{name}{i}"
            _run("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", host.keeper.pid)
            _run("ip", "link", "set", port, "master", bridge, "up")
            host.run("ip", "address", "add", f"{host.address}/24", "dev", "eth0")
            host.run("ip", "link", "set", "eth0", "up")
        self.agent = self.files / "agent"
        self._write_agent()
        self._jobs = 0

    def __getitem__(self, i: int) -> Host:
        return self.hosts[i]

    def _write_agent(self) -> None:
        """What mpirun takes for ssh: `agent HOST COMMAND..`."""
        cases = [f'{h.name}) exec {" ".join(h.enter("bash", "-c"))} "$*" ;;\n' for h in self.hosts]
        script = '#!/bin/bash\nhost=$1\nshift\ncase $host in\n' + "".join(cases) + "esac\nexit 1\n"
        self.agent.write_text(script)
        self.agent.chmod(0o755)

    def mpirun(self, ranks_per_host: int, *command: object) -> list[str]:
        """The command of a job over all hosts, started on the first."""
        places = ",".join(f"{h.name}:{ranks_per_host}" for h in self.hosts)
        ranks = ranks_per_host * len(self.hosts)
        return self.hosts[0].enter("mpirun", "--mca", "plm_rsh_agent", self.agent, "--host", places, "-np", ranks,
                                   "--bind-to", "none", *command)  # fmt: skip

    def start(self, command: Sequence[str]) -> Job:
        self._jobs += 1
        return Job(list(command), self.files / f"job{self._jobs}")

    def run(self, ranks_per_host: int, *command: object, seconds: float = 60) -> Ended:
        return self.start(self.mpirun(ranks_per_host, *command)).wait(seconds)
