#!/usr/bin/env python3
"""The answers of a job over several hosts are those of the reference, whatever the tiers and what travels.

    tests/hosts/answers_test.py BINARY
"""

from __future__ import annotations

import json
import sys

from hosts import MODEL, ROOT, Hosts, enter_sandbox, shared

NEW_TOKENS = 10
TIERS = {
    "device": [],
    "host": ["--cpu-offload"],
    "nvme": ["--nvme-offload-path", "/tmp/nvme"],
    # 1.2 MB a block and rank of two: some of every tier
    "mixed": ["--cpu-offload", "--nvme-offload-path", "/tmp/nvme", "--gpu-weight-budget", "2MB", "--cpu-weight-budget",
              "2MB"],
}  # fmt: skip
TRAVELS = ["weights", "activations"]


def check(binary: str, count: int, ranks: int, cases: list[tuple[str, str]]) -> None:
    golden = json.loads((ROOT / "tests/data/bloom-kjv/golden.json").read_text())
    hosts = Hosts(count, f"h{count}x{ranks}")
    prompts, results = hosts.files / "prompts.jsonl", hosts.files / "results.jsonl"
    lines = [json.dumps({"id": i, "prompt": g["prompt"]}) + "\n" for i, g in enumerate(golden)]
    prompts.write_text("".join(lines))
    for tier, travel in cases:
        what = f"{count} hosts x {ranks} ranks, {tier}, {travel}"
        before = hosts[0].received_bytes()
        ended = hosts.run(ranks, binary, "--model", MODEL, "--prompts", prompts, "--output", results, "--compute-dtype",
                          "float32", "--max-new-tokens", NEW_TOKENS, "--batch-size", 6, "--travel", travel, "--quiet",
                          *TIERS[tier])  # fmt: skip
        assert ended.code == 0, f"{what}: {ended.code}\n{ended.err}"
        answers = sorted(map(json.loads, results.read_text().splitlines()), key=lambda a: a["id"])
        assert [a["id"] for a in answers] == list(range(len(golden))), what
        for answer, g in zip(answers, golden):
            wanted = g["float32"]["greedy_ids"][:NEW_TOKENS]
            assert answer["token_ids"] == wanted, f"{what}, prompt {answer['id']}: {answer['token_ids']} not {wanted}"
        over_network = hosts[0].received_bytes() - before
        assert over_network > 1_000_000, f"{what}: {over_network} bytes came to {hosts[0].name}"
        print(f"{what}: {ended.seconds:.1f} s, {over_network / 1e6:.0f} MB received by {hosts[0].name}", flush=True)


def main() -> None:
    enter_sandbox()
    binary = str(shared(sys.argv[1]))
    every = [(tier, travel) for tier in ("device", "host", "nvme") for travel in TRAVELS]
    mixed = [("mixed", travel) for travel in TRAVELS]
    check(binary, 2, 1, every)
    check(binary, 2, 2, mixed)
    check(binary, 3, 1, mixed)
    check(binary, 4, 1, mixed)


if __name__ == "__main__":
    main()
