#!/usr/bin/env python3
"""Turns a GGUF file of the Llama architecture into a checkpoint as Hugging Face publishes them, for the tests:
config.json, model.safetensors (bfloat16), tokenizer.json, tokenizer_config.json and generation_config.json.

    tests/gguf_checkpoint.py FILE.gguf OUT      (`gguf`, which brings numpy: tests/reference_packages.sh)

Quantized weights are expanded by gguf's reference code and rounded to bfloat16. OUT appears when it is complete.
"""
import json
import os
import pathlib
import shutil
import sys

import gguf
import numpy

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # token types


def rope_pairs_apart(weight, heads):
    """llama.cpp keeps the two rows of a rotary pair side by side, transformers half a head apart."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def to_bfloat16(values):
    """The bits, rounded to the nearest, ties to even."""
    bits = numpy.ascontiguousarray(values, dtype=numpy.float32).view(numpy.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(numpy.uint16)


def tensors(reader, config):
    parts = {"attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
             "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
             "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
    names = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    if not config["tie_word_embeddings"]:
        names["output.weight"] = "lm_head.weight"
    for layer in range(config["num_hidden_layers"]):
        for theirs, ours in parts.items():
            names[f"blk.{layer}.{theirs}.weight"] = f"model.layers.{layer}.{ours}.weight"
    found = {t.name: t for t in reader.tensors}
    if found.keys() != names.keys():
        sys.exit(f"these tensors are missing or not known: {sorted(found.keys() ^ names.keys())}")
    for theirs, ours in names.items():
        weight = gguf.quants.dequantize(found[theirs].data, found[theirs].tensor_type)
        if theirs.endswith("attn_q.weight"):
            weight = rope_pairs_apart(weight, config["num_attention_heads"])
        elif theirs.endswith("attn_k.weight"):
            weight = rope_pairs_apart(weight, config["num_key_value_heads"])
        yield ours, to_bfloat16(weight)


def write_safetensors(path, named):
    named = dict(named)
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, bits in named.items():
        header[name] = {"dtype": "BF16", "shape": list(bits.shape), "data_offsets": [at, at + bits.nbytes]}
        at += bits.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for bits in named.values():
            bits.tofile(file)


def tokenizer(tokens, types, merges):
    if not set(types) <= {NORMAL, CONTROL, USER_DEFINED}:
        sys.exit(f"a kind of token is not supported: {sorted(set(types) - {NORMAL, CONTROL, USER_DEFINED})}")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    added = [{"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": kind == CONTROL} for i, (token, kind) in enumerate(zip(tokens, types)) if kind != NORMAL]
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
            "pre_tokenizer": {"type": "Sequence",
                              "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level]},
            "post_processor": None, "decoder": byte_level,
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                      "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                      "vocab": {token: i for i, token in enumerate(tokens)}, "merges": merges}}


def main():
    reader = gguf.GGUFReader(sys.argv[1])
    out = pathlib.Path(sys.argv[2])

    def value(key):
        if key not in reader.fields:
            sys.exit(f"{sys.argv[1]}: no {key}")
        return reader.fields[key].contents()

    def number(key):  # the shortest one that is this float32: 1e-05
        return float(str(numpy.float32(value(key))))

    kinds = {"general.architecture": "llama", "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm",
             "tokenizer.ggml.add_bos_token": False}
    for key, wanted in kinds.items():
        if value(key) != wanted:
            sys.exit(f"{sys.argv[1]}: {key} {value(key)} is not supported, {wanted} is")
    tokens = value("tokenizer.ggml.tokens")
    bos, eos, pad = (value(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "padding"))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": len(tokens),
        "hidden_size": value("llama.embedding_length"), "intermediate_size": value("llama.feed_forward_length"),
        "num_hidden_layers": value("llama.block_count"), "num_attention_heads": value("llama.attention.head_count"),
        "num_key_value_heads": value("llama.attention.head_count_kv"), "head_dim": value("llama.rope.dimension_count"),
        "hidden_act": "silu", "max_position_embeddings": value("llama.context_length"),
        "rms_norm_eps": number("llama.attention.layer_norm_rms_epsilon"), "rope_theta": number("llama.rope.freq_base"),
        "tie_word_embeddings": all(t.name != "output.weight" for t in reader.tensors), "attention_bias": False,
        "mlp_bias": False, "bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad, "torch_dtype": "bfloat16"}
    special = {"bos_token": tokens[bos], "eos_token": tokens[eos], "pad_token": tokens[pad],
               "unk_token": tokens[value("tokenizer.ggml.unknown_token_id")]}
    types = value("tokenizer.ggml.token_type")
    files = {
        "config.json": config,
        "generation_config.json": {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad},
        "tokenizer.json": tokenizer(tokens, types, value("tokenizer.ggml.merges")),
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", **special,
                                  "chat_template": value("tokenizer.chat_template"),
                                  "clean_up_tokenization_spaces": False,
                                  "model_max_length": config["max_position_embeddings"]}}
    part = out.with_name(f"{out.name}.part-{os.getpid()}")
    part.mkdir(parents=True)
    try:
        for name, content in files.items():
            (part / name).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        write_safetensors(part / "model.safetensors", tensors(reader, config))
        shutil.rmtree(out, ignore_errors=True)
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


main()
