#!/usr/bin/env python3
"""Writes a GGUF file of a model's shape with random weights in bfloat16, for llama.cpp's benchmarks: 14 GB in the time
that their storage takes; only Python's own modules.

    benchmarks/random_gguf.py config/models/bloom-7b1 FILE.gguf

Shapes of BLOOM and of Llama are known. The file has no tokens, only their number, which llama.cpp's benchmarks do with.
Weights repeat every 64 MiB and a bit: no two rows of a matrix are alike, and all are of the size of trained ones.
"""

from __future__ import annotations

import json
import math
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

Shape = tuple[int, ...]  # rows first
_ALIGNMENT = 32
_F32, _BF16 = 0, 30  # GGML's types of tensors
_UINT32, _FLOAT32, _STRING = 4, 6, 8  # GGUF's types of values
_MOSTLY_BF16 = 32
#: Weights that are made at most; odd, so that rows begin at other places of them.
_RANDOM_WEIGHTS = (32 << 20) + 1


def config_of(model: Path) -> dict[str, Any]:
    """What llama.cpp wants to know of a shape: the names that config.json may use, made one."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    family = config["model_type"]
    if family not in ("bloom", "llama"):
        raise SystemExit(f"{model}: shapes of bloom and llama can be written, not of {family}")

    def value(*names: str) -> Any:
        for name in names:
            if config.get(name) is not None:
                return config[name]
        raise SystemExit(f"{model / 'config.json'} has no {' and no '.join(names)}")

    hidden, heads = value("hidden_size", "n_embed"), value("n_head", "num_attention_heads")
    kv_heads = config.get("num_key_value_heads") or heads
    return {
        "family": family, "hidden": hidden, "layers": value("n_layer", "num_hidden_layers"), "heads": heads,
        "kv_heads": kv_heads, "head_dim": config.get("head_dim") or hidden // heads,
        "inner": config.get("n_inner") or config.get("intermediate_size") or 4 * hidden,
        "vocabulary": config["vocab_size"], "context": value("seq_length", "max_position_embeddings"),
        "epsilon": value("layer_norm_epsilon", "rms_norm_eps"), "rope_theta": config.get("rope_theta", 10000.0),
        "tied": config.get("tie_word_embeddings", family == "bloom"),
    }  # fmt: skip


def block_matrices(config: dict[str, Any]) -> dict[str, Shape]:
    """Those of one block, by llama.cpp's names."""
    hidden, inner = config["hidden"], config["inner"]
    q, kv = config["heads"] * config["head_dim"], config["kv_heads"] * config["head_dim"]
    if config["family"] == "bloom":
        return {"attn_qkv": (3 * hidden, hidden), "attn_output": (hidden, hidden),
                "ffn_up": (inner, hidden), "ffn_down": (hidden, inner)}  # fmt: skip
    return {"attn_q": (q, hidden), "attn_k": (kv, hidden), "attn_v": (kv, hidden), "attn_output": (hidden, q),
            "ffn_gate": (inner, hidden), "ffn_up": (inner, hidden), "ffn_down": (hidden, inner)}  # fmt: skip


def block_bytes(config: dict[str, Any]) -> int:
    """Of one block's matrices in bfloat16."""
    return sum(2 * math.prod(shape) for shape in block_matrices(config).values())


def tensors(config: dict[str, Any]) -> Iterator[tuple[str, Shape]]:
    hidden, bloom = config["hidden"], config["family"] == "bloom"

    def norm(name: str) -> Iterator[tuple[str, Shape]]:
        yield f"{name}.weight", (hidden,)
        if bloom:
            yield f"{name}.bias", (hidden,)

    yield "token_embd.weight", (config["vocabulary"], hidden)
    if bloom:
        yield from norm("token_embd_norm")
    for block in range(config["layers"]):
        yield from norm(f"blk.{block}.attn_norm")
        yield from norm(f"blk.{block}.ffn_norm")
        for name, shape in block_matrices(config).items():
            yield f"blk.{block}.{name}.weight", shape
            if bloom:
                yield f"blk.{block}.{name}.bias", shape[:1]
    yield from norm("output_norm")
    if not config["tied"]:
        yield "output.weight", (config["vocabulary"], hidden)


