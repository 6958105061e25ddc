#!/usr/bin/env python3
"""The table of what fits where in src/plan/README.md: `zero-infer plan` of each shape in config/models on some machines,
but for those that say how their weights are quantized.

    tests/fit_table.py ZERO_INFER ROOT [--write]     without --write: exit code 1 when the page says otherwise
"""
import itertools
import json
import pathlib
import subprocess
import sys

sys.dont_write_bytecode = True  # the source tree stays as it is

from page_table import hold

BEGIN, END = "<!-- fit table -->\n", "<!-- end of fit table -->\n"
# Name, host memory, ranks: what --gpus-like knows.
MACHINES = [("one RTX 4090, 64 GiB", "rtx4090", "64GiB", 1), ("one H100, 256 GiB", "h100", "256GiB", 1),
            ("8 H100, 1 TiB", "h100", "1TiB", 8)]
# The first that fits, as a user would try them.
TIERS = [[], ["--cpu-offload"], ["--nvme-offload-path", "/nvme"]]
PLACES = {"device": "on the device", "host": "in host memory", "nvme": "on NVMe"}


def number(value):
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def plan(program, model, gpu, memory, ranks, tiers):
    """What `plan --json` says, or None where it is refused because something does not fit."""
    command = [program, "plan", "--model", model, "--gpus-like", gpu, "--host-memory", memory, "--ranks", str(ranks),
               "--json", *tiers]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode != 0:
        if "does not fit" not in run.stderr:
            sys.exit(f"{' '.join(map(str, command))}: {run.stderr}")
        return None
    found = json.loads(run.stdout)
    return found if found["pass"]["fits"] else None


def cell(program, model, machine):
    name, gpu, memory, ranks = machine
    for batch, tiers in itertools.product((8, 1), TIERS):
        found = plan(program, model, gpu, memory, ranks, ["--batch-size", str(batch), *tiers])
        if found is None:
            continue
        counts = {place: found["tiers"].count(place) for place in PLACES if place in found["tiers"]}
        if len(counts) == 1:
            where = "all " + PLACES[next(iter(counts))]
        else:
            where = ", ".join(f"{count} {PLACES[place]}" for place, count in counts.items())
        if batch == 1:
            where += ", one sequence"
        return f"{where}: {number(found['pass']['tokens_per_s'])}"
    return "does not fit"


def table(program, root):
    lines = ["| shape | blocks | weights | " + " | ".join(m[0] for m in MACHINES) + " |",
             "|---" * (3 + len(MACHINES)) + "|"]
    shapes = []
    for model in (root / "config" / "models").iterdir():
        if "quantization_config" in json.loads((model / "config.json").read_text()):
            continue
        found = plan(program, model, "h200", "8TiB", 8, ["--cpu-offload"])
        if found is None:
            sys.exit(f"{model} fits nowhere")
        shapes.append((found["parameters"], model, len(found["tiers"])))
    for parameters, model, blocks in sorted(shapes):
        cells = [cell(program, model, machine) for machine in MACHINES]
        lines.append(f"| {model.name} | {blocks} | {number(parameters * 2e-9)} GB | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main():
    program, root = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    page = root / "src" / "plan" / "README.md"
    hold(page, BEGIN, END, table(program, root))


main()
