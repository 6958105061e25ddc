#!/usr/bin/env python3
"""Makes tests/data/quantized: small models whose matrices are quantized in the formats of GPTQ, AWQ, compressed-tensors
and fp8, with the outputs of the reference implementation (Hugging Face transformers, float32 and bfloat16) for the
values that the formats define, for family_mpi_test.

    tests/data/make_quantized.py OUT     (PyTorch, transformers, compressed-tensors; committed: 2.15, 5.24 and 0.20.1)

Codes are made and put into words here, in numpy, by the descriptions in src/checkpoint/README.md. Matrices of
compressed-tensors, AWQ and blocks of fp8 are unpacked by the compressed-tensors library too, and must be the same.
"""
import json
import math
import pathlib
import sys

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from make_families import GATED, outputs, randomize, tokenizer  # noqa: E402

# Columns of 96, 128 and 160: groups of 64 and 128 end at the row's end, before it, or beyond it. That of
# compressed-tensors are whole: the library has no others.
SMALL = dict(GATED, hidden_size=96, num_attention_heads=4, num_key_value_heads=2, head_dim=32, intermediate_size=160,
             tie_word_embeddings=True, rope_theta=10000.0)
LLAMA = dict(SMALL, model_type="llama")
OPT = dict(model_type="opt", vocab_size=263, num_hidden_layers=2, hidden_size=96, num_attention_heads=4, ffn_dim=160,
           max_position_embeddings=128, word_embed_proj_dim=96, eos_token_id=None, bos_token_id=None, pad_token_id=1)


