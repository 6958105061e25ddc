#!/usr/bin/env python3
"""Compares formats of packed weights: bits a weight, error of the weights, and what the error does to a model.

    tests/reference_packages.sh build-reference             # numpy, tokenizers and gguf; SmolLM2-135M-Instruct
    export OMP_NUM_THREADS=2
    build-reference/venv/bin/python benchmarks/weight_formats.py [--model M].. [--only WORD].. [--windows N]
        [--ggml libggml-base.so] [--output FILE.jsonl --commit C --machine M]

Weights are rounded to a format and expanded again; then numpy evaluates the model in float32. So between two lines of
a table only the rounding differs. Printed for each format:

    bits    a stored weight of these matrices, scales included (a row padded to 16 bytes may need more: last column)
    rms%    of the weights' errors, against the rms of the weights
    ppl     perplexity; d% against the 16-bit weights, with the standard error of the mean over tokens, paired
    KL      mean divergence of the next token's distribution from the 16-bit one, x 1000, with its standard error.
            It orders formats with far fewer tokens than d% does.

Models (--model, all by default):
    bloom-kjv        tests/data/bloom-kjv on the text of its score.json; trained in bfloat16, knows this text by heart
    smollm2          SmolLM2-135M-Instruct. Its 16-bit weights come from a Q4_1 file: they lie on the grid of groups of
                     32 with a minimum, which flatters such formats
    smollm2-scaled   the same function on no grid: each input channel of every matrix times 2^u, -1/2 < u < 1/2, undone
                     in the norm or matrix before it
    smollm2-rotated  the same function on no grid: the residual stream turned by a random orthogonal matrix, norms
                     folded in (Ashkboos et al., 2024); all weights become nearly Gaussian
SmolLM2 reads windows of Genesis (decoded from score.json) and of the texts of Python's own `help()` by turns.

--ggml adds llama.cpp's types, rounded by its own ggml_quantize_chunk:
    cmake -S vendor/llama.cpp -B b -DBUILD_SHARED_LIBS=ON && cmake --build b --target ggml-base
in the source package of llama-cpp-python (0.3.36 for the committed lines).
"Q4_K" means what llama.cpp does with these matrices: rows that are no multiple of 256 fall back to Q5_0. "Q4_K padded"
fills such rows with zeros, as if they were longer: Q4_K's own quality, counted at its 4.5 bits.
"""
import argparse
import ctypes
import hashlib
import json
import math
import pathlib
import shlex
import sys
import time

import numpy

from weight_study.formats import formats
from weight_study.models import NAMES, WINDOW, log_probabilities, losses_of, model_of, windows_of


def measured(model, windows, reference, names, scheme):
    """One line of the table: `names` of the model's matrices in a format, all else as it was."""
    kept = dict(model.weights)
    squares = errors = bits = padded_bits = count = 0.0
    try:
        for name in names:
            was = kept[name]
            now = model.weights[name] = scheme(was)
            squares += (was.astype(float) ** 2).sum()
            errors += ((now - was).astype(float) ** 2).sum()
            row = scheme.bits(was.shape[1])
            bits, count = bits + row * len(was), count + was.size
            padded_bits += -(-row // 128) * 128 * len(was)
        losses, differences, divergences = [], [], []
        for ids, exact in zip(windows, reference):
            ours = log_probabilities(model, ids)
            losses.append(losses_of(ours, ids))
            differences.append(losses_of(ours - exact, ids))
            divergences.append((numpy.exp(exact) * (exact - ours)).sum(-1))
    finally:
        model.weights = kept
    losses, differences, divergences = (numpy.concatenate(v).astype(float) for v in (losses, differences, divergences))
    root = math.sqrt(len(losses))
    return {"bits": bits / count, "bits_rows_of_16_bytes": padded_bits / count,
            "rms_percent": 100 * math.sqrt(errors / squares), "perplexity": math.exp(losses.mean()),
            "difference_percent": 100 * math.expm1(differences.mean()),
            "difference_percent_error": 100 * differences.std() / root, "kl_1000": 1000 * divergences.mean(),
            "kl_1000_error": 1000 * divergences.std() / root}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=NAMES, help="may be given again; default: all")
    parser.add_argument("--only", action="append", metavar="WORD", help="formats whose name has it; may be given again")
    parser.add_argument("--windows", type=int, default=16, metavar="N", help=f"of {WINDOW} tokens; default 16")
    parser.add_argument("--ggml", metavar="LIBRARY", help="llama.cpp's libggml-base.so, for its types")
    parser.add_argument("--output", metavar="FILE", help="a line for each model is added to it, for benchmarks/results")
    parser.add_argument("--commit", default="", help="for --output")
    parser.add_argument("--machine", default="", help="for --output")
    args = parser.parse_args()
    if args.output and not (args.commit and args.machine):
        parser.error("--output needs --commit and --machine")
    command = shlex.join(["benchmarks/weight_formats.py", *sys.argv[1:]])
    for path in filter(None, (args.ggml, args.output)):
        command = command.replace(path, "DIR/" + pathlib.Path(path).name)
    library = ctypes.CDLL(args.ggml) if args.ggml else None
    for name in args.model or NAMES:
        model = model_of(name)
        windows = windows_of(name, args.windows)
        reference = [log_probabilities(model, ids) for ids in windows]
        loss = numpy.concatenate([losses_of(r, ids) for r, ids in zip(reference, windows)])
        result = {"name": "weight_formats", "machine": args.machine, "commit": args.commit, "command": command,
                  "world": 1, "model": name, "tokens": len(loss), "perplexity": math.exp(loss.mean()),
                  "ids_sha256": hashlib.sha256(json.dumps(windows).encode()).hexdigest(), "formats": []}
        print(f"\n{name}: {len(loss)} tokens, 16-bit perplexity {result['perplexity']:.5f}\n"
              f"{'':48} {'bits':>6} {'rms%':>7} {'ppl':>9} {'d%':>8} {'+-':>6} {'KL':>9} {'+-':>7} {'s':>5} "
              f"{'padded':>6}", flush=True)
        for which, label, scheme in formats(library):
            if args.only and not any(word in label for word in args.only):
                continue
            start = time.process_time()
            row = measured(model, windows, reference, model.blocks if which == "blocks" else [which], scheme)
            result["formats"].append({"format": label, "matrices": which} | row)
            print(f"{label:48.48} {row['bits']:6.3f} {row['rms_percent']:7.4f} {row['perplexity']:9.5f} "
                  f"{row['difference_percent']:8.3f} {row['difference_percent_error']:6.3f} {row['kl_1000']:9.4f} "
                  f"{row['kl_1000_error']:7.4f} {time.process_time() - start:5.0f} {row['bits_rows_of_16_bytes']:6.3f}",
                  flush=True)
        if args.output:
            with open(args.output, "a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")



if __name__ == "__main__":
    main()
