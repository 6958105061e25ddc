"""Many completions at once, with the time at which each part of an answer came. Only Python's own modules.

A connection costs little here: bytes are kept as they come, and read when the answer is whole, so that a load
generator on the server's own machine takes as little from it as it can.
"""

from __future__ import annotations

import asyncio
import bisect
import json
import time
from dataclasses import dataclass, field
from typing import Any


class BrokenAnswer(Exception):
    """What came is no whole answer."""


@dataclass
class Answer:
    """One answer, and when it came: seconds of time.monotonic()."""

    status: int
    headers: dict[str, str]  # names in lower case
    asked: float
    ended: float
    body: bytes = b""
    texts: dict[int, str] = field(default_factory=dict)  # by the choice's index
    finish_reasons: dict[int, str] = field(default_factory=dict)
    usage: dict[str, Any] = field(default_factory=dict)
    times: list[float] = field(default_factory=list)  # of a stream: when each piece of text came

    @property
    def text(self) -> str:
        return self.texts[0]


class _Connection(asyncio.Protocol):
    def __init__(self, request: bytes, done: asyncio.Future) -> None:
        self.request, self.done = request, done
        self.received = bytearray()
        self.times: list[float] = []  # of each read
        self.ends: list[int] = []  # how many bytes there were behind it

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.times.append(time.monotonic())
        self.ends.append(len(self.received))

    def connection_lost(self, error: Exception | None) -> None:
        if self.done.done():
            return
        if error:
            self.done.set_exception(BrokenAnswer(f"the connection broke: {error}"))
        else:
            self.done.set_result(None)

    def time_of(self, end: int) -> float:
        """When the bytes before `end` were all there."""
        return self.times[bisect.bisect_left(self.ends, end)]


async def complete(port: int, body: dict, path: str = "/v1/completions", key: str = "") -> Answer:
    """Asks for one completion on a connection of its own. Raises BrokenAnswer and OSError."""
    payload = json.dumps(body).encode()
    authorization = f"Authorization: Bearer {key}\r\n" if key else ""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"{authorization}Connection: close\r\nContent-Length: {len(payload)}\r\n\r\n"
    )
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    asked = time.monotonic()
    transport, connection = await loop.create_connection(
        lambda: _Connection(head.encode() + payload, done), "127.0.0.1", port
    )
    try:
        await done
    finally:
        transport.abort()
    return _read(connection, asked)


def _read(connection: _Connection, asked: float) -> Answer:
    received = bytes(connection.received)
    head, found, _ = received.partition(b"\r\n\r\n")
    if not found:
        raise BrokenAnswer(f"no whole head: {received[:200]!r}")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    answer = Answer(int(status_line.split()[1]), headers, asked, connection.times[-1])
    start = len(head) + 4
    if headers.get("transfer-encoding") != "chunked":
        answer.body = received[start:]
        if len(answer.body) != int(headers.get("content-length", -1)):
            raise BrokenAnswer(f"{len(answer.body)} bytes of {headers.get('content-length')}")
        if answer.status == 200:
            _take(answer, json.loads(answer.body))
    else:
        _read_events(answer, connection, received, start)
    return answer


def _read_events(answer: Answer, connection: _Connection, received: bytes, at: int) -> None:
    rest = b""
    while True:
        line_end = received.find(b"\r\n", at)
        if line_end < 0:
            raise BrokenAnswer(f"cut off after {answer.texts}")
        size = int(received[at:line_end], 16)
        if size == 0:
            raise BrokenAnswer(f"no [DONE] after {answer.texts}")
        at = line_end + 2 + size + 2
        *events, rest = (rest + received[line_end + 2 : at - 2]).split(b"\n\n")
        for event in events:
            if event == b"data: [DONE]":
                return
            if event.startswith(b":"):
                continue  # a comment, of a server that has nothing to say for long
            if not event.startswith(b"data: "):
                raise BrokenAnswer(f"no data: {event!r}")
            message = json.loads(event[6:])
            if "error" in message:
                raise BrokenAnswer(f"an error in the stream: {message['error']}")
            if _take(answer, message):
                answer.times.append(connection.time_of(at))


def _take(answer: Answer, message: dict) -> bool:
    """Adds what a message says; whether it held text."""
    answer.usage = message.get("usage") or answer.usage
    more = False
    for choice in message["choices"]:
        index = choice["index"]
        part = choice.get("delta") or choice.get("message") or {}
        text = choice.get("text") or part.get("content") or ""
        answer.texts[index] = answer.texts.get(index, "") + text
        more = more or bool(text)
        if choice.get("finish_reason"):
            answer.finish_reasons[index] = choice["finish_reason"]
    return more


async def complete_all(port: int, bodies: list[dict], at_once: int, **options: Any) -> list[Answer]:
    """All of these, so many at a time, in the order of `bodies`."""
    turns = asyncio.Semaphore(at_once)

    async def one(body: dict) -> Answer:
        async with turns:
            return await complete(port, body, **options)

    return await asyncio.gather(*map(one, bodies))
