#!/usr/bin/env python3
"""A server under load: a thousand streams at once, more requests than its queue holds, clients that leave.

    serve_load_test.py BINARY RANKS
"""

from __future__ import annotations

import asyncio
import itertools
import json
import resource
import sys
import time
import unittest
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))

from serving.server import Server, offline
from serving.streams import Answer, BrokenAnswer, complete, complete_all

BINARY, RANKS = sys.argv[1], int(sys.argv[2])
STREAMS = 1000
# Fewer pages than the lanes could fill, so that sequences are set back as well.
FLAGS = ("--batch-size", "32", "--kv-budget", "24MiB", "--temperature", "0")
OPENINGS = [
    "In the beginning God created", "The LORD is my shepherd;", "And it came to pass, when", "Blessed are",
    "To every thing there is a season,", "For God so loved the world,", "Behold,", "Thou shalt not",
    "And the LORD spake unto Moses, saying, " * 8, "\u00e4\u6f22\U0001f600",
]  # fmt: skip


def requests(count: int) -> list[dict]:
    """Different prompts, lengths and ways to draw, in the words of the API."""
    draws = ({}, {"temperature": 1, "seed": 5}, {"temperature": 0.7, "top_p": 0.9, "seed": 6})
    lengths = range(6, 32)
    return [
        {"prompt": f"{OPENINGS[at % len(OPENINGS)]} {at}", "max_tokens": length, "stream": True, **draw}
        for at, length, draw in zip(range(count), itertools.cycle(lengths), itertools.cycle(draws))
    ]


def texts_offline(bodies: list[dict]) -> list[str]:
    def line(body: dict) -> dict:
        own = {name: value for name, value in body.items() if name not in ("max_tokens", "stream")}
        return {**own, "max_new_tokens": body["max_tokens"]}

    return [result["text"] for result in offline(BINARY, [line(body) for body in bodies], *FLAGS)]


class Load(unittest.TestCase):
    def assert_idle(self, server: Server) -> None:
        server.wait_for_metric("vllm:num_requests_running", 0)
        self.assertEqual(server.metric("vllm:num_requests_waiting"), 0)
        self.assertEqual(server.metric("vllm:kv_cache_usage_perc"), 0)

    def test_a_thousand_streams_at_once_get_each_its_own_text_in_bounded_memory(self) -> None:
        bodies = requests(STREAMS)
        wanted = texts_offline(bodies)
        with Server(BINARY, *FLAGS, ranks=RANKS) as server:
            asyncio.run(complete_all(server.port, bodies, at_once=STREAMS))  # what a first round takes for good
            before = server.resident_bytes()
            for _ in range(2):
                answers = asyncio.run(complete_all(server.port, bodies, at_once=STREAMS))
                self.assertEqual({answer.status for answer in answers}, {200})
                self.assertEqual([answer.text for answer in answers], wanted)
            self.assertLess(server.resident_bytes() - before, 32 << 20)
            self.assert_idle(server)

    def test_of_ten_times_the_queue_all_are_answered_or_told_when_to_come_back(self) -> None:
        queue = 40
        bodies = requests(10 * queue)
        wanted = texts_offline(bodies)
        with Server(BINARY, *FLAGS, "--max-queue", str(queue), ranks=RANKS) as server:
            answers = asyncio.run(complete_all(server.port, bodies, at_once=len(bodies)))
            accepted = 0
            for answer, text in zip(answers, wanted, strict=True):
                if answer.status == 200:
                    accepted += 1
                    self.assertEqual(answer.text, text)
                    continue
                self.assertEqual(answer.status, 429)
                self.assertGreaterEqual(int(answer.headers["retry-after"]), 1)
                self.assertEqual(json.loads(answer.body)["error"]["type"], "rate_limit_error")
            self.assertGreaterEqual(accepted, queue)
            self.assertLess(accepted, len(bodies))
            self.assert_idle(server)

    def test_clients_that_leave_take_nothing_from_those_that_stay(self) -> None:
        bodies = requests(200)
        wanted = texts_offline(bodies)
        leaving = [{**body, "max_tokens": 400, "ignore_eos": True} for body in bodies]

        async def leave(port: int, body: dict, after: float) -> None:
            try:
                await asyncio.wait_for(complete(port, body), after)
            except TimeoutError:
                pass

        async def both(port: int) -> list[Answer]:
            stay = complete_all(port, bodies, at_once=len(bodies))
            go = (leave(port, body, 0.01 * (1 + at % 50)) for at, body in enumerate(leaving))
            return (await asyncio.gather(stay, *go))[0]

        with Server(BINARY, *FLAGS, ranks=RANKS) as server:
            answers = asyncio.run(both(server.port))
            self.assertEqual([answer.text for answer in answers], wanted)
            self.assert_idle(server)
            self.assertGreater(server.metric("zero_infer_requests_cancelled_total"), 100)

    def test_a_signal_lets_running_requests_end_and_refuses_new_ones(self) -> None:
        bodies = [{"prompt": OPENINGS[0], "max_tokens": 200, "ignore_eos": True, "stream": True}] * 4

        async def ask_and_end(server: Server) -> list[Answer]:
            running = asyncio.gather(*(complete(server.port, body) for body in bodies))
            while not await asyncio.to_thread(server.metric, "vllm:num_requests_running"):
                await asyncio.sleep(0.01)
            server.process.terminate()
            return await running

        with Server(BINARY, *FLAGS, ranks=RANKS) as server:
            answers = asyncio.run(ask_and_end(server))
            self.assertEqual([answer.usage.get("completion_tokens", 200) for answer in answers], [200] * 4)
            self.assertEqual({answer.finish_reasons[0] for answer in answers}, {"length"})
            begin = time.monotonic()
            server.end()
            self.assertLess(time.monotonic() - begin, 10)
            with self.assertRaises((OSError, BrokenAnswer)):
                asyncio.run(complete(server.port, bodies[0]))


if __name__ == "__main__":
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted_files = 2 * STREAMS + 64
    if soft < wanted_files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted_files, hard), hard))
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
