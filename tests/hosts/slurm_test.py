#!/usr/bin/env python3
"""launch/slurm.sbatch and launch/serve.sbatch under a real Slurm of two nodes: started by srun and by mpirun, stopped
by a signal, preempted and requeued.

    tests/hosts/slurm_test.py BINARY
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from hosts import ENVIRONMENT, MODEL, ROOT, Hosts, enter_sandbox, shared
from slurm import PROGRAMS, Slurm

PROMPTS = 100


def lines_of(path: Path) -> list[dict]:
    text = path.read_text() if path.exists() else ""
    assert text.endswith("\n") or not text, f"half a line: {text[-100:]!r}"
    return [json.loads(line) for line in text.splitlines()]


class Jobs:
    def __init__(self, slurm: Slurm, binary: Path, source: Path) -> None:
        self.slurm, self.source = slurm, source
        self.environment = {"ZERO_INFER": str(binary), **ENVIRONMENT}
        self.golden = json.loads((ROOT / "tests/data/bloom-kjv/golden.json").read_text())

    def file(self, name: str) -> Path:
        return self.slurm.directory / name

    def submit(
        self, *arguments: object, script: str = "slurm.sbatch", flags: tuple = (), tasks: int = 1, **more: str
    ) -> int:
        """Two nodes; so many tasks each, where the script asks for four."""
        return self.slurm.submit(f"--ntasks-per-node={tasks}", "--cpus-per-task=1", *flags,
                                 self.source / "launch" / script, "--model", MODEL, *arguments,
                                 **self.environment, **more)  # fmt: skip

    def log(self, number: int) -> str:
        return self.file(f"zero-infer-{number}.log").read_text()

    def wait_for_results(self, path: Path) -> None:
        end = time.monotonic() + 60
        while not path.exists() or path.stat().st_size < 500:
            assert time.monotonic() < end, f"no results in {path}:\n{self.slurm.log()}"
            time.sleep(0.02)

    def check_answers(self, launcher: str, tasks: int, **more: str) -> None:
        prompts, results = self.file("golden.jsonl"), self.file(f"{launcher}.jsonl")
        lines = [json.dumps({"id": i, "prompt": g["prompt"]}) for i, g in enumerate(self.golden)]
        prompts.write_text("\n".join(lines) + "\n")
        job = self.submit("--prompts", prompts.name, "--output", results.name, "--compute-dtype", "float32",
                          "--max-new-tokens", "10", tasks=tasks, **more)  # fmt: skip
        ended = self.slurm.wait_for_state(job, "COMPLETED", "FAILED")
        assert ended["JobState"] == "COMPLETED", self.slurm.log()
        answers = sorted(lines_of(results), key=lambda a: a["id"])
        assert [a["token_ids"] for a in answers] == [g["float32"]["greedy_ids"][:10] for g in self.golden]
        assert {a["rank"] for a in answers} == set(range(2 * tasks)), "some ranks had no prompt"
        assert f"[rank 0/{2 * tasks} host0]" in self.log(job)

    def start_long(self, name: str, *arguments: object, **more) -> tuple[int, Path]:
        """A job that runs until it is stopped."""
        prompts, results = self.file(f"{name}-prompts.jsonl"), self.file(f"{name}.jsonl")
        lines = [
            json.dumps({"id": i, "prompt": "In the beginning", "max_new_tokens": 5 + i % 40}) for i in range(PROMPTS)
        ]
        prompts.write_text("\n".join(lines) + "\n")
        job = self.submit("--prompts", prompts.name, "--output", results.name, "--ignore-eos", *arguments, **more)
        self.wait_for_results(results)
        return job, results

    def check_signal(self) -> None:
        """What Slurm sends before the end of the time, or an administrator by hand."""
        job, results = self.start_long("signal", "--batch-size", "1")
        self.slurm.run("scancel", "--signal=TERM", job)
        ended = self.slurm.wait_for_state(job, "FAILED", "COMPLETED", "CANCELLED")
        assert ended["ExitCode"] == "143:0" and ended["Restarts"] == "0", ended
        assert "stopped by SIGTERM; finished sequences are kept" in self.log(job), self.log(job)
        assert 0 < len(lines_of(results)) < PROMPTS

    def check_signal_to_script(self) -> None:
        """What Slurm sends to the script before the end of the time, with mpirun, which kills ranks after SIGTERM: they
        end in order, and the job goes back to the queue."""
        job, results = self.start_long("script", "--batch-size", "1", "--resume", flags=("--requeue",),
                                       LAUNCHER="mpirun")  # fmt: skip
        self.slurm.run("scancel", "--batch", "--signal=TERM", job)
        self.slurm.wait_for_state(job, "PENDING", "FAILED", "COMPLETED", "CANCELLED")
        log = self.log(job)
        assert "stopped by SIGUSR1; finished sequences are kept" in log, log
        assert "stopped by a signal; back to the queue" in log, log
        assert 0 < len(lines_of(results)) < PROMPTS
        self.slurm.run("scancel", job)

    def check_preemption(self) -> None:
        """A job of a better queue takes the nodes; afterwards the first one goes on where it was."""
        config = self.file("preempted.yaml")
        config.write_text("batch_size: 1\n")
        job, results = self.start_long("preempted", "--resume", "--config", config.name,
                                       flags=("--partition=low", "--requeue"))  # fmt: skip
        urgent = self.submit("--prompt", "Jesus wept.", "--max-new-tokens", "3", flags=("--partition=urgent",))
        self.slurm.wait_for_state(urgent, "COMPLETED")
        kept = lines_of(results)
        self.slurm.wait_for_state(job, "PENDING")
        config.write_text("batch_size: 32\n")  # the rest in a hurry
        self.slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now")  # else it waits for two minutes
        ended = self.slurm.wait_for_state(job, "COMPLETED", "FAILED", "PREEMPTED", "CANCELLED")
        assert ended["JobState"] == "COMPLETED" and ended["Restarts"] == "1", self.slurm.log()
        log = self.log(job)
        assert "stopped by SIGTERM; finished sequences are kept" in log and "back to the queue" in log, log
        done = lines_of(results)
        assert 0 < len(kept) < PROMPTS and done[: len(kept)] == kept
        ids = sorted(line["id"] for line in done)
        assert ids == list(range(PROMPTS)), f"{len(kept)} kept, {ids}\n{self.slurm.log()}"

    def check_server(self) -> None:
        """A request from the other host, and USR1, as before the end of the time: exit code 0."""
        job = self.submit(script="serve.sbatch", ZERO_INFER_API_KEY="secret")
        log = self.file(f"zero-infer-serve-{job}.log")
        body = json.dumps({"model": str(MODEL), "prompt": "Jesus wept.", "max_tokens": 3, "temperature": 0})
        client = self.slurm.hosts[1]
        end = time.monotonic() + 60
        while not log.exists() or "serving " not in log.read_text() or " at port " not in log.read_text():
            assert time.monotonic() < end, self.slurm.log()
            time.sleep(0.1)
        asked = (
            "import sys, urllib.request as u;"
            "r = u.Request(sys.argv[1], sys.argv[2].encode(), {'Content-Type': 'application/json',"
            " 'Authorization': 'Bearer secret'}); print(u.urlopen(r, timeout=30).read().decode())"
        )
        answer = json.loads(client.run(sys.executable, "-c", asked, "http://host0:8000/v1/completions", body))
        assert answer["usage"]["completion_tokens"] == 3, answer
        self.slurm.run("scancel", "--signal=USR1", job)
        ended = self.slurm.wait_for_state(job, "COMPLETED", "FAILED", "CANCELLED")
        assert ended["ExitCode"] == "0:0", self.slurm.log()

    def check_killed(self) -> None:
        """A rank is killed under an srun that does not end a step for that: rank 0 does."""
        prompts, results = self.file("signal-prompts.jsonl"), self.file("killed.jsonl")
        environment = [f"{name}={value}" for name, value in self.slurm.environment.items()]
        host = self.slurm.hosts[1]
        job = self.slurm.hosts.start(self.slurm.hosts[0].enter(
            "env", *environment, "srun", "--nodes=2", "--ntasks=2", "--mpi=pmix", "--kill-on-bad-exit=0",
            self.environment["ZERO_INFER"], "--model", MODEL, "--prompts", prompts, "--output", results,
            "--batch-size", "1", "--ignore-eos"))  # fmt: skip
        self.wait_for_results(results)
        os.kill(host.ranks()[0], signal.SIGKILL)
        ended = job.wait(20)
        assert ended.code != 0 and "error: rank 1 on host1 has ended without a word" in ended.err, ended.err
        assert 0 < len(lines_of(results)) < PROMPTS

    def check_vanishing(self) -> None:
        """A node is cut off: the step ends with its name, and no rank stays. The last test: Slurm waits for the node
        for longer."""
        job, results = self.start_long("vanishing", "--batch-size", "1", "--host-timeout", "2")
        hosts = self.slurm.hosts
        hosts[1].cut_off()
        end = time.monotonic() + 20
        while any(host.ranks() for host in hosts.hosts):
            assert time.monotonic() < end, self.slurm.log()
            time.sleep(0.1)
        assert "error: host host1 (rank 1) has been silent for " in self.log(job), self.log(job)
        assert 0 < len(lines_of(results)) < PROMPTS


def main() -> None:
    enter_sandbox(*PROGRAMS)
    binary, source = shared(sys.argv[1]), shared(ROOT)
    hosts = Hosts(2)
    directory = hosts.files / "jobs"
    directory.mkdir()
    jobs = Jobs(Slurm(hosts, directory), binary, source)
    steps = {
        "srun with PMIx": lambda: jobs.check_answers("srun", 2),
        "mpirun": lambda: jobs.check_answers("mpirun", 1, LAUNCHER="mpirun"),
        "a signal": jobs.check_signal,
        "a signal to the script": jobs.check_signal_to_script,
        "preemption and requeue": jobs.check_preemption,
        "a server": jobs.check_server,
        "a rank that is killed": jobs.check_killed,
        "a node that vanishes": jobs.check_vanishing,
    }
    for name, step in steps.items():
        begin = time.monotonic()
        step()
        print(f"{name}: {time.monotonic() - begin:.1f} s", flush=True)


if __name__ == "__main__":
    main()
