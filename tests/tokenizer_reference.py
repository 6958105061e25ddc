"""What Hugging Face tokenizers makes of random texts and ids, for tests/tokenizer_reference_test.cc.

    tokenizer_reference.py PACKAGES KIND OUT

PACKAGES is the directory of tests/reference_packages.sh; run it with the Python of its venv. Writes into OUT a
tokenizer.json of the kind (or vocab.json and merges.txt), made from a vocabulary of PACKAGES, and the reference's
answers:
  cases.jsonl    {"text", "ids", "ids_special", "decoded"}, one a line
  ids.jsonl      {"ids", "decoded", "decoded_special"}: lists of random ids; the second text has special tokens
  golden.jsonl   {"text", "ids"}: texts and ids that come with the vocabulary, where it has them
"""
import itertools
import json
import random
import sys
import unicodedata
from pathlib import Path

from gguf import GGUFReader
from tokenizers import AddedToken, Tokenizer

TEXTS = 5500
ID_LISTS = 1500
SPACE = "\u2581"

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
          r"\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
          r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}|"
          r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
DEEPSEEK = [r"[\r\n]", r"\s?[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293]+",
            r"\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+", r"\s+$",
            r"[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"]


def split(pattern, behavior="Isolated", invert=False, literal=False):
    return {"type": "Split", "pattern": {"String" if literal else "Regex": pattern}, "behavior": behavior,
            "invert": invert}


def sequence(key, *parts):
    return {"type": "Sequence", key: list(parts)}


def byte_level(prefix=False, regex=False):
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": regex}


def replace(text, content):
    return {"type": "Replace", "pattern": {"String": text}, "content": content}


