"""The models of benchmarks/weight_formats.py, evaluated by numpy in float32, and their texts."""
import json
import math
import pathlib
import pydoc_data.topics
import sys

import numpy

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BLOOM = ROOT / "tests/data/bloom-kjv"
SMOLLM2 = ROOT / "build-reference/smollm2"
NAMES = ["bloom-kjv", "smollm2", "smollm2-scaled", "smollm2-rotated"]
WINDOW = 512
f32 = numpy.float32


def to_bfloat16(values):
    """Rounded to the nearest bfloat16, ties to even; as float32."""
    bits = numpy.ascontiguousarray(values, f32).view(numpy.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(numpy.uint32).view(f32)


def read_checkpoint(folder, prefix):
    weights = {}
    for path in sorted(folder.glob("*.safetensors")):
        raw = path.read_bytes()
        start = 8 + int.from_bytes(raw[:8], "little")
        for name, entry in json.loads(raw[8:start]).items():
            if name == "__metadata__":
                continue
            if entry["dtype"] != "BF16":
                sys.exit(f"{path}: {name} is {entry['dtype']}, only BF16 is read here")
            first, last = (start + at for at in entry["data_offsets"])
            bits = numpy.frombuffer(raw[first:last], "<u2").astype(numpy.uint32) << 16
            weights[name.removeprefix(prefix)] = bits.view(f32).reshape(entry["shape"])
    if not weights:
        sys.exit(f"{folder}: no safetensors; tests/reference_packages.sh build-reference makes SmolLM2")
    return weights


def softmax(scores):
    scores = numpy.exp(scores - scores.max(-1, keepdims=True))
    return scores / scores.sum(-1, keepdims=True)


def causal(count):
    return numpy.where(numpy.tri(count, dtype=bool), 0, -1e30).astype(f32)


class Bloom:
    """`weights` may be changed between calls. `blocks` names the matrices of blocks; "embed" and "head" are the others."""

    def __init__(self):
        self.config = json.loads((BLOOM / "config.json").read_text())
        self.weights = read_checkpoint(BLOOM, "transformer.")
        self.blocks = [k for k, v in self.weights.items() if k.startswith("h.") and v.ndim == 2]
        self.weights["embed"] = self.weights["head"] = self.weights["word_embeddings.weight"]

    def norm(self, x, name):
        x = x - x.mean(-1, keepdims=True)
        x /= numpy.sqrt((x * x).mean(-1, keepdims=True) + self.config["layer_norm_epsilon"])
        return x * self.weights[name + ".weight"] + self.weights[name + ".bias"]

    def product(self, x, name):
        return x @ self.weights[name + ".weight"].T + self.weights[name + ".bias"]

    def logits(self, ids):
        heads, count = self.config["n_head"], len(ids)
        low = 2 ** math.floor(math.log2(heads))
        slopes = [2 ** (-8 * i / low) for i in range(1, low + 1)]
        slopes += [2 ** (-8 * i / (2 * low)) for i in range(1, 2 * (heads - low) + 1, 2)]
        bias = numpy.array(slopes, f32)[:, None, None] * numpy.arange(count, dtype=f32) + causal(count)
        x = self.norm(self.weights["embed"][ids], "word_embeddings_layernorm")
        for i in range(self.config["n_layer"]):
            p = f"h.{i}."
            qkv = self.product(self.norm(x, p + "input_layernorm"), p + "self_attention.query_key_value")
            q, k, v = qkv.reshape(count, heads, 3, -1).transpose(2, 1, 0, 3)
            mixed = softmax(q @ k.transpose(0, 2, 1) / f32(math.sqrt(q.shape[-1])) + bias) @ v
            x = x + self.product(mixed.transpose(1, 0, 2).reshape(count, -1), p + "self_attention.dense")
            u = self.product(self.norm(x, p + "post_attention_layernorm"), p + "mlp.dense_h_to_4h")
            u = u * f32(0.5) * (1 + numpy.tanh(f32(0.79788456) * u * (1 + f32(0.044715) * u * u)))
            x = x + self.product(u, p + "mlp.dense_4h_to_h")
        return self.norm(x, "ln_f") @ self.weights["head"].T


class Llama:
    """As Bloom. `change` is "", "scaled" or "rotated"."""

    def __init__(self, change):
        c = self.config = json.loads((SMOLLM2 / "config.json").read_text())
        w = self.weights = read_checkpoint(SMOLLM2, "model.")
        w["embed"] = w["head"] = w.pop("embed_tokens.weight")
        self.blocks = [k for k, v in w.items() if k.startswith("layers.") and v.ndim == 2]
        self.heads, self.kv_heads = c["num_attention_heads"], c["num_key_value_heads"]
        self.size = c["hidden_size"] // self.heads
        readers = (("input_layernorm", "self_attn.q_proj self_attn.k_proj self_attn.v_proj"),
                   ("post_attention_layernorm", "mlp.gate_proj mlp.up_proj"))
        layers = [f"layers.{i}." for i in range(c["num_hidden_layers"])]
        norms = [(p + norm + ".weight", [p + m + ".weight" for m in names.split()])
                 for p in layers for norm, names in readers] + [("norm.weight", ["head"])]
        random = numpy.random.default_rng(1)
        if change == "scaled":
            def scale(count):
                return numpy.exp2(random.uniform(-0.5, 0.5, count)).astype(f32)
            for norm, matrices in norms:
                s = scale(c["hidden_size"])
                w[norm] = w[norm] / s
                w.update({m: w[m] * s for m in matrices})
            for p in layers:
                up, down, v, o = (p + m + ".weight" for m in
                                  ("mlp.up_proj", "mlp.down_proj", "self_attn.v_proj", "self_attn.o_proj"))
                s = scale(c["intermediate_size"])
                w[up], w[down] = w[up] * s[:, None], w[down] / s
                s = scale(self.kv_heads * self.size)
                shared = numpy.repeat(s.reshape(self.kv_heads, -1), self.heads // self.kv_heads, 0).reshape(-1)
                w[v], w[o] = w[v] * s[:, None], w[o] / shared
        if change == "rotated":
            turn = numpy.linalg.qr(random.standard_normal((c["hidden_size"],) * 2))[0]
            for norm, matrices in norms:
                w.update({m: ((w[m] * w[norm].astype(float)) @ turn).astype(f32) for m in matrices})
                w[norm] = numpy.ones_like(w[norm])
            for m in [p + m for p in layers for m in ("self_attn.o_proj.weight", "mlp.down_proj.weight")]:
                w[m] = (turn.T @ w[m].astype(float)).astype(f32)
            w["embed"] = (w["embed"].astype(float) @ turn).astype(f32)
        if change:
            w.update({m: to_bfloat16(w[m]) for m in self.blocks + ["embed", "head"]})

    def norm(self, x, name):
        return x / numpy.sqrt((x * x).mean(-1, keepdims=True) + f32(self.config["rms_norm_eps"])) * self.weights[name]

    def logits(self, ids):
        w, count, half = self.weights, len(ids), self.size // 2
        theta = self.config.get("rope_theta") or self.config["rope_parameters"]["rope_theta"]
        angle = numpy.arange(count)[:, None] * float(theta) ** (-numpy.arange(half) / half)
        cos, sin = numpy.cos(angle).astype(f32), numpy.sin(angle).astype(f32)

        def turned(x):
            a, b = x[..., :half], x[..., half:]
            return numpy.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

        mask, x = causal(count), w["embed"][ids]
        for i in range(self.config["num_hidden_layers"]):
            p = f"layers.{i}."
            a = self.norm(x, p + "input_layernorm.weight")
            q, k, v = ((a @ w[f"{p}self_attn.{m}_proj.weight"].T).reshape(count, -1, self.size).transpose(1, 0, 2)
                       for m in "qkv")
            q, k = turned(q) * f32(self.size**-0.5), turned(k)
            each = self.heads // self.kv_heads
            mixed = numpy.stack([softmax(q[h] @ k[h // each].T + mask) @ v[h // each] for h in range(self.heads)], 1)
            x = x + mixed.reshape(count, -1) @ w[p + "self_attn.o_proj.weight"].T
            a = self.norm(x, p + "post_attention_layernorm.weight")
            gate = a @ w[p + "mlp.gate_proj.weight"].T
            gated = gate / (1 + numpy.exp(-gate)) * (a @ w[p + "mlp.up_proj.weight"].T)
            x = x + gated @ w[p + "mlp.down_proj.weight"].T
        return self.norm(x, "norm.weight") @ w["head"].T


def windows_of(model, count):
    """`count` windows of ids for a model's name."""
    score = json.loads((BLOOM / "score.json").read_text())["ids"]
    if model == "bloom-kjv":
        return [score[i:i + WINDOW] for i in range(0, len(score), WINDOW)][:count]
    from tokenizers import Tokenizer
    genesis = Tokenizer.from_file(str(BLOOM / "tokenizer.json")).decode(score)
    topics = pydoc_data.topics.topics
    manual = "\n".join(topics[k] for k in sorted(topics))
    tokenizer = Tokenizer.from_file(str(SMOLLM2 / "tokenizer.json"))
    texts = [tokenizer.encode(t, add_special_tokens=False).ids for t in (genesis, manual)]
    pairs = zip(*([t[i:i + WINDOW] for i in range(0, len(t) - WINDOW + 1, WINDOW)] for t in texts))
    return [ids for pair in pairs for ids in pair][:count]


def model_of(name):
    """The model with its float32 loss on a known text checked against Hugging Face transformers."""
    if name == "bloom-kjv":
        model, known = Bloom(), json.loads((BLOOM / "score.json").read_text())
        ids, wanted = known["ids"], known["mean_nll_float32"]
    else:
        model = Llama(name.removeprefix("smollm2").removeprefix("-"))
        known = json.loads((ROOT / "tests/data/smollm2.json").read_text())["score"]
        ids, wanted = known["ids"], known["mean_nll_float32"]
    parts = [ids[i:i + WINDOW] for i in range(0, len(ids), WINDOW)]
    losses = numpy.concatenate([losses_of(log_probabilities(model, part), part) for part in parts if len(part) > 1])
    most = 1e-4 if name in ("bloom-kjv", "smollm2") else 2e-2  # the others are rounded to bfloat16 once more
    if not abs(losses.mean() - wanted) < most:
        sys.exit(f"{name}: a mean loss of {losses.mean():.6f}, wanted {wanted:.6f}: this is not the model")
    return model


def log_probabilities(model, ids):
    """(len(ids) - 1, vocabulary), float32."""
    logits = model.logits(numpy.array(ids))[:-1]
    logits -= logits.max(-1, keepdims=True)
    return logits - numpy.log(numpy.exp(logits).sum(-1, keepdims=True))


def losses_of(log_probability, ids):
    return -log_probability[numpy.arange(len(ids) - 1), ids[1:]].astype(float)
