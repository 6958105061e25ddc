#!/usr/bin/env python3
"""Makes tests/data/families: small models of random weights of each family, with the outputs of the reference
implementation (Hugging Face transformers, float32 and bfloat16), for family_mpi_test.

    tests/data/make_families.py OUT      (PyTorch and transformers; what is committed is from 2.11 and 5.17)

Weights are rounded to bfloat16 and stored so; the float32 reference computes with those values.
"""
import json
import math
import pathlib
import sys

import torch
import transformers
from safetensors.torch import save_file

VOCABULARY = 263  # the bytes of the tokenizer and some more; not a multiple of any world size
NEW_TOKENS = 64
PROMPT_LENGTHS = [1, 5, 17, 33, 50, 24]

GATED = dict(vocab_size=VOCABULARY, num_hidden_layers=2, max_position_embeddings=256, eos_token_id=None,
             bos_token_id=None, rms_norm_eps=1e-5)
# Each names what it is there for: heads of queries and of keys and values, the size of a head, positions, head.
MODELS = {
    "llama-9x3x64-tied": dict(GATED, model_type="llama", hidden_size=72, num_attention_heads=9, num_key_value_heads=3,
                              head_dim=64, intermediate_size=100, tie_word_embeddings=True, rope_theta=10000.0),
    "llama-8x1x128-llama3-biases": dict(
        GATED, model_type="llama", hidden_size=64, num_attention_heads=8, num_key_value_heads=1, head_dim=128,
        intermediate_size=96, tie_word_embeddings=False, attention_bias=True, mlp_bias=True, rope_theta=500000.0,
        rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                          original_max_position_embeddings=32)),
    "llama-5x5x80-linear": dict(GATED, model_type="llama", hidden_size=80, num_attention_heads=5, head_dim=80,
                                intermediate_size=112, tie_word_embeddings=False, rope_theta=10000.0,
                                rope_scaling=dict(type="linear", factor=4.0)),
    "llama-8x2x16-dynamic": dict(GATED, model_type="llama", hidden_size=128, num_attention_heads=8,
                                 num_key_value_heads=2, intermediate_size=90, tie_word_embeddings=False,
                                 hidden_act="gelu", rope_theta=10000.0,
                                 rope_scaling=dict(rope_type="dynamic", factor=2.0)),
    "mistral-4x2x96-window": dict(GATED, model_type="mistral", hidden_size=96, num_attention_heads=4,
                                  num_key_value_heads=2, head_dim=96, intermediate_size=128, sliding_window=128,
                                  tie_word_embeddings=False, rope_theta=1000000.0),
    "qwen2-6x3x20-yarn-tied": dict(GATED, model_type="qwen2", hidden_size=120, num_attention_heads=6,
                                   num_key_value_heads=3, intermediate_size=130, tie_word_embeddings=True,
                                   rope_theta=10000.0, use_sliding_window=False,
                                   rope_scaling=dict(type="yarn", factor=4.0, original_max_position_embeddings=64)),
    "qwen3-8x2x128-tied": dict(GATED, model_type="qwen3", hidden_size=64, num_attention_heads=8,
                               num_key_value_heads=2, head_dim=128, intermediate_size=104, tie_word_embeddings=True,
                               rope_theta=1000000.0),
    "qwen3-3x3x64": dict(GATED, model_type="qwen3", hidden_size=100, num_attention_heads=3, num_key_value_heads=3,
                         head_dim=64, intermediate_size=88, tie_word_embeddings=False, attention_bias=True,
                         rope_theta=1000000.0),
    "opt-3x3x64-tied": dict(model_type="opt", vocab_size=VOCABULARY, num_hidden_layers=2, hidden_size=192,
                            num_attention_heads=3, ffn_dim=160, max_position_embeddings=128, word_embed_proj_dim=192,
                            eos_token_id=None, bos_token_id=None, pad_token_id=1),
    "opt-4x4x24-gelu-without-biases": dict(model_type="opt", vocab_size=VOCABULARY, num_hidden_layers=2,
                                           hidden_size=96, num_attention_heads=4, ffn_dim=132,
                                           max_position_embeddings=128, word_embed_proj_dim=96, enable_bias=False,
                                           activation_function="gelu", eos_token_id=None, bos_token_id=None,
                                           pad_token_id=1),
}