def metaspace(scheme, split_words):
    return {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": split_words}


def template(before, after):
    tokens = [*before, *after]
    piece = lambda token: {"SpecialToken": {"id": token[0], "type_id": 0}}
    single = [*map(piece, before), {"Sequence": {"id": "A", "type_id": 0}}, *map(piece, after)]
    return {"type": "TemplateProcessing", "single": single,
            "pair": single + [{"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {name: {"id": name, "ids": [number], "tokens": [name]} for name, number in tokens}}


SPM_DECODER = sequence("decoders", replace(SPACE, " "), {"type": "ByteFallback"}, {"type": "Fuse"},
                       {"type": "Strip", "content": " ", "start": 1, "stop": 0})
FORM = lambda name: {"type": name}


class Gguf:
    def __init__(self, path):
        fields = GGUFReader(path).fields
        field = lambda key: fields["tokenizer.ggml." + key]
        texts = lambda key: [bytes(field(key).parts[i]).decode() for i in field(key).data]
        numbers = lambda key: [field(key).parts[i][0] for i in field(key).data]
        self.tokens = texts("tokens")
        types = [int(t) for t in numbers("token_type")]
        # 3: special. 4: added by the user. 5: not used. Some vocabularies fill up with tokens of the last kind.
        self.special = [t for t, kind in zip(self.tokens, types) if kind == 3]
        self.scores = [float(s) for s in numbers("scores")] if "tokenizer.ggml.scores" in fields else []
        self.merges = [m.split(" ") for m in texts("merges")] if "tokenizer.ggml.merges" in fields else []

    def vocab(self, without=()):
        """Numbered without a gap: tokens that are added get the ids from its size on."""
        return {token: i for i, token in enumerate(t for t in self.tokens if t not in without)}

    def merges_by_score(self, vocab):
        """Merges in the order of their scores, as SentencePiece vocabularies are converted."""
        merges = []
        score = dict(zip(self.tokens, self.scores))
        for token in vocab:
            pairs = [(token[:i], token[i:]) for i in range(1, len(token))]
            pairs = [p for p in pairs if p[0] in vocab and p[1] in vocab]
            pairs.sort(key=lambda p: (vocab[p[0]], vocab[p[1]]))
            merges += [(p, score[token]) for p in pairs]
        merges.sort(key=lambda m: m[1], reverse=True)
        return [list(pair) for pair, _ in merges]


def added(content, number, **flags):
    return {"id": number, "content": content,
            **{key: flags.get(key, False) for key in ("single_word", "lstrip", "rstrip", "normalized", "special")}}


def more_tokens(vocab, first):
    """Added tokens with every flag; some overlap each other."""
    numbers = itertools.count(first)
    return [added(content, vocab[content] if content in vocab else next(numbers), **flags) for content, flags in [
        ("<|special|>", {"special": True}),
        ("<|left|>", {"lstrip": True, "special": True}),
        ("<|right|>", {"rstrip": True}),
        ("<|both|>", {"lstrip": True, "rstrip": True}),
        ("zebra", {"single_word": True}),
        ("zeb", {}),
        ("q q", {"normalized": True}),
        ("\u00dcn\u00ef", {"normalized": True}),
        ("  >>", {"rstrip": True, "normalized": True}),
        ("\u795e", {"single_word": True, "lstrip": True})]]


def make(kind, models):
    """The tokenizer.json, the name of its vocabulary and whether its golden ids apply."""
    gguf_name, apply_golden = {
        "gpt2": ("gpt-2", True), "gpt2_prefix": ("gpt-2", False), "smollm": ("gpt-2", False), "opt": ("gpt-2", False),
        "llama3": ("llama-bpe", True), "qwen2": ("qwen2", True), "tekken": ("qwen2", False),
        "deepseek": ("deepseek-llm", True),
        "llama2": ("llama-spm", True), "mistral": ("llama-spm", False), "metaspace": ("llama-spm", False),
        "metaspace_old": ("llama-spm", False), "gemma": ("llama-spm", False), "unknown": ("llama-spm", False),
        "unknown_each": ("llama-spm", False)}[kind]
    source = Gguf(models / f"ggml-vocab-{gguf_name}.gguf")
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    root = {"version": "1.0", "truncation": None, "padding": None, "normalizer": None,
            "post_processor": byte_level(), "decoder": byte_level()}
    special = list(source.special)
    if source.merges:
        # Special tokens behind all others are not part of the model, as in published files.
        behind = itertools.takewhile(lambda token: token in special, reversed(source.tokens))
        model["vocab"] = source.vocab(without=set(behind))
        model["merges"] = source.merges
    else:
        without = set() if not kind.startswith("unknown") else {f"<0x{byte:02X}>" for byte in range(256)}
        model["vocab"] = source.vocab(without)
        model["merges"] = source.merges_by_score(model["vocab"])
        model.update(unk_token="<unk>", fuse_unk=kind != "unknown_each", byte_fallback=not kind.startswith("unknown"))
        root["decoder"] = SPM_DECODER
        root["pre_tokenizer"] = None
        root["post_processor"] = template([("<s>", 1)], [])
    gpt2_like = sequence("pretokenizers", split(LLAMA3), byte_level())
    if kind in ("gpt2", "opt"):
        root["pre_tokenizer"] = byte_level(regex=True)
    elif kind == "gpt2_prefix":
        root["pre_tokenizer"] = byte_level(prefix=True, regex=True)
        root["post_processor"] = {"type": "RobertaProcessing", "sep": ["!", 0], "cls": ["#", 2], "trim_offsets": True,
                                  "add_prefix_space": True}
    elif kind == "smollm":
        root["pre_tokenizer"] = sequence("pretokenizers", {"type": "Digits", "individual_digits": True},
                                         byte_level(regex=True))
        root["post_processor"] = {"type": "BertProcessing", "sep": ["!", 0], "cls": ["#", 2]}
    elif kind == "llama3":
        root["pre_tokenizer"] = gpt2_like
        model["ignore_merges"] = True
        root["post_processor"] = sequence("processors", byte_level(),
                                          template([("<|begin_of_text|>", 128000)], []))
    elif kind == "qwen2":
        root["normalizer"] = FORM("NFC")
        root["pre_tokenizer"] = sequence("pretokenizers", split(QWEN2), byte_level())
    elif kind == "tekken":
        root["pre_tokenizer"] = sequence("pretokenizers", split(TEKKEN), byte_level())
        model["ignore_merges"] = True
        root["post_processor"] = template([("!", 0), ("$", 3)], [("#", 2)])
    elif kind == "deepseek":
        root["pre_tokenizer"] = sequence("pretokenizers", *map(split, DEEPSEEK),
                                         {"type": "Digits", "individual_digits": True}, byte_level())
    elif kind in ("llama2", "unknown", "unknown_each"):
        root["normalizer"] = sequence("normalizers", {"type": "Prepend", "prepend": SPACE}, replace(" ", SPACE))
        if kind == "unknown":
            root["normalizer"]["normalizers"].insert(0, FORM("NFKC"))
        if kind == "unknown_each":
            root["normalizer"] = sequence("normalizers", FORM("NFD"), replace(" ", SPACE), FORM("NFKD"))
    elif kind == "mistral":
        root["pre_tokenizer"] = metaspace("first", False)
    elif kind == "metaspace":
        root["pre_tokenizer"] = metaspace("always", True)
        root["decoder"] = metaspace("always", True)
        root["post_processor"] = template([], [("</s>", 2)])
    elif kind == "metaspace_old":
        root["pre_tokenizer"] = {"type": "Metaspace", "replacement": SPACE, "add_prefix_space": True}
        root["decoder"] = sequence("decoders", {"type": "ByteFallback"}, metaspace("never", True))
    elif kind == "gemma":
        root["normalizer"] = replace(" ", SPACE)
        root["pre_tokenizer"] = sequence("pretokenizers", split(SPACE, "MergedWithPrevious", literal=True),
                                         split(r"\d+", "Contiguous"), split("[aeiou]", "MergedWithNext", invert=True),
                                         split("z", "Removed"))
        root["decoder"] = sequence("decoders", replace(SPACE, " "), {"type": "ByteFallback"}, {"type": "Fuse"})
    root["model"] = model
    number = {token: i for i, token in enumerate(source.tokens)}
    root["added_tokens"] = [added(t, number[t], special=True) for t in special]
    if kind != "opt":
        first = max(len(model["vocab"]), *[t["id"] + 1 for t in root["added_tokens"]])
        root["added_tokens"] += more_tokens(model["vocab"], first)
    return root, source, models / f"ggml-vocab-{gguf_name}.gguf" if apply_golden else None


def characters():
    """Characters by kind, of those that the Unicode version of all parties knows."""
    assigned = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c)) not in ("Cn", "Cs")]
    by_first = {}
    for c in assigned:
        by_first.setdefault(unicodedata.category(c)[0], []).append(c)
    return {"any": assigned, "ascii": [chr(c) for c in range(128)], "letters": [chr(c) for c in range(97, 123)],
            "marks": by_first["M"], "numbers": by_first["N"], "spaces": list(" \t\n\r\u00a0\u2003\u3000\u200b\u2028"),
            "cjk": [chr(c) for c in range(0x4e00, 0x9fa6)] + [chr(c) for c in range(0x3041, 0x3097)],
            "hangul": [chr(c) for c in [*range(0xac00, 0xd7a4), *range(0x1100, 0x1200)]],
            "emoji": [chr(c) for c in range(0x1f300, 0x1f650)] + ["\u200d", "\ufe0f"],
            "latin": [chr(c) for c in range(0xc0, 0x250)],
            "compatible": [c for c in assigned if unicodedata.decomposition(c)]}


WORDS = ("the In He's I'll DON'T we've def return for(int i=0; => != ++ // /* */ <s> </s> <unk> <pad> <0x41> <0xFF> "
         "zebra zeb zebras q\u00a0q \ufffd \\xff \\u0000 \u2581 \u2581\u2581 e\u0301 U\u0308ni\u0308 \u00dcn\u00ef "
         "\u1e9b\u0323 \ufb01 \u00bd \u2460 1234567 3.14 ... !? $x \u4f60\u597d \u795e "
         "\u0928\u092e\u0938\u094d\u0924\u0947 "
         "\u0645\u0631\u062d\u0628\u0627 \U0001f469\u200d\U0001f469\u200d\U0001f467 http://a.b/c?d=e#f "
         "AbcDef camelCase SNAKE_CASE").split(" ") + ["q q", "  >>", "q q q", "\r\n", "\n\n", "\t"]


def random_text(rng, chars, tokens):
    parts = []
    for _ in range(rng.randint(1, 12)):
        kind = rng.random()
        if kind < 0.3:
            parts.append(rng.choice(WORDS))
        elif kind < 0.45:
            parts.append(rng.choice(tokens))
        elif kind < 0.6:
            parts.append(rng.choice(chars["spaces"] if rng.random() < 0.5 else [" "]) * rng.randint(1, 5))
        else:
            pool = chars[rng.choice(list(chars))]
            parts.append("".join(rng.choice(pool) for _ in range(rng.randint(1, 8))))
        if rng.random() < 0.4:
            parts.append(" ")
    return "".join(parts)


def main():
    packages, kind, out = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    root, source, golden = make(kind, packages / "llama.cpp/models")
    out.mkdir(parents=True, exist_ok=True)
    write = lambda name, text: (out / name).write_text(text, encoding="utf-8")
    dump = lambda value: json.dumps(value, ensure_ascii=False)
    tokenizer = Tokenizer.from_str(dump(root))
    if kind == "opt":
        # As the reference's GPT2Tokenizer reads them, which puts `</s>` in front.
        names = {key: {"__type": "AddedToken", "content": "</s>", "normalized": True} for key in
                 ("bos_token", "eos_token", "unk_token")}
        vocab = {**root["model"]["vocab"], "</s>": len(source.tokens)}
        vocab["<|endoftext|>"] = source.tokens.index("<|endoftext|>")
        write("vocab.json", dump(vocab))
        write("merges.txt", "#version: 0.2\n" + "".join(" ".join(m) + "\n" for m in root["model"]["merges"]))
        write("tokenizer_config.json", dump({"add_bos_token": True, "add_prefix_space": False,
                                             "tokenizer_class": "GPT2Tokenizer", **names, "pad_token": "<pad>"}))
        root["model"]["vocab"] = vocab
        root["post_processor"] = template([("</s>", vocab["</s>"])], [])
        root["added_tokens"] = []
        tokenizer = Tokenizer.from_str(dump(root))
        tokenizer.add_special_tokens([AddedToken("</s>", normalized=True, special=True),
                                      AddedToken("<pad>", normalized=False, special=True)])
    else:
        write("tokenizer.json", dump(root))

    rng = random.Random(7)
    chars = characters()
    tokens = [t["content"] for t in root["added_tokens"]][-40:] or ["</s>", "<pad>"]
    cases, id_lists = [], []
    for _ in range(TEXTS):
        text = random_text(rng, chars, tokens)
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        cases.append({"text": text, "ids": ids, "ids_special": tokenizer.encode(text).ids,
                      "decoded": tokenizer.decode(ids, skip_special_tokens=True)})
    write("cases.jsonl", "".join(dump(c) + "\n" for c in cases))
    byte_ids = [i for i, t in enumerate(source.tokens) if t.startswith("<0x") or len(t) == 1]
    for _ in range(ID_LISTS):
        ids = [rng.choice(byte_ids) if rng.random() < 0.7 else rng.randrange(len(source.tokens))
               for _ in range(rng.randint(0, 12))]
        id_lists.append({"ids": ids, "decoded": tokenizer.decode(ids, skip_special_tokens=True),
                         "decoded_special": tokenizer.decode(ids, skip_special_tokens=False)})
    write("ids.jsonl", "".join(dump(c) + "\n" for c in id_lists))
    lines = []
    if golden:
        texts = Path(f"{golden}.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
        ids = [[int(i) for i in line.split()] for line in Path(f"{golden}.out").read_text().splitlines()]
        lines = [{"text": text, "ids": i} for text, i in zip(texts, ids)]
    write("golden.jsonl", "".join(dump(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
