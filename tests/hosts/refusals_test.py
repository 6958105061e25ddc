#!/usr/bin/env python3
"""Hosts with different checkpoints or different programs are refused by their names, with what differs.

    tests/hosts/refusals_test.py BINARY
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from hosts import MODEL, Hosts, enter_sandbox, shared

PROGRAM = Path("/tmp/zero-infer")  # each host's own
OTHER = Path("/tmp/other")  # a checkpoint


def other_epsilon(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    config["layer_norm_epsilon"] *= 2
    (model / "config.json").write_text(json.dumps(config))


def other_weights(model: Path) -> None:
    """Every second byte of the first file's data is another: of the same names, types and sizes."""
    path = sorted(model.glob("*.safetensors"))[0]
    data = bytearray(path.read_bytes())
    begin = 8 + int.from_bytes(data[:8], "little")
    data[begin::2] = bytes(byte ^ 1 for byte in data[begin::2])
    path.write_bytes(data)


def other_build(binary: Path) -> None:
    """The same program with another build id, as another build has."""
    notes = subprocess.run(["readelf", "--notes", binary], check=True, capture_output=True, text=True).stdout
    build_id = bytes.fromhex(notes.split("Build ID:")[1].split()[0])
    data = binary.read_bytes()
    assert data.count(build_id) == 1
    binary.write_bytes(data.replace(build_id, bytes(byte ^ 0xFF for byte in build_id)))


def main() -> None:
    enter_sandbox("readelf")
    binary = shared(sys.argv[1])
    hosts = Hosts(2)

    def refused(what: str, flags: list[object], said: list[str], program: Path = binary) -> None:
        ended = hosts.run(1, program, *(flags or ["--model", MODEL]), "--prompt", "Jesus wept.")
        errors = [line for line in ended.err.splitlines() if "error: " in line]
        assert ended.code != 0 and len(errors) == 1, f"{what}: {ended.code}\n{ended.err}"
        for part in said:
            assert part in errors[0], f"{what}: no `{part}` in {errors[0]}"
        print(f"{what}: {ended.seconds:.1f} s", flush=True)

    def refused_checkpoint(what: str, change: Callable[[Path], None], said: str) -> None:
        changed = hosts.files / "changed"
        shutil.copytree(shared(Path(__file__).parent.parent / "data/bloom-kjv"), changed)
        change(changed)
        hosts[0].run("cp", "-r", MODEL, OTHER)
        hosts[1].run("cp", "-r", changed, OTHER)
        refused(what, ["--model", OTHER], [said, "rank 0 on host0 has", "rank 1 on host1 has"])
        for host in hosts.hosts:
            host.run("rm", "-r", OTHER)
        shutil.rmtree(changed)

    refused_checkpoint("another config", other_epsilon, "`layer_norm_epsilon` of the model's config")
    refused_checkpoint("other weights", other_weights, "the model's weights")

    hosts[1].run("mv", MODEL, OTHER)
    refused("no checkpoint", [], ["[rank 1/2 host1]", str(MODEL)])
    hosts[1].run("mv", OTHER, MODEL)

    changed = hosts.files / "zero-infer"
    shutil.copy(binary, changed)
    other_build(changed)
    hosts[0].run("cp", binary, PROGRAM)
    hosts[1].run("cp", changed, PROGRAM)
    refused("another build", [], ["rank 0 on host0 runs zero-infer", "rank 1 on host1 runs zero-infer"], PROGRAM)


if __name__ == "__main__":
    main()
