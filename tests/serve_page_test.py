"""The server's page in a real browser, headless: what a person does with it.

    serve_page_test.py BINARY [FOLDER]      FOLDER: where screenshots go

Exit code 77, with the reason, where no Chromium is installed.
"""

from __future__ import annotations

import json
import sys
import tempfile
import unittest
import urllib.request
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))

from serving.browser import Browser, find_browser
from serving.server import Server, chat_model

BINARY = sys.argv[1]
PICTURES = Path(sys.argv[2]) if len(sys.argv) > 2 else None
PROGRAM = find_browser()
PROMPT = "In the beginning God created"
KEY = "a-key-of-the-test"
ANSWER = "document.querySelector('.answer')?.lastChild.data"

#: A model that writes HTML, and a network that cuts its bytes anywhere.
WRITES_HTML = r"""
const fetched = window.fetch;
window.fetch = async (path, options) => {
  if (!String(path).endsWith("v1/completions")) return fetched(path, options);
  const piece = (text, reason = null) =>
    `data: ${JSON.stringify({ choices: [{ index: 0, text, finish_reason: reason }] })}\r\n\r\n`;
  const bytes = new TextEncoder().encode(
    piece("<img src=x onerror='document.title = 1'>") + piece(" <b>\u6f22</b>&lt;\u{1f600}") +
    piece("<script>document.title = 2</" + "script>", "stop") + "data: [DONE]\n\n");
  return new Response(new ReadableStream({ async start(control) {
    for (const byte of bytes) control.enqueue(Uint8Array.of(byte));
    control.close();
  } }));
};
"""


def ready(browser: Browser, server: Server) -> None:
    browser.open(server.base + "/")
    browser.wait("document.getElementById('status').textContent === 'ready'")


def write(browser: Browser, text: str) -> None:
    browser.value("document.getElementById('text').focus()")
    browser.type(text)


def setting(browser: Browser, name: str, value: object) -> None:
    browser.value(f"document.getElementById({json.dumps(name)}).value = {json.dumps(str(value))}")


def picture(browser: Browser, name: str, width: int, height: int, scheme: str) -> None:
    browser.show_as(width, height, scheme)
    browser.wait("document.querySelector('#turns').scrollTop >= 0")
    if PICTURES:
        browser.screenshot(str(PICTURES / f"{name}-{width}-{scheme}.png"))