def values(config: dict[str, Any]) -> dict[str, int | float | str]:
    family = config["family"]
    found: dict[str, int | float | str] = {
        "general.architecture": family, "general.file_type": _MOSTLY_BF16, "general.alignment": _ALIGNMENT,
        "tokenizer.ggml.model": "no_vocab", f"{family}.vocab_size": config["vocabulary"],
        f"{family}.context_length": config["context"], f"{family}.embedding_length": config["hidden"],
        f"{family}.block_count": config["layers"], f"{family}.feed_forward_length": config["inner"],
        f"{family}.attention.head_count": config["heads"], f"{family}.attention.head_count_kv": config["kv_heads"],
    }  # fmt: skip
    if family == "bloom":
        return found | {"bloom.attention.layer_norm_epsilon": float(config["epsilon"])}
    return found | {
        "llama.attention.layer_norm_rms_epsilon": float(config["epsilon"]),
        "llama.rope.freq_base": float(config["rope_theta"]), "llama.rope.dimension_count": config["head_dim"],
        "llama.attention.key_length": config["head_dim"], "llama.attention.value_length": config["head_dim"],
    }  # fmt: skip


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode("ascii")


def value_bytes(value: int | float | str) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + string(value)
    return struct.pack("<If", _FLOAT32, value) if isinstance(value, float) else struct.pack("<II", _UINT32, value)


def size(shape: Shape) -> int:
    """Matrices are in bfloat16, vectors in float32, as llama.cpp's own converter writes them."""
    return math.prod(shape) * (2 if len(shape) > 1 else 4)


def padding(at: int) -> int:
    return -at % _ALIGNMENT


def header(config: dict[str, Any]) -> bytes:
    named = list(tensors(config))
    pairs = values(config)
    out = b"GGUF" + struct.pack("<IQQ", 3, len(named), len(pairs))
    for key, value in pairs.items():
        out += string(key) + value_bytes(value)
    at = 0
    for name, shape in named:
        out += string(name) + struct.pack("<I", len(shape))
        out += struct.pack(f"<{len(shape)}Q", *reversed(shape))  # columns first there
        out += struct.pack("<IQ", _BF16 if len(shape) > 1 else _F32, at)
        at += size(shape) + padding(size(shape))
    return out + bytes(padding(len(out)))


def random_weights(count: int) -> memoryview:
    """Of either sign and 2^-7 to 2^-5: a trained matrix's are about 0.02."""
    out = bytearray(2 * count)
    out[0::2] = os.urandom(count)
    out[1::2] = os.urandom(count).translate(bytes(0x3C | byte & 0x80 for byte in range(256)))
    return memoryview(out)


def write(config: dict[str, Any], file: BinaryIO) -> None:
    file.write(header(config))
    largest = max(math.prod(shape) for _, shape in tensors(config))
    weights, at = random_weights(min(_RANDOM_WEIGHTS, largest | 1)), 0
    for name, shape in tensors(config):
        left = size(shape)
        if len(shape) == 1:
            file.write(struct.pack("<f", 1.0 if name.endswith("norm.weight") else 0.0) * shape[0])
        while len(shape) > 1 and left > 0:
            part = weights[at : at + left]
            file.write(part)
            left -= len(part)
            at = (at + len(part)) % len(weights)
        file.write(bytes(padding(size(shape))))


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    config, path = config_of(Path(sys.argv[1])), Path(sys.argv[2])
    part = path.with_name(f"{path.name}.part-{os.getpid()}")
    try:
        with part.open("wb") as file:
            write(config, file)
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
