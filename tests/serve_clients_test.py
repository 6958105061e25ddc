"""The `openai` package and curl, unmodified, against a server: what they get is what an offline job gives.

    serve_clients_test.py BINARY RANKS

Run it by serve_clients_test.sh, with the Python in which `openai` is installed.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))

import openai
from serving.server import Server, chat_model, need, offline

BINARY, RANKS = sys.argv[1], int(sys.argv[2])
KEY = "a-key-of-the-test"
LANES = 4
PROMPT = "In the beginning God created"
PROMPTS = [
    PROMPT, "The LORD is my shepherd;", "And it came to pass, when", "For God so loved the world,",
    "To every thing there is a season,", "Blessed are", "Thou shalt not", "Behold,",
]  # fmt: skip
CHAT = [
    {"role": "system", "content": "Speak as a prophet."},
    {"role": "user", "content": "Who made the heavens? \u00e4\u6f22"},
]
#: Equal but for the rounding of the numbers' text, and of products in another order (see the engine's tests).
TOLERANCE = 1e-4


class OnAServer(unittest.TestCase):
    """All tests share one server; each leaves it without requests."""

    FLAGS: tuple[str, ...] = ()

    @classmethod
    def setUpClass(cls) -> None:
        cls.folder = tempfile.TemporaryDirectory()
        cls.model = chat_model(Path(cls.folder.name) / "bloom-kjv-chat")
        cls.server = Server(
            BINARY, "--batch-size", str(LANES), "--served-model-name", "kjv", *cls.FLAGS,
            model=cls.model, ranks=RANKS, key=KEY,
        )  # fmt: skip
        cls.client = openai.OpenAI(base_url=f"{cls.server.base}/v1", api_key=KEY, max_retries=0)

    @classmethod
    def tearDownClass(cls) -> None:
        cls.client.close()
        cls.server.end()
        cls.folder.cleanup()

    def tearDown(self) -> None:
        self.server.wait_for_metric("vllm:num_requests_running", 0)
        self.assertEqual(self.server.metric("vllm:num_requests_waiting"), 0)

    def offline(self, lines: list[dict], *flags: str) -> list[dict]:
        return offline(BINARY, lines, *flags, model=self.model, ranks=RANKS)

    def complete(self, prompt=PROMPT, **settings):
        settings = {"max_tokens": 24, "temperature": 0} | settings
        return self.client.completions.create(model="kjv", prompt=prompt, **settings)

    def chat(self, messages=CHAT, **settings):
        settings = {"max_tokens": 24, "temperature": 0} | settings
        return self.client.chat.completions.create(model="kjv", messages=messages, **settings)


class Completions(OnAServer):
    def test_the_model_is_listed(self) -> None:
        self.assertEqual([model.id for model in self.client.models.list()], ["kjv"])

    def test_a_completion_is_that_of_an_offline_job(self) -> None:
        [wanted] = self.offline([{"prompt": PROMPT, "max_new_tokens": 24}])
        got = self.complete()
        self.assertEqual(got.object, "text_completion")
        self.assertEqual(got.choices[0].text, wanted["text"])
        self.assertEqual(got.choices[0].finish_reason, wanted["finish_reason"])
        self.assertEqual(got.usage.prompt_tokens, wanted["prompt_tokens"])
        self.assertEqual(got.usage.completion_tokens, len(wanted["token_ids"]))
        self.assertEqual(got.usage.total_tokens, wanted["prompt_tokens"] + 24)

    def test_the_usage_says_what_earlier_requests_had_computed(self) -> None:
        prompt = "Of the usage: " + PROMPT * 20
        first, again = self.complete(prompt), self.complete(prompt)
        self.assertLess(first.usage.prompt_tokens_details.cached_tokens, 32)
        self.assertGreater(again.usage.prompt_tokens_details.cached_tokens, again.usage.prompt_tokens - 17)
        self.assertLess(again.usage.prompt_tokens_details.cached_tokens, again.usage.prompt_tokens)

    def test_lists_of_texts_and_of_ids_are_answered_in_their_order(self) -> None:
        wanted = [result["text"] for result in self.offline([{"prompt": p, "max_new_tokens": 24} for p in PROMPTS])]
        got = self.complete(PROMPTS)
        self.assertEqual([choice.index for choice in got.choices], list(range(len(PROMPTS))))
        self.assertEqual([choice.text for choice in got.choices], wanted)
        ids = [self.server.post("/tokenize", {"prompt": prompt})["tokens"] for prompt in PROMPTS]
        self.assertEqual([choice.text for choice in self.complete(ids).choices], wanted)
        self.assertEqual(self.complete(ids[1]).choices[0].text, wanted[1])

    def test_a_stream_is_the_same_text_in_pieces_and_ends_with_its_usage(self) -> None:
        whole = self.complete(max_tokens=64)
        chunks = list(self.complete(max_tokens=64, stream=True, stream_options={"include_usage": True}))
        pieces = [chunk.choices[0].text for chunk in chunks if chunk.choices]
        self.assertEqual("".join(pieces), whole.choices[0].text)
        self.assertGreater(len(pieces), 32)
        self.assertEqual([c.choices[0].finish_reason for c in chunks if c.choices][-1], "length")
        self.assertEqual(chunks[-1].choices, [])
        self.assertEqual(chunks[-1].usage.total_tokens, whole.usage.total_tokens)
        self.assertEqual({chunk.id for chunk in chunks}, {chunks[0].id})

    def test_logprobs_are_those_of_an_offline_job(self) -> None:
        [wanted] = self.offline([{"prompt": PROMPT, "max_new_tokens": 12}], "--logprobs", "3")
        got = self.complete(max_tokens=12, logprobs=3).choices[0]
        self.assertEqual("".join(got.logprobs.tokens), got.text)
        self.assertEqual(len(got.logprobs.token_logprobs), 12)
        for place, token in enumerate(wanted["logprobs"]):
            self.assertAlmostEqual(got.logprobs.token_logprobs[place], token["logprob"], delta=TOLERANCE)
            best = sorted(got.logprobs.top_logprobs[place].values(), reverse=True)
            self.assertEqual(len(best), 3)
            for mine, (_, theirs) in zip(best, token["top"]):
                self.assertAlmostEqual(mine, theirs, delta=TOLERANCE)
        ends = [at + len(token) for at, token in zip(got.logprobs.text_offset, got.logprobs.tokens)]
        self.assertEqual(got.logprobs.text_offset[1:], ends[:-1])

    def test_echo_scores_the_prompt_as_score_does(self) -> None:
        [wanted] = self.offline([{"prompt": PROMPTS[1]}], "--score")
        got = self.complete(PROMPTS[1], echo=True, logprobs=0, max_tokens=1).choices[0]
        self.assertTrue(got.text.startswith(PROMPTS[1]))
        self.assertIsNone(got.logprobs.token_logprobs[0])
        for mine, theirs in zip(got.logprobs.token_logprobs[1:-1], wanted["token_logprobs"], strict=True):
            self.assertAlmostEqual(mine, theirs, delta=TOLERANCE)

    def test_samples_of_a_prompt_differ_and_a_seed_fixes_them_all(self) -> None:
        settings = {"n": 3, "temperature": 1, "seed": 7, "max_tokens": 20}
        first, again = self.complete(**settings), self.complete(**settings)
        texts = [choice.text for choice in first.choices]
        self.assertEqual(len(set(texts)), 3)
        self.assertEqual(texts, [choice.text for choice in again.choices])
        other = self.complete(**{**settings, "seed": 8})
        self.assertNotEqual(texts, [choice.text for choice in other.choices])
        self.assertEqual(first.usage.completion_tokens, 60)
        streamed = {0: "", 1: "", 2: ""}
        for chunk in self.complete(**settings, stream=True):
            for choice in chunk.choices:
                streamed[choice.index] += choice.text
        self.assertEqual([streamed[at] for at in range(3)], texts)

    def test_a_stop_ends_the_text_in_front_of_it_streamed_or_not(self) -> None:
        whole = self.complete(max_tokens=32).choices[0].text
        stop = whole[len(whole) // 2 :][:5]  # five letters: it begins and ends inside of tokens
        wanted = whole[: whole.index(stop)]
        got = self.complete(max_tokens=32, stop=["no such text", stop]).choices[0]
        self.assertEqual((got.text, got.finish_reason), (wanted, "stop"))
        chunks = [c.choices[0] for c in self.complete(max_tokens=32, stop=stop, stream=True) if c.choices]
        self.assertEqual("".join(choice.text for choice in chunks), wanted)
        self.assertEqual(chunks[-1].finish_reason, "stop")

    def test_settings_beyond_the_api_of_openai_are_taken(self) -> None:
        got = self.complete(
            temperature=1, extra_body={"top_k": 1, "repetition_penalty": 1.3, "min_p": 0.0, "ignore_eos": True}
        )
        lines = [{"prompt": PROMPT, "max_new_tokens": 24, "repetition_penalty": 1.3, "ignore_eos": True}]
        self.assertEqual(got.choices[0].text, self.offline(lines)[0]["text"])
        biased = self.complete(max_tokens=3, logit_bias={"17": 100})
        [period] = [self.server.post("/detokenize", {"tokens": [17]})["prompt"]]
        self.assertEqual(biased.choices[0].text, period * 3)

    def test_many_at_once_are_not_mixed_up(self) -> None:
        async def all_of_them() -> list[str]:
            async with openai.AsyncOpenAI(base_url=f"{self.server.base}/v1", api_key=KEY) as client:
                answers = await asyncio.gather(*(
                    client.completions.create(model="kjv", prompt=p, max_tokens=10 + at, temperature=0)
                    for at, p in enumerate(PROMPTS * 5)
                ))  # fmt: skip
                return [answer.choices[0].text for answer in answers]

        lines = [{"prompt": p, "max_new_tokens": 10 + at} for at, p in enumerate(PROMPTS * 5)]
        self.assertEqual(asyncio.run(all_of_them()), [result["text"] for result in self.offline(lines)])


class Chats(OnAServer):
    def test_a_chat_is_that_of_an_offline_job(self) -> None:
        [wanted] = self.offline([{"messages": CHAT, "max_new_tokens": 24}])
        got = self.chat()
        self.assertEqual(got.object, "chat.completion")
        self.assertEqual(got.choices[0].message.role, "assistant")
        self.assertEqual(got.choices[0].message.content, wanted["text"])
        self.assertEqual(got.usage.prompt_tokens, wanted["prompt_tokens"])
        in_parts = [{"role": m["role"], "content": [{"type": "text", "text": m["content"]}]} for m in CHAT]
        self.assertEqual(self.chat(in_parts).choices[0].message.content, wanted["text"])
        newer = self.client.chat.completions.create(
            model="kjv", messages=CHAT, max_completion_tokens=5, temperature=0
        )
        self.assertTrue(wanted["text"].startswith(newer.choices[0].message.content))
        self.assertEqual(newer.usage.completion_tokens, 5)

    def test_a_stream_is_the_same_text_in_pieces(self) -> None:
        chunks = list(self.chat(stream=True))
        self.assertEqual(chunks[0].object, "chat.completion.chunk")
        self.assertEqual(chunks[0].choices[0].delta.role, "assistant")
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        self.assertEqual(text, self.chat().choices[0].message.content)
        self.assertEqual(chunks[-1].choices[0].finish_reason, "length")

    def test_logprobs_name_the_best_tokens_of_each_place(self) -> None:
        [wanted] = self.offline([{"messages": CHAT, "max_new_tokens": 8}], "--logprobs", "2")
        content = self.chat(max_tokens=8, logprobs=True, top_logprobs=2).choices[0].logprobs.content
        self.assertEqual(len(content), 8)
        for got, token in zip(content, wanted["logprobs"], strict=True):
            self.assertAlmostEqual(got.logprob, token["logprob"], delta=TOLERANCE)
            self.assertEqual(len(got.top_logprobs), 2)
            self.assertAlmostEqual(got.top_logprobs[1].logprob, token["top"][1][1], delta=TOLERANCE)
            self.assertEqual(bytes(got.bytes).decode(errors="replace"), got.token)


class Leaving(OnAServer):
    def assert_lanes_are_free_at_once(self, tokens_before: float) -> None:
        self.server.wait_for_metric("vllm:num_requests_running", 0, seconds=2)
        used = self.server.metric("vllm:generation_tokens_total") - tokens_before
        self.assertLess(used, 1500)  # of 2000 that were asked for: it was not computed to its end

    def test_a_stream_that_is_closed_frees_its_lane(self) -> None:
        before = self.server.metric("vllm:generation_tokens_total")
        with self.complete(max_tokens=2000, stream=True, extra_body={"ignore_eos": True}) as stream:
            for _ in range(3):
                next(iter(stream))
        self.assert_lanes_are_free_at_once(before)

    def test_a_client_that_gives_up_waiting_frees_its_lane(self) -> None:
        before = self.server.metric("vllm:generation_tokens_total")
        impatient = self.client.with_options(timeout=0.3)
        with self.assertRaises(openai.APITimeoutError):
            impatient.completions.create(
                model="kjv", prompt=PROMPT, max_tokens=2000, extra_body={"ignore_eos": True}
            )
        self.assert_lanes_are_free_at_once(before)

    def test_what_waits_for_a_lane_leaves_the_queue(self) -> None:
        before = self.server.metric("vllm:generation_tokens_total")
        impatient = self.client.with_options(timeout=0.3)
        with self.assertRaises(openai.APITimeoutError):
            impatient.completions.create(
                model="kjv", prompt=[PROMPT] * (LANES * RANKS + 3), max_tokens=2000,
                extra_body={"ignore_eos": True},
            )  # fmt: skip
        self.server.wait_for_metric("vllm:num_requests_waiting", 0, seconds=2)
        self.server.wait_for_metric("vllm:num_requests_running", 0, seconds=2)
        used = self.server.metric("vllm:generation_tokens_total") - before
        self.assertLess(used, 2000 * LANES * RANKS)


class Waiting(OnAServer):
    FLAGS = ("--kv-budget", "512MiB")  # for answers that no machine finishes meanwhile
    BUSY_SECONDS = 22
    #: More than the 15 seconds after which a silent stream gets a comment.
    PATIENCE = 18

    def test_a_stream_that_waits_for_a_lane_outlasts_the_patience_of_its_client(self) -> None:
        def keep_a_lane_busy(_: int) -> None:
            with self.assertRaises(openai.APITimeoutError):
                self.client.with_options(timeout=self.BUSY_SECONDS).completions.create(
                    model="kjv", prompt=PROMPT, max_tokens=50_000, extra_body={"ignore_eos": True}
                )

        wanted = self.complete().choices[0].text
        lanes = LANES * RANKS
        with concurrent.futures.ThreadPoolExecutor(lanes) as threads:
            busy = [threads.submit(keep_a_lane_busy, lane) for lane in range(lanes)]
            self.server.wait_for_metric("vllm:num_requests_running", lanes)
            begin = time.monotonic()
            stream = self.client.with_options(timeout=self.PATIENCE).completions.create(
                model="kjv", prompt=PROMPT, max_tokens=24, temperature=0, stream=True
            )
            self.assertLess(time.monotonic() - begin, 10, "its head came at once")
            self.assertEqual("".join(chunk.choices[0].text for chunk in stream), wanted)
            self.assertGreater(time.monotonic() - begin, self.PATIENCE)
            for lane in busy:
                lane.result()


class Errors(OnAServer):
    def test_each_is_the_exception_that_the_package_has_for_it(self) -> None:
        with self.assertRaises(openai.NotFoundError) as caught:
            self.client.completions.create(model="another", prompt=PROMPT)
        self.assertEqual(caught.exception.body["param"], "model")
        with self.assertRaises(openai.AuthenticationError):
            self.client.with_options(api_key="wrong").models.list()
        for settings, param in (
            ({"max_tokens": -1}, "max_tokens"),
            ({"temperature": -0.5}, "temperature"),
            ({"n": 0}, "n"),
            ({"stop": ["a"] * 500}, "stop"),
            ({"extra_body": {"best_of": 4}}, "best_of"),
            ({"extra_body": {"max_tokens": "many"}}, "max_tokens"),
        ):
            with self.subTest(param=param), self.assertRaises(openai.BadRequestError) as caught:
                self.complete(**settings)
            self.assertEqual(caught.exception.body["param"], param)
            self.assertIn(param, caught.exception.body["message"])

    def test_a_prompt_that_is_too_long_is_refused_with_numbers(self) -> None:
        with self.assertRaises(openai.BadRequestError) as caught:
            self.complete([5] * 100_000)
        self.assertRegex(caught.exception.body["message"], r"100,?000")

    def test_one_bad_prompt_of_a_list_refuses_the_request_and_no_lane_is_taken(self) -> None:
        with self.assertRaises(openai.BadRequestError):
            self.complete([[5, 6], [1_000_000]])


class Curl(OnAServer):
    def curl(self, *arguments: str) -> str:
        ran = subprocess.run([need("curl"), "--silent", "--show-error", *arguments], capture_output=True, text=True)
        self.assertEqual(ran.returncode, 0, ran.stderr)
        return ran.stdout

    def post(self, path: str, body: dict, *arguments: str) -> str:
        return self.curl(
            self.server.base + path, "-H", f"Authorization: Bearer {KEY}",
            "-H", "Content-Type: application/json", "-d", json.dumps(body), *arguments,
        )  # fmt: skip

    def test_it_gets_a_completion_and_a_stream(self) -> None:
        body = {"model": "kjv", "prompt": PROMPT, "max_tokens": 16, "temperature": 0}
        text = json.loads(self.post("/v1/completions", body))["choices"][0]["text"]
        self.assertEqual(text, self.complete(max_tokens=16).choices[0].text)
        events = self.post("/v1/completions", {**body, "stream": True}, "--no-buffer").split("\n\n")
        self.assertEqual(events[-2:], ["data: [DONE]", ""])
        pieces = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
        self.assertEqual("".join(piece["choices"][0]["text"] for piece in pieces), text)

    def test_the_health_needs_no_key_and_all_else_does(self) -> None:
        self.curl("--fail", f"{self.server.base}/health")
        self.curl("--fail", f"{self.server.base}/")
        for path in ("/v1/models", "/metrics", "/version", "/tokenizer_info"):
            code = self.curl("-o", "/dev/null", "-w", "%{http_code}", self.server.base + path)
            self.assertEqual(code, "401", path)

    def test_a_compressed_or_large_or_broken_body_gets_an_error_and_the_server_serves_on(self) -> None:
        for sent, wanted in (("{", "400"), ("\x00", "400"), ('"' + "x" * 20_000_000, "413"), ("[" * 100_000, "400")):
            with tempfile.NamedTemporaryFile("w") as file:
                file.write(sent)
                file.flush()
                code = self.curl(
                    f"{self.server.base}/v1/completions", "-H", f"Authorization: Bearer {KEY}",
                    "--data-binary", f"@{file.name}", "-o", "/dev/null", "-w", "%{http_code}",
                )  # fmt: skip
            self.assertEqual(code, wanted)
        self.assertTrue(self.complete(max_tokens=2).choices[0].text)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
