#!/usr/bin/env python3
"""The table of plans for 1 to 64 hosts in src/plan/README.md: `zero-infer plan` of the largest shapes of config/models.

    tests/hosts_table.py ZERO_INFER ROOT [--write]     without --write: exit code 1 when the page says otherwise
"""
import json
import pathlib
import subprocess
import sys

sys.dont_write_bytecode = True  # the source tree stays as it is

from page_table import hold

BEGIN, END = "<!-- hosts table -->\n", "<!-- end of hosts table -->\n"
SHAPES = ["bloom-176b", "opt-175b", "llama-3.1-405b"]
HOSTS = [1, 2, 4, 8, 16, 32, 64]
RANKS_PER_HOST = 8
NETWORKS = ["400GB/s", "25GB/s"]  # eight cards of 400 Gbit/s in a host, and one of 200
LANES = 8
GATHERED = ["--travel", "weights"]
STAYING = ["--travel", "activations"]


def number(value):
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def plan(program, root, shape, hosts, arguments):
    """What `plan --json` says, or None where it is refused because something does not fit."""
    command = [program, "plan", "--model", root / "config" / "models" / shape, "--gpus-like", "h100", "--host-memory",
               "1TiB", "--ranks", str(RANKS_PER_HOST * hosts), "--ranks-per-host", str(RANKS_PER_HOST), "--batch-size",
               str(LANES), "--json", *arguments]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode != 0:
        if "does not fit" not in run.stderr:
            sys.exit(f"{' '.join(map(str, command))}: {run.stderr}")
        return None
    found = json.loads(run.stdout)
    return found if found["pass"]["fits"] else None


def link(found, name):
    return next(each for each in found["pass"]["links"] if each["link"] == name)


def hiding_lanes(found):
    """Rows of a pass whose products take as long as its network, at the best rate of products."""
    best = max(rate["tflop_s"] for rate in found["limits"]["products"]) * 1e12
    of_a_row = link(found, "products")["operations"] / LANES
    return link(found, "network")["seconds"] * best / of_a_row


def alone(program, root, shape, arguments):
    """Tokens a second of one host that holds all weights, with an offload where it must, and whether it must."""
    for offload in ([], ["--cpu-offload"]):
        found = plan(program, root, shape, 1, [*arguments, *offload])
        if found is not None:
            return found["pass"]["tokens_per_s"], bool(offload)
    sys.exit(f"{shape} does not fit one host")


def row(program, root, shape, hosts, alone_ways):
    cells = []
    for network in NETWORKS:
        if hosts == 1:
            cells += ["", "", ""]
            continue
        gathered = plan(program, root, shape, hosts, ["--network", network, *GATHERED])
        staying = plan(program, root, shape, hosts, ["--network", network, *STAYING])
        if gathered is None or staying is None:
            sys.exit(f"{shape} does not fit {hosts} hosts")
        cells += [number(gathered["pass"]["tokens_per_s"]), number(staying["pass"]["tokens_per_s"]),
                  number(float(f"{hiding_lanes(gathered):.2g}"))]
    cells += [number(rate * hosts) + (" *" if offloads else "") for rate, offloads in alone_ways]
    return f"| {shape} | {hosts} | " + " | ".join(cells) + " |"


def table(program, root):
    of_network = [f"{network.replace('GB', ' GB')}: {what}" for network in NETWORKS
                  for what in ("gathered", "staying", "lanes that hide it")]
    heads = ["shape", "hosts", *of_network, "each host alone: gathered", "staying"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for shape in SHAPES:
        alone_ways = [alone(program, root, shape, way) for way in (GATHERED, STAYING)]
        lines += [row(program, root, shape, hosts, alone_ways) for hosts in HOSTS]
    return "\n".join(lines) + "\n"


def main():
    program, root = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    page = root / "src" / "plan" / "README.md"
    hold(page, BEGIN, END, table(program, root))


main()