def randomize(model, generator):
    for name, p in sorted(model.named_parameters()):
        noise = torch.randn(p.shape, generator=generator)
        if p.dim() == 1:
            value = 0.3 * noise if name.endswith("bias") else 1 + 0.2 * noise
        elif "embed" in name:
            value = 0.5 * noise
        else:
            value = noise * (2 / math.sqrt(p.shape[1]))
        p.data = value.to(torch.bfloat16).float()


def greedy(model, ids):
    """The ids, the least margin up to each of them, and the logits of the first and the last step."""
    out, logits_of, margins = [], [], []
    past, step = None, torch.tensor([ids])
    for _ in range(NEW_TOKENS):
        result = model(input_ids=step, past_key_values=past, use_cache=True)
        past = result.past_key_values
        row = result.logits[0, -1].float()
        best = row.topk(2)
        logits_of.append(row)
        margins.append((best.values[0] - best.values[1]).item())
        out.append(int(best.indices[0]))
        step = torch.tensor([[out[-1]]])
    return out, margins, logits_of


def outputs(model, config, generator):
    """What golden.json holds of a model: random prompts, the ids and logits that follow in float32, and how far
    bfloat16 is from the first logits."""
    narrow = transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16).eval()
    narrow.load_state_dict(model.state_dict())
    entries = []
    for length in PROMPT_LENGTHS:
        ids = torch.randint(0, 256, (length,), generator=generator).tolist()
        greedy_ids, margins, logits = greedy(model, ids)
        sure = next((i for i, m in enumerate(margins) if m <= 0.01), len(margins))
        first_narrow = narrow(input_ids=torch.tensor([ids])).logits[0, -1].float()
        last = min(sure, NEW_TOKENS - 1)
        entries.append({
            "prompt_ids": ids, "greedy_ids": greedy_ids, "sure": sure,
            "first_logits": [round(x, 5) for x in logits[0].tolist()],
            "last_step": last, "last_logits": [round(x, 5) for x in logits[last].tolist()],
            "bfloat16_error": (first_narrow - logits[0]).abs().max().item()})
    return entries


def tokenizer():
    """One token a byte, in the byte-level alphabet of GPT-2; the rest are never found in a text."""
    visible = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    letters, extra = {}, 0
    for byte in range(256):
        if byte in visible:
            letters[byte] = chr(byte)
        else:
            letters[byte] = chr(256 + extra)
            extra += 1
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            "post_processor": None,
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                      "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                      "vocab": {letters[b]: b for b in range(256)} | {f"rest{i}": i for i in range(256, VOCABULARY)},
                      "merges": []}}


def main():
    out = pathlib.Path(sys.argv[1])
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    for number, (name, config) in enumerate(MODELS.items()):
        generator = torch.Generator().manual_seed(1000 + number)
        values = {k: v for k, v in config.items() if k != "model_type"}
        reference = transformers.AutoConfig.for_model(config["model_type"], **values)
        reference._attn_implementation = "eager"
        model = transformers.AutoModelForCausalLM.from_config(reference).float().eval()
        randomize(model, generator)
        model.tie_weights()
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        if "qwen3" in name:  # as version 5 writes it, with rope_parameters and layer_types
            reference.save_pretrained(folder)
        else:
            (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        tensors = {k: v.to(torch.bfloat16).contiguous() for k, v in model.state_dict().items()}
        if reference.tie_word_embeddings:
            tensors.pop("lm_head.weight")
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer(), ensure_ascii=False) + "\n")
        entries = outputs(model, reference, generator)
        for e in entries:
            print(name, len(e["prompt_ids"]), "sure", e["sure"], "distinct", len(set(e["greedy_ids"])), "bf16 error",
                  e["bfloat16_error"], "range", math.ceil(max(map(abs, e["first_logits"]))))
        (folder / "golden.json").write_text(json.dumps(entries, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
