"""A server of our own for a test: started on some ranks, asked over HTTP, ended. Only Python's own modules."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
MODEL = ROOT / "tests/data/bloom-kjv"
#: Open MPI asks root twice.
ENVIRONMENT = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def ranks_command(binary: str, ranks: int) -> list[str]:
    """How `binary` is started on so many ranks of this host."""
    if ranks == 1:
        return [binary]
    return ["mpirun", "--oversubscribe", "--bind-to", "none", "-np", str(ranks), binary]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def chat_model(folder: Path) -> Path:
    """The bundled model with a chat template, in a folder of its own."""
    folder.mkdir()
    for file in MODEL.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    return folder


def offline(binary: str, lines: list[dict], *flags: str, model: Path = MODEL, ranks: int = 1) -> list[dict]:
    """The results of a job with these lines of prompts, in their order. `id` is set here."""
    prompts = "".join(json.dumps({"id": number, **line}) + "\n" for number, line in enumerate(lines))
    with tempfile.TemporaryDirectory() as folder:
        source, results = Path(folder, "prompts.jsonl"), Path(folder, "results.jsonl")
        source.write_text(prompts, encoding="utf-8")
        subprocess.run(
            [*ranks_command(binary, ranks), "--model", str(model), "--prompts", str(source),
             "--output", str(results), "--quiet", *flags],
            env=ENVIRONMENT, check=True,
        )  # fmt: skip
        found = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    assert len(found) == len(lines), f"{len(found)} results of {len(lines)} prompts"
    return sorted(found, key=lambda result: result["id"])


class Refused(Exception):
    """An answer that is an error: its status, headers and body."""

    def __init__(self, error: urllib.error.HTTPError) -> None:
        body = error.read().decode(errors="replace")
        super().__init__(f"HTTP {error.code}: {body}")
        self.status, self.headers, self.body = error.code, error.headers, body


class Server:
    """`zero-infer serve` on a free port of this host, by launch/serve.sh. Leaving the `with` ends it by SIGTERM."""

    def __init__(self, binary: str, *flags: str, model: Path = MODEL, ranks: int = 1, key: str = "") -> None:
        self.key = key
        self.port = free_port()
        self.base = f"http://127.0.0.1:{self.port}"
        self.log = tempfile.TemporaryFile("w+")
        environment = {**ENVIRONMENT, "ZERO_INFER": binary, "RANKS": str(ranks)}
        if key:
            environment["ZERO_INFER_API_KEY"] = key
        self.process = subprocess.Popen(
            [ROOT / "launch/serve.sh", "--model", model, "--port", str(self.port), *flags],
            env=environment, stdout=self.log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            self._wait_until_ready()
        except BaseException:
            self._kill()
            raise

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self.log.close()

    def end(self, signal_number: int = signal.SIGTERM) -> int:
        """Ends the server and returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal_number)
        try:
            return self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._kill()
            raise RuntimeError(f"the server does not end; it said:\n{self.said()}") from None

    def said(self) -> str:
        self.log.seek(0)
        return self.log.read()

    def get(self, path: str) -> str:
        return self._ask(urllib.request.Request(self.base + path))

    def post(self, path: str, body: dict) -> Any:
        request = urllib.request.Request(
            self.base + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        return json.loads(self._ask(request))

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        found = re.findall(rf"^{re.escape(name)}(?:{{.*}})? (\S+)$", self.get("/metrics"), re.MULTILINE)
        if not found:
            raise KeyError(f"no metric {name}")
        return sum(map(float, found))

    def wait_for_metric(self, name: str, value: float, seconds: float = 10) -> float:
        """Until the metric has this value; returns how long that took."""
        begin = time.monotonic()
        while (now := self.metric(name)) != value:
            if time.monotonic() - begin > seconds:
                raise TimeoutError(f"{name} is {now} after {seconds} s, wanted {value}")
            time.sleep(0.01)
        return time.monotonic() - begin

    def resident_bytes(self) -> int:
        """The memory of all ranks."""
        ranks = [pid for pid in self._pids() if Path(f"/proc/{pid}/comm").read_text() == "zero-infer\n"]
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in ranks)
        return pages * os.sysconf("SC_PAGE_SIZE")

    def _pids(self) -> list[int]:
        """Of all its processes."""
        pids = [self.process.pid]
        for pid in pids:
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                pids += map(int, task.read_text().split())
        return pids

    def _kill(self) -> None:
        for pid in self._pids():
            os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def _ask(self, request: urllib.request.Request) -> str:
        if self.key:
            request.add_header("Authorization", f"Bearer {self.key}")
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.read().decode()
        except urllib.error.HTTPError as error:
            raise Refused(error) from None

    def _wait_until_ready(self) -> None:
        end = time.monotonic() + 60
        while True:
            try:
                self.get("/health")
                return
            except (Refused, urllib.error.URLError, ConnectionError):
                if self.process.poll() is not None:
                    raise RuntimeError(f"the server has ended; it said:\n{self.said()}") from None
                if time.monotonic() > end:
                    raise RuntimeError(f"the server does not get ready; it said:\n{self.said()}") from None
                time.sleep(0.05)


def need(program: str) -> str:
    """The path of a program; without it the test is skipped, with the reason."""
    found = shutil.which(program)
    if not found:
        print(f"{program} is not installed")
        raise SystemExit(77)
    return found