class Page(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        cls.server = Server(BINARY, "--batch-size", "4", "--ignore-eos")

    @classmethod
    def tearDownClass(cls) -> None:
        cls.server.end()

    def setUp(self) -> None:
        self.browser = Browser(PROGRAM).__enter__()
        self.browser.show_as(1200, 800, "light")

    def tearDown(self) -> None:
        self.browser.__exit__()
        self.assertEqual(self.browser.complaints, [])

    def test_it_streams_the_answer_that_the_server_gives_to_everyone(self) -> None:
        ready(self.browser, self.server)
        setting(self.browser, "max-tokens", 200)
        write(self.browser, PROMPT)
        self.browser.press_enter()
        self.browser.wait(f"({ANSWER} ?? '').length > 20")
        self.browser.wait("document.querySelector('.running') === null")
        body = {"prompt": PROMPT, "max_tokens": 200, "temperature": 0}
        wanted = self.server.post("/v1/completions", body)["choices"][0]["text"]
        self.assertEqual(self.browser.value(ANSWER), wanted)
        self.assertEqual(self.browser.value("document.querySelector('.given').textContent"), PROMPT)
        note = self.browser.value("document.querySelector('.note').textContent")
        self.assertRegex(note, r"^200 tokens · [\d.]+ tokens/s · first after [\d.]+ s · length$")
        self.browser.wait("Number(document.getElementById('rate').textContent) > 0")
        self.assertRegex(self.browser.value("document.getElementById('lanes').textContent"), r"^\d of 4$")
        shapes = ((1200, 800, "light"), (1200, 800, "dark"), (360, 700, "light"), (800, 900, "dark"))
        for width, height, scheme in shapes:
            picture(self.browser, "completion", width, height, scheme)
            self.assertLessEqual(self.browser.value("document.documentElement.scrollWidth"), width)

    def test_stop_ends_the_answer_and_frees_its_lane(self) -> None:
        ready(self.browser, self.server)
        setting(self.browser, "max-tokens", 2000)
        before = self.server.metric("vllm:generation_tokens_total")
        write(self.browser, PROMPT)
        self.browser.click("#send")
        self.browser.wait(f"({ANSWER} ?? '').length > 20")
        self.browser.click("#send")
        self.server.wait_for_metric("vllm:num_requests_running", 0, seconds=2)
        self.browser.wait("document.querySelector('.note').textContent === 'stopped'")
        self.assertGreater(len(self.browser.value(ANSWER)), 20)
        self.assertLess(self.server.metric("vllm:generation_tokens_total") - before, 1500)

    def test_what_a_model_writes_is_never_html(self) -> None:
        self.browser.before_pages(WRITES_HTML)
        ready(self.browser, self.server)
        write(self.browser, "<img src=x onerror='document.title = 3'>")
        self.browser.press_enter()
        self.browser.wait("document.querySelector('.note')?.textContent.endsWith('stop')")
        self.assertEqual(
            self.browser.value(ANSWER),
            "<img src=x onerror='document.title = 1'> <b>\u6f22</b>&lt;\U0001f600<script>document.title = 2</script>",
        )
        self.assertEqual(self.browser.value("document.querySelectorAll('#turns :is(img, b, script)').length"), 0)
        self.assertEqual(self.browser.value("document.title"), "zero-infer")

    def test_an_error_is_shown_and_the_text_is_kept(self) -> None:
        ready(self.browser, self.server)
        setting(self.browser, "max-tokens", 1_000_000)
        write(self.browser, PROMPT)
        self.browser.click("#send")
        self.browser.wait("document.querySelector('.note.error')?.textContent.length > 10")
        self.assertEqual(self.browser.value("document.getElementById('text').value"), PROMPT)
        self.browser.complaints.clear()  # the browser names the refused request itself

    def test_nothing_but_its_own_script_runs(self) -> None:
        with urllib.request.urlopen(self.server.base + "/") as response:
            policy = response.headers["Content-Security-Policy"]
            self.assertEqual(response.headers["Content-Type"], "text/html; charset=utf-8")
            self.assertEqual(response.headers["X-Content-Type-Options"], "nosniff")
        self.assertIn("default-src 'none'", policy)
        self.assertNotIn("unsafe", policy)
        ready(self.browser, self.server)
        self.browser.value(
            "(() => { const made = document.createElement('script'); made.textContent = 'document.title = 4';"
            " document.body.append(made); })()"
        )
        self.assertEqual(self.browser.value("document.title"), "zero-infer")
        self.assertTrue(self.browser.complaints)  # the browser refused it
        self.browser.complaints.clear()


class PageOfAChatModel(unittest.TestCase):
    def test_it_asks_for_the_key_and_chats(self) -> None:
        with tempfile.TemporaryDirectory() as folder, Browser(PROGRAM) as browser:
            model = chat_model(Path(folder) / "bloom-kjv-chat")
            with Server(BINARY, model=model, key=KEY) as server:
                browser.show_as(360, 700, "dark")
                browser.open(server.base + "/")
                browser.wait("!document.getElementById('key-form').hidden")
                picture(browser, "key", 360, 700, "dark")
                browser.complaints.clear()  # of the 401
                browser.value("document.getElementById('key').focus()")
                browser.type(KEY)
                browser.press_enter()
                browser.wait("document.getElementById('status').textContent === 'ready'")
                self.assertTrue(browser.value("document.getElementById('key-form').hidden"))
                chat = []
                setting(browser, "max-tokens", 30)
                for turn, text in enumerate(("Who made the heavens?", "And\nthe earth?")):
                    write(browser, text)
                    browser.press_enter()
                    browser.wait(f"document.querySelectorAll('section:not(.running) .answer').length === {turn + 1}")
                    chat.append({"role": "user", "content": text})
                    body = {"messages": chat, "max_tokens": 30, "temperature": 0}
                    wanted = server.post("/v1/chat/completions", body)["choices"][0]["message"]["content"]
                    answers = browser.value("[...document.querySelectorAll('.answer')].map((a) => a.textContent)")
                    self.assertEqual(answers[turn], wanted)
                    chat.append({"role": "assistant", "content": wanted})
                picture(browser, "chat", 1200, 800, "light")
                picture(browser, "chat", 360, 700, "dark")
                browser.click("#clear")
                self.assertEqual(browser.value("document.querySelectorAll('.answer').length"), 0)
                self.assertEqual(browser.complaints, [])


if __name__ == "__main__":
    if not PROGRAM:
        print("no Chromium is installed (Debian: apt install chromium)")
        sys.exit(77)
    if PICTURES:
        PICTURES.mkdir(parents=True, exist_ok=True)
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
