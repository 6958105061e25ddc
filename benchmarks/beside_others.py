#!/usr/bin/env python3
"""This program, llama.cpp and Hugging Face transformers on the same CPU and the same shape, in turns. Appends one line
of JSON to FILE for each program and format of weights; only Python's own modules.

    benchmarks/beside_others.py BUILD --commit C --machine M --output FILE.jsonl --model DIR [--batch 1,8,16]
        [--prompt-tokens 512] [--rounds 5] [--threads 2] [--formats bfloat16,int8,int4] [--instruction-sets ,avx2]
        [--llama DIR --gguf bfloat16=FILE --gguf int8=FILE .. [--llama-version TEXT]] [--transformers PYTHON]

BUILD is a folder in which the project was built. --instruction-sets are the most that this program may use, a
line each; an empty one is what the processor has. DIR of --llama has llama-bench and llama-batched-bench; a GGUF file
has the shape of --model in the named format (llama.cpp's Q8_0 for int8, Q4_0 for int4). A format is that of the
blocks, and with /FORMAT that of the head and the embedding, as in int4/int4; without, they are int8 beside packed
blocks. PYTHON of --transformers is an interpreter that has torch and transformers. All use --threads threads and
random weights. In each round every program, once warm, decodes 32 tokens with each batch, from prompts of one token,
and computes one prompt of --prompt-tokens; the middle round counts.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from pathlib import Path

sys.dont_write_bytecode = True  # the source tree stays as it is
sys.path.insert(0, str(Path(__file__).resolve().parent))

from turns import (
    ProgramError,
    Rates,
    append,
    in_turns,
    json_lines,
    llama_decoding,
    llama_environment,
    output_of,
    own_decoding,
)

#: Tokens that are decoded.
_STEPS = 32

_TRANSFORMERS = """
import json, sys, time, torch, transformers
model, threads, batches, prompt, steps = sys.argv[1], *map(json.loads, sys.argv[2:])
torch.set_num_threads(threads)
torch.manual_seed(0)
config = transformers.AutoConfig.from_pretrained(model)
net = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
rates = {}
with torch.inference_mode():
    def ids(batch, tokens):
        return torch.randint(10, 1000, (batch, tokens))
    net(ids(1, 16))
    for batch in batches:
        net(ids(batch, 1))
        out = net(ids(batch, 1), use_cache=True)
        begin = time.perf_counter()
        for step in range(steps):
            token = out.logits[:, -1:].argmax(-1)
            out = net(token, past_key_values=out.past_key_values, use_cache=True)
        rates[f"decode_{batch}"] = batch * steps / (time.perf_counter() - begin)
    net(ids(1, prompt), logits_to_keep=1)
    begin = time.perf_counter()
    net(ids(1, prompt), logits_to_keep=1)
    rates["prompt"] = prompt / (time.perf_counter() - begin)