def words(codes, bits, order=None):
    """(.., n) unsigned codes to (.., ceil(n / per)) words, the first in the lowest bits, or in the places of order."""
    per = 32 // bits
    padded = np.zeros(codes.shape[:-1] + (-(-codes.shape[-1] // per) * per,), np.uint32)
    padded[..., :codes.shape[-1]] = codes
    padded = padded.reshape(codes.shape[:-1] + (-1, per))
    out = np.zeros(padded.shape[:-1], np.uint32)
    for place in range(per):
        out |= padded[..., order[place] if order else place] << np.uint32(bits * place)
    return torch.from_numpy(out.view(np.int32).copy())


def grouped(values, group):
    """For each column its group, and the groups' least and largest values (rows, groups)."""
    cols = values.shape[1]
    of_column = np.arange(cols) // (group or cols)
    groups = of_column[-1] + 1
    least = np.stack([values[:, of_column == g].min(1) for g in range(groups)], 1)
    largest = np.stack([values[:, of_column == g].max(1) for g in range(groups)], 1)
    return of_column, least, largest


def integer(values, bits, group, symmetric, scale_type):
    """Unsigned codes, scales of a 16-bit type as float32, zero points, and the values that these are."""
    of_column, least, largest = grouped(values, group)
    top = 2**bits - 1
    if symmetric:
        scale = np.maximum(np.abs(least), np.abs(largest)) / (top // 2)
    else:
        scale = (np.maximum(largest, 0) - np.minimum(least, 0)) / top
    scale = torch.from_numpy(scale).to(scale_type).float().numpy()
    # From 1 on: `gptq` stores it less 1, and programs disagree on what -1 means.
    zero = np.clip(np.round(-np.minimum(least, 0) / scale), 1, top).astype(np.int64)
    if symmetric:
        zero = np.full(scale.shape, (top + 1) // 2)
    codes = np.clip(np.round(values / scale[:, of_column]) + zero[:, of_column], 0, top).astype(np.int64)
    exact = (codes - zero[:, of_column]).astype(np.float32) * scale[:, of_column]
    return codes, scale, zero, exact


def gptq(values, bits, group, sym, v2):
    codes, scale, zero, exact = integer(values, bits, group, sym, torch.float16)
    stored = zero if v2 else zero - 1
    return {"qweight": words(codes, bits).T.contiguous(), "qzeros": words(stored.T, bits),
            "scales": torch.from_numpy(scale.T.copy()).half(),
            "g_idx": torch.arange(values.shape[1], dtype=torch.int32) // (group or values.shape[1])}, exact


def awq(values, group):
    codes, scale, zero, exact = integer(values, 4, group, False, torch.float16)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    return {"qweight": words(codes.T, 4, order), "qzeros": words(zero.T, 4, order),
            "scales": torch.from_numpy(scale.T.copy()).half()}, exact


def packed(values, bits, group, symmetric, ordered):
    codes, scale, zero, exact = integer(values, bits, group, symmetric, torch.bfloat16)
    parts = {"weight_packed": words(codes, bits), "weight_scale": torch.from_numpy(scale).bfloat16(),
             "weight_shape": torch.tensor(values.shape)}
    if not symmetric:
        parts["weight_zero_point"] = words(zero.T, bits).T.contiguous()
    if ordered:
        parts["weight_g_idx"] = torch.arange(values.shape[1], dtype=torch.int32) // group
    return parts, exact


def bytes_of(values, symmetric):
    codes, scale, zero, exact = integer(values, 8, 0, symmetric, torch.bfloat16)
    parts = {"weight": torch.from_numpy((codes - 128).astype(np.int8)),
             "weight_scale": torch.from_numpy(scale).bfloat16()}
    if not symmetric:
        parts["weight_zero_point"] = torch.from_numpy((zero - 128).astype(np.int8))
    return parts, exact


def float8(values, scale, name, stored):
    """Codes of float8 for scales that are spread over the matrix; `stored` are those of the file."""
    codes = torch.from_numpy(values / scale).to(torch.float8_e4m3fn)
    return {"weight": codes, name: stored}, codes.float().numpy() * scale


def float8_blocks(values, size):
    rows, cols = values.shape
    scale = np.zeros((-(-rows // size), -(-cols // size)), np.float32)
    for r in range(scale.shape[0]):
        for c in range(scale.shape[1]):
            scale[r, c] = np.abs(values[r * size:(r + 1) * size, c * size:(c + 1) * size]).max() / 448
    spread = scale.repeat(size, 0)[:rows].repeat(size, 1)[:, :cols]
    return float8(values, spread, "weight_scale_inv", torch.from_numpy(scale))


def float8_tensor(values):
    scale = np.float32(np.abs(values).max() / 448)
    parts, exact = float8(values, np.full(values.shape, scale), "weight_scale", torch.tensor(scale))
    return parts | {"input_scale": torch.tensor(0.01)}, exact


def float8_rows(values):
    scale = torch.from_numpy(np.abs(values).max(1, keepdims=True) / 448).bfloat16()
    return float8(values, scale.float().numpy(), "weight_scale", scale)


def compressed(form, inputs=None, **weights):
    return {"quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed",
            "ignore": ["lm_head"], "kv_cache_scheme": None, "global_compression_ratio": None,
            "config_groups": {"group_0": {"targets": ["Linear"], "output_activations": None,
                                          "input_activations": inputs,
                                          "weights": {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": False,
                                                      "observer": "minmax", **weights}}}}


DYNAMIC = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}

# Matrices of these models that stay as they are; those of one product stay together.
LEFT = {"ct-some-left": ["model.layers.0.mlp.down_proj", "model.layers.1.self_attn.q_proj",
                         "model.layers.1.self_attn.k_proj", "model.layers.1.self_attn.v_proj"]}

# name: the model, how a matrix is quantized, `quantization_config`, and the type of all that is not quantized
MODELS = {
    "gptq-g32": (dict(SMALL, model_type="qwen2"), lambda v: gptq(v, 4, 32, False, False),
                 {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False, "desc_act": False,
                  "checkpoint_format": "gptq", "true_sequential": True, "damp_percent": 0.01}, torch.float16),
    "gptq-v2-rows-sym": (OPT, lambda v: gptq(v, 4, 0, True, True),
                         {"quant_method": "gptq", "bits": 4, "group_size": -1, "sym": True, "desc_act": True,
                          "checkpoint_format": "gptq_v2"}, torch.float16),
    "gptq-8bit-g64": (LLAMA, lambda v: gptq(v, 8, 64, False, False),
                      {"quant_method": "gptq", "bits": 8, "group_size": 64, "sym": False, "desc_act": False},
                      torch.bfloat16),
    "gptq-sym-g128": (LLAMA, lambda v: gptq(v, 4, 128, True, False),
                      {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False},
                      torch.float16),
    "awq-g64": (LLAMA, lambda v: awq(v, 64),
                {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm",
                 "modules_to_not_convert": None}, torch.float16),
    "ct-w4a16-g128": (dict(LLAMA, hidden_size=128, intermediate_size=128, num_hidden_layers=1),
                      lambda v: packed(v, 4, 128, True, False),
                      compressed("pack-quantized", num_bits=4, strategy="group", group_size=128), torch.bfloat16),
    "ct-w4a16-g32-asym": (dict(SMALL, model_type="qwen3"),
                          lambda v: packed(v, 4, 32, False, True),
                          compressed("pack-quantized", num_bits=4, symmetric=False, strategy="group", group_size=32,
                                     actorder="weight"), torch.bfloat16),
    "ct-w8a16-rows": (dict(LLAMA, intermediate_size=148), lambda v: packed(v, 8, 0, True, False),
                      compressed("pack-quantized", strategy="channel"), torch.bfloat16),
    "ct-w8a8-rows-asym": (LLAMA, lambda v: bytes_of(v, False),
                          compressed("int-quantized", DYNAMIC, strategy="channel", symmetric=False), torch.bfloat16),
    "ct-float8-rows": (LLAMA, float8_rows,
                       compressed("float-quantized", dict(DYNAMIC, type="float"), type="float", strategy="channel"),
                       torch.bfloat16),
    "fp8-blocks": (dict(SMALL, model_type="qwen3", num_key_value_heads=1), lambda v: float8_blocks(v, 128),
                   {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                    "weight_block_size": [128, 128]}, torch.bfloat16),
    "fp8-tensor": (dict(SMALL, model_type="mistral", sliding_window=128), float8_tensor,
                   {"quant_method": "fp8", "activation_scheme": "static"}, torch.bfloat16),
    "ct-some-left": (dict(LLAMA, intermediate_size=96), lambda v: packed(v, 4, 32, False, False),
                     dict(compressed("pack-quantized", num_bits=4, symmetric=False, strategy="group", group_size=32),
                          ignore=["lm_head"] + LEFT["ct-some-left"]), torch.bfloat16),
}


def check_by_library(parts, exact, config):
    """Where the library has such matrices: of AWQ and fp8, those whose groups and blocks are whole."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter
    from compressed_tensors.entrypoints.convert.converters.fp8block_dequantizer import FP8BlockDequantizer
    from compressed_tensors.quantization import QuantizationScheme
    rows, cols = exact.shape
    if config["quant_method"] == "compressed-tensors":
        scheme = QuantizationScheme.model_validate(config["config_groups"]["group_0"])
        form, given = config["format"], {k: v for k, v in parts.items() if k != "weight_g_idx"}
    elif config["quant_method"] == "awq" and cols % config["group_size"] == 0:
        converter = AutoAWQConverter.from_autoawq_config(config)
        given = {k.removeprefix("a.b."): v for k, v in converter.process(named(parts)).items()}
        scheme, form = next(iter(converter._build_quant_config().config_groups.values())), "pack-quantized"
    elif "weight_block_size" in config and rows % 128 == 0 and cols % 128 == 0:
        blocks = FP8BlockDequantizer(targets=["re:.*"], weight_block_size=(128, 128), dtype=torch.float32)
        assert np.array_equal(blocks.process(named(parts))["a.b.weight"].numpy(), exact)
        return 1
    else:
        return 0
    given["weight_scale"] = given["weight_scale"].float()
    got = BaseCompressor.get_value_from_registry(form).decompress(given, scheme)["weight"].float().numpy()
    assert np.array_equal(got, exact), np.abs(got - exact).max()
    return 1


def named(parts):
    return {f"a.b.{part}": tensor for part, tensor in parts.items()}


def main():
    out = pathlib.Path(sys.argv[1])
    torch.set_grad_enabled(False)
    whole = torch.randn(256, 384, generator=torch.Generator().manual_seed(1)).numpy()
    assert check_by_library(*float8_blocks(whole, 128), MODELS["fp8-blocks"][2])
    assert check_by_library(*awq(whole, 64), MODELS["awq-g64"][2])
    for number, (name, (config, quantize, said, dtype)) in enumerate(MODELS.items()):
        generator = torch.Generator().manual_seed(3000 + number)
        values = {k: v for k, v in config.items() if k != "model_type"}
        reference = transformers.AutoConfig.for_model(config["model_type"], **values)
        reference._attn_implementation = "eager"
        model = transformers.AutoModelForCausalLM.from_config(reference).float().eval()
        randomize(model, generator)
        tensors, checked = {}, 0
        for key, module in model.named_modules():
            if not isinstance(module, torch.nn.Linear) or key == "lm_head" or key in LEFT.get(name, ()):
                continue
            parts, exact = quantize(module.weight.numpy())
            checked += check_by_library(parts, exact, said)
            tensors |= {f"{key}.{part}": tensor for part, tensor in parts.items()}
            module.weight.data = torch.from_numpy(exact)
        for key, p in model.state_dict().items():
            matrix = key.endswith(".weight") and (key[:-7] + ".qweight" in tensors or key + "_packed" in tensors)
            if key not in tensors and not matrix and key != "lm_head.weight":
                p.data = p.to(dtype).float()
                tensors[key] = p.to(dtype).contiguous()
        model.tie_weights()
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(dict(config, quantization_config=said), indent=1) + "\n")
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer(), ensure_ascii=False) + "\n")
        entries = outputs(model, reference, generator)
        (folder / "golden.json").write_text(json.dumps(entries, separators=(",", ":")) + "\n")
        print(name, "by the library", checked, "sure", [e["sure"] for e in entries],
              "range", math.ceil(max(map(abs, entries[0]["first_logits"]))))


main()
