"""A Slurm cluster of hosts made of namespaces: a controller on the first, a node on each; all of its files are in the
hosts' shared folder. Debian's packages, with a configuration of its own; the machine's daemons are not used."""

from __future__ import annotations

import os
import stat
import subprocess
import time
from pathlib import Path

from hosts import Hosts

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol")

# Four tasks a node of four cores and a GPU each, as launch/slurm.sbatch asks for by itself: the machine need not have
# them. Jobs of partition `urgent` preempt those of `low`, which get SIGTERM and some seconds, and start again.
_CONFIG = """\
ClusterName=test
SlurmctldHost={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={files}/munge.socket
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
SwitchType=switch/none
SchedulerParameters=sched_min_interval=100000,bf_interval=1
MinJobAge=300
KillWait=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
StateSaveLocation={files}/state
SlurmdSpoolDir={files}/spool-%n
SlurmdPidFile={files}/slurmd-%n.pid
SlurmctldPidFile={files}/slurmctld.pid
SlurmctldLogFile={files}/slurmctld.log
SlurmdLogFile={files}/slurmd-%n.log
NodeName={nodes} CPUs=64 RealMemory=4000 Gres=gpu:4
PartitionName=low Nodes={nodes} Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=20 OverSubscribe=NO
PartitionName=urgent Nodes={nodes} PriorityTier=2
"""


class Slurm:
    """On `hosts`, until the test ends. Commands run on the first host, in `directory`."""

    def __init__(self, hosts: Hosts, directory: Path) -> None:
        self.hosts, self.directory = hosts, directory
        self.files = hosts.files / "slurm"
        (self.files / "state").mkdir(parents=True)
        names = ",".join(host.name for host in hosts.hosts)
        config = _CONFIG.format(controller=hosts[0].name, nodes=names, files=self.files)
        (self.files / "slurm.conf").write_text(config)
        for i in range(4):  # a GPU needs a device; nobody opens it
            os.mknod(self.files / f"gpu{i}", 0o666 | stat.S_IFCHR, os.stat("/dev/null").st_rdev)
        (self.files / "gres.conf").write_text(f"Name=gpu File={self.files}/gpu[0-3]\n")
        self.environment = {**os.environ, "SLURM_CONF": str(self.files / "slurm.conf")}
        key = self.files / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        self._start(0, "munged", "--foreground", "--force", "--key-file", key, "--socket", self.files / "munge.socket",
                    "--pid-file", self.files / "munged.pid", "--log-file", self.files / "munged.log",
                    "--seed-file", self.files / "munged.seed")  # fmt: skip
        self._wait(lambda: (self.files / "munge.socket").exists(), "munged")
        self._start(0, "slurmctld", "-D", "-c")  # -c: no state of earlier runs
        for i, host in enumerate(hosts.hosts):
            self._start(i, "slurmd", "-D", "-N", host.name)
        self._wait(lambda: self._idle() == len(hosts.hosts), "the nodes")

    def run(self, *command: object, check: bool = True, **environment: str) -> str:
        """What a command on the first host says."""
        done = subprocess.run(
            self.hosts[0].enter("env", "-C", self.directory, *command), env={**self.environment, **environment},
            check=False, capture_output=True, text=True,
        )  # fmt: skip
        if check and done.returncode != 0:
            raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr}")
        return done.stdout

    def submit(self, *arguments: object, **environment: str) -> int:
        """sbatch; the number of the job."""
        return int(self.run("sbatch", "--parsable", *arguments, **environment).strip())

    def job(self, number: int) -> dict[str, str]:
        """What scontrol says of a job: JobState, ExitCode, Restarts, .."""
        words = self.run("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for_state(self, number: int, *states: str, seconds: float = 60) -> dict[str, str]:
        end = time.monotonic() + seconds
        while (job := self.job(number))["JobState"] not in states:
            assert time.monotonic() < end, f"job {number} is {job['JobState']} and not {states}:\n{self.log()}"
            time.sleep(0.1)
        return job

    def log(self) -> str:
        """The last lines of all daemons, and what jobs have printed."""
        logs = [*self.files.glob("*.log"), *self.directory.glob("*.log")]
        return "\n".join(f"{log.name}:\n{log.read_text(errors='replace')[-3000:]}" for log in logs)

    def _idle(self) -> int:
        return self.run("sinfo", "-h", "-N", "-p", "low", "-o", "%t", check=False).split().count("idle")

    def _start(self, host: int, *command: object) -> None:
        with open(self.files / f"{command[0]}-{host}.said", "w") as said:
            subprocess.Popen(self.hosts[host].enter(*command), env=self.environment, stdin=subprocess.DEVNULL,
                             stdout=said, stderr=said)  # fmt: skip

    def _wait(self, ready, what: str, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not ready():
            said = "\n".join(path.read_text() for path in self.files.glob("*.said"))
            assert time.monotonic() < end, f"{what} did not start:\n{said}\n{self.log()}"
            time.sleep(0.1)