print(json.dumps(rates))
"""


def own(options: argparse.Namespace, weights: str, instructions: str) -> Rates:
    blocks, _, head = weights.partition("/")
    command = [options.build / "benchmarks/pass_benchmark", "--backend", "cpu", "--model", options.model,
               "--tier", "device", "--weight-format", "stored" if blocks == "bfloat16" else blocks]  # fmt: skip
    if head:
        command += ["--head-format", head]
    environment = {"OMP_NUM_THREADS": str(options.threads)}
    if instructions:
        environment["ZI_INSTRUCTION_SET"] = instructions
    rates = own_decoding(command, options.batch, _STEPS, **environment)
    prompt = output_of(
        [*command, "--batch", "1", "--prompt-tokens", str(options.prompt_tokens),
         "--max-pass-tokens", str(options.prompt_tokens), "--repeats", "1", "--passes", "1"], **environment,
    )
    (line,) = json_lines(prompt)
    rates["prompt"] = options.prompt_tokens / line["pass_ms"] * 1e3
    return rates


def llama(options: argparse.Namespace, weights: str) -> Rates:
    folder, file = options.llama, options.gguf[weights]
    common = ["-m", file, "-t", str(options.threads)]
    rates = llama_decoding(folder, common, options.batch, _STEPS)
    prompt = output_of(
        [folder / "llama-bench", *common, "-p", str(options.prompt_tokens), "-n", "0", "-r", "1", "-o", "json"],
        **llama_environment(folder),
    )
    rates["prompt"] = json.loads(prompt)[0]["avg_ts"]
    return rates


def transformers(options: argparse.Namespace) -> Rates:
    arguments = [options.model, json.dumps(options.threads), json.dumps(options.batch),
                 json.dumps(options.prompt_tokens), str(_STEPS)]  # fmt: skip
    return json.loads(output_of([options.transformers, "-c", _TRANSFORMERS, *arguments]).splitlines()[-1])


def versions(options: argparse.Namespace) -> dict[str, str]:
    found = {}
    if options.llama:
        said = output_of(
            [options.llama / "llama-bench", "-m", next(iter(options.gguf.values())), "-p", "1", "-n", "0", "-r", "1",
             "-o", "json"], **llama_environment(options.llama),
        )  # fmt: skip
        found["llama.cpp"] = options.llama_version or json.loads(said)[0]["build_commit"]
    if options.transformers:
        code = "import torch, transformers; print(transformers.__version__, 'torch', torch.__version__)"
        found["transformers"] = output_of([options.transformers, "-c", code]).strip()
    return found


def command_of(options: argparse.Namespace) -> str:
    """What makes these lines again, without what names this machine."""
    command = ["beside_others.py", "--model", options.model, "--batch", ",".join(map(str, options.batch)),
               "--prompt-tokens", str(options.prompt_tokens), "--rounds", str(options.rounds),
               "--threads", str(options.threads), "--formats", ",".join(options.formats)]  # fmt: skip
    if options.instruction_sets != [""]:
        command += ["--instruction-sets", ",".join(options.instruction_sets)]
    if options.llama:
        command += ["--llama", "DIR", *(part for weights in options.gguf for part in ("--gguf", f"{weights}=FILE"))]
    if options.transformers:
        command += ["--transformers", "PYTHON"]
    return shlex.join(command)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    parser.add_argument("build", type=Path)
    parser.add_argument("--commit", required=True)
    parser.add_argument("--machine", required=True)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--batch", type=numbers, default=[1, 8, 16])
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--formats", type=lambda text: text.split(","), default=["bfloat16", "int8", "int4"])
    parser.add_argument("--instruction-sets", type=lambda text: text.split(","), default=[""])
    parser.add_argument("--llama", type=Path)
    parser.add_argument("--llama-version", default="")
    parser.add_argument("--gguf", action="append", default=[], metavar="FORMAT=FILE")
    parser.add_argument("--transformers", type=Path)
    options = parser.parse_args()
    options.gguf = dict(pair.split("=", 1) for pair in options.gguf)
    if bool(options.llama) != bool(options.gguf):
        parser.error("--llama and --gguf go together")
    return options


def main() -> int:
    options = parsed()
    programs = {}
    for weights in options.formats:
        for instructions in options.instruction_sets:
            name = f"zero-infer, {instructions} at most" if instructions else "zero-infer"
            programs[name, weights] = lambda w=weights, i=instructions: own(options, w, i)
    for weights in options.gguf:
        programs["llama.cpp", weights] = lambda w=weights: llama(options, w)
    if options.transformers:
        programs["transformers", "bfloat16"] = lambda: transformers(options)
    try:
        versions_of = versions(options)
    except ProgramError as error:
        raise SystemExit(str(error)) from error
    measured = in_turns(programs, options.rounds)
    lines = [
        {
            "name": "beside_others", "machine": options.machine, "commit": options.commit, "world": 1,
            "command": command_of(options),
            "program": name, "version": versions_of.get(name, options.commit), "model": options.model,
            "threads": options.threads, "weights": weights, "prompt_tokens": options.prompt_tokens,
            **of_program.fields(),
        }
        for (name, weights), of_program in measured.items() if of_program.rounds
    ]  # fmt: skip
    append(options.output, lines)
    return 0 if len(lines) == len(measured) else 1


if __name__ == "__main__":
    sys.exit(main())
