"""lm_eval, unmodified, against a server: the likelihoods and texts of an offline job.

    serve_lm_eval_test.py BINARY RANKS

Run it by serve_clients_test.sh, with the Python in which `lm_eval` is installed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))

from serving.server import ROOT, Server, offline

BINARY, RANKS = sys.argv[1], int(sys.argv[2])
TASKS = ROOT / "tests/data/lm_eval"
VERSES = [json.loads(line) for line in (TASKS / "verses.jsonl").read_text(encoding="utf-8").splitlines()]
TOLERANCE = 1e-4


def evaluate(
    server: Server, folder: str, *tasks: str, batch_size: int = 1, **model_arguments: Any
) -> dict[str, list[dict]]:
    """The samples of each task, in their order."""
    arguments = {
        "model": "kjv", "base_url": f"{server.base}/v1/completions", "max_length": 2048, **model_arguments
    }  # fmt: skip
    ran = subprocess.run(
        [sys.executable, "-m", "lm_eval", "run", "--model", "local-completions",
         "--model_args", ",".join(f"{name}={value}" for name, value in arguments.items()),
         "--tasks", ",".join(tasks), "--include_path", ".", "--output_path", folder, "--log_samples",
         "--batch_size", str(batch_size)],
        cwd=TASKS, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "HF_HOME": f"{folder}/cache", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout
    samples = {}
    for task in tasks:
        [file] = Path(folder).glob(f"**/samples_{task}_*.jsonl")
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        samples[task] = sorted(lines, key=lambda line: line["doc_id"])
        assert len(lines) == len(VERSES)
    return samples


class LmEval(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        cls.server = Server(BINARY, "--served-model-name", "kjv", "--batch-size", "4", ranks=RANKS)

    @classmethod
    def tearDownClass(cls) -> None:
        cls.server.end()

    def ids(self, text: str) -> list[int]:
        return self.server.post("/tokenize", {"prompt": text})["tokens"]

    def scores(self, prompts: list[list[int]]) -> list[list[float]]:
        """Of each token but the first, from an offline job."""
        results = offline(BINARY, [{"prompt_ids": ids} for ids in prompts], "--score", ranks=RANKS)
        return [result["token_logprobs"] for result in results]

    def check(self, **model_arguments: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            samples = evaluate(
                self.server, folder, "kjv_likelihood", "kjv_rolling", "kjv_generate", **model_arguments
            )
        firsts = [self.ids(verse["context"]) for verse in VERSES]
        wholes = [self.ids(verse["context"] + verse["continuation"]) for verse in VERSES]
        for first, whole, scores, sample in zip(
            firsts, wholes, self.scores(wholes), samples["kjv_likelihood"], strict=True
        ):
            wanted = sum(scores[len(first) - 1 :])
            got = float(sample["resps"][0][0][0])
            self.assertAlmostEqual(got, wanted, delta=TOLERANCE * len(whole))
        begin = json.loads(self.server.get("/tokenizer_info"))
        [bos] = self.ids(begin["bos_token"])
        for ids, scores, sample in zip(
            wholes, self.scores([[bos, *ids] for ids in wholes]), samples["kjv_rolling"], strict=True
        ):
            got = float(sample["resps"][0][0] if isinstance(sample["resps"][0], list) else sample["resps"][0])
            self.assertAlmostEqual(got, sum(scores), delta=TOLERANCE * len(ids))
        lines = [
            {"prompt_ids": ids, "max_new_tokens": 24, "stop": ["\n", ".", ";", begin["eos_token"]]}
            for ids in firsts
        ]
        for result, sample in zip(offline(BINARY, lines, ranks=RANKS), samples["kjv_generate"], strict=True):
            self.assertEqual(sample["resps"][0][0], result["text"])
        greedy = [sample["resps"][0][0][1] for sample in samples["kjv_likelihood"]]
        self.assertEqual({str(value) for value in greedy}, {"True", "False"})

    def test_likelihoods_and_texts_with_the_servers_own_tokenizer(self) -> None:
        self.check(tokenizer_backend="remote")

    @unittest.skipIf(RANKS > 1, "how requests come is the same on any number of ranks")
    def test_the_same_with_many_requests_at_once_and_lists_of_prompts(self) -> None:
        self.check(tokenizer_backend="remote", num_concurrent=8, batch_size=3)

    @unittest.skipIf(RANKS > 1, "how requests come is the same on any number of ranks")
    def test_the_same_with_texts_for_prompts(self) -> None:
        self.check(tokenizer_backend="remote", tokenized_requests=False)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
