"""Renders chat templates with our interpreter and with Jinja2 set up as transformers does it: equal, or both refuse.

    chat_reference_test.py RENDER_CHAT TEMPLATES
    chat_reference_test.py --write     (tests/data/chat/expressions.json, from expressions.txt beside it)

Every template of TEMPLATES meets every conversation below.
"""
import datetime
import functools
import json
import pathlib
import subprocess
import sys

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

NOW = datetime.datetime.fromtimestamp(1_753_488_000)

DATA = pathlib.Path(__file__).parent / "data" / "chat"

# Templates that ask for what is not supported, or is not in the reference itself: name -> why.
REFUSED = {}


class Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what the model writes; here it changes nothing."""
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_text"), [], [], body).set_lineno(line)

    def _text(self, caller):
        return caller()


class Raised(Exception):
    pass


def environment():
    def raise_exception(message):
        raise Raised(str(message))

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = lambda form: NOW.strftime(form)
    return made


@functools.cache
def compiled(source):
    return environment().from_string(source)


def reference(source, variables):
    try:
        return {"text": compiled(source).render(**variables)}
    except Raised as raised:
        return {"raised": str(raised)}
    except Exception as error:  # whatever Python says: a refusal
        return {"error": f"{type(error).__name__}: {error}"}


TOOLS = [
    {"type": "function", "function": {
        "name": "get_weather", "description": "The weather of a place, \"now\" & <here>.",
        "parameters": {"type": "object", "properties": {
            "place": {"type": "string", "description": "City, as in Zürich 東京"},
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            "days": {"type": "integer", "default": 3},
            "scale": {"type": ["number", "null"]},
            "at": {"type": "array", "items": {"type": "number"}}}, "required": ["place"]},
        "return": {"type": "string"}}},
    {"type": "function", "function": {"name": "stop", "description": "Ends it.",
                                      "parameters": {"type": "object", "properties": {}}}},
]


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def system(text):
    return {"role": "system", "content": text}


def parts(*texts):
    return [{"type": "text", "text": text} for text in texts]


def call(arguments, name="get_weather", number="abcdef123"):
    return {"id": number, "type": "function", "function": {"name": name, "arguments": arguments}}


def tool(content, number="abcdef123"):
    return {"role": "tool", "tool_call_id": number, "name": "get_weather", "content": content}


WEATHER = call({"place": "Zürich", "days": 2, "scale": 1.5, "now": True, "at": [1, 2.25], "x": None})
CONVERSATIONS = {
    "one user": [user("Hello, who are you?")],
    "system": [system("Be brief.\n"), user("  Hi  ")],
    "several turns": [system("You are a poet."), user("One\nTwo"), assistant("Three"), user("Four"),
                      assistant("Five  "), user("Six <|im_end|>")],
    "ends with the assistant": [user("a"), assistant("b")],
    "parts": [system("S"), user(parts("What is ", "this?"))],
    "system parts": [{"role": "system", "content": parts("Be ", "kind")}, user("q")],
    "thoughts": [user("1+1?"), assistant("<think>\nhm\n</think>\n\n2"), user("2+2?")],
    "reasoning": [user("1+1?"), assistant("2", reasoning_content="\nI add.\n"), user("more")],
    "reasoning by another name": [user("1+1?"), assistant("2", reasoning="I add."), user("more")],
    "a call": [user("Weather?"), assistant("", tool_calls=[WEATHER]), tool("{\"sun\": 1}"), user("Thanks")],
    "a call without content": [user("Weather?"), assistant(None, tool_calls=[WEATHER]), tool("rain")],
    "a call with text arguments": [user("Weather?"), assistant("", tool_calls=[call('{"place": "Rom"}')]),
                                   tool("rain"), assistant("It rains."), user("ok")],
    "two calls": [system("s"), user("Weather?"),
                  assistant("I look.", tool_calls=[WEATHER, call({}, "stop", "ghijkl456")]),
                  tool("sun"), tool({"a": [1, True, None, "é"]}, "ghijkl456"), assistant("Done."), user("bye")],
    "parts of a tool": [user("w"), assistant("", tool_calls=[WEATHER]), tool(parts("a", "b"))],
    "two users": [user("a"), user("b")],
    "assistant first": [assistant("a"), user("b")],
    "developer": [{"role": "developer", "content": "Do."}, user("a")],
    "unknown role": [{"role": "critic", "content": "No."}, user("a")],
    "system in the middle": [user("a"), assistant("b"), system("c"), user("d")],
    "empty": [],
    "no content": [{"role": "user"}],
    "null content": [{"role": "user", "content": None}],
    "languages": [user("Grüße, 世界 🌍 \"quoted\" & <tags> \\ \t end\u2028next")],
    "names": [{"role": "user", "name": "ann", "content": "x"}, assistant("y", name="bob"), user("z")],
}

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
ARGUMENTS = [
    {},
    {"add_generation_prompt": False},
    {"tools": TOOLS},
    {"tools": TOOLS, "add_generation_prompt": False},
    {"tools": []},
    {"enable_thinking": False, "thinking": False, "reasoning_effort": "low", "date_string": "1 Jan 2026",
     "keep_cot": True, "custom_tools": TOOLS, "documents": [{"title": "t", "text": "some"}], "builtin_tools": ["x"],
     "functions": "[]", "datetime": "today"},
    {"enable_thinking": True, "thinking": True, "tools": TOOLS, "tools_in_user_message": False,
     "builtin_tools": ["brave_search", "code_interpreter"], "add_thinking": True, "preserve_thinking": True},
]


def cases(templates):
    for path in templates:
        for name, messages in CONVERSATIONS.items():
            for number, arguments in enumerate(ARGUMENTS):
                variables = {"tools": None, "documents": None, "add_generation_prompt": True, **TOKENS, **arguments,
                             "messages": messages}
                yield f"{path.name}, {name}, arguments {number}", path.read_text(encoding="utf-8"), variables


def expressions():
    """What Jinja2 makes of each expression: chat_render_test compares without Python."""
    sources = [source.strip("\n") for source in (DATA / "expressions.txt").read_text("utf-8").split("\n----\n")]
    values = {"none_value": None, "text": "Ab cD", "number": 7, "real": 2.5, "flag": True, "words": ["b", "A", "c", "a"],
              "record": {"b": 1, "a": "x", "items": [1, 2], "C": None}, "people": [
                  {"name": "Ann", "age": 30, "tags": ["x"]}, {"name": "bob", "age": 4}, {"name": "Cid", "age": 30}],
              "empty": [], "unicode": "Straße 東京 É", "lines": "one\n  two\r\n\nthree\n"}
    rendered = [{"source": source, **reference(source, values)} for source in sources]
    return {"variables": values, "cases": rendered}


def main():
    expected = json.dumps(expressions(), ensure_ascii=False, indent=1) + "\n"
    if sys.argv[1] == "--write":
        (DATA / "expressions.json").write_text(expected, encoding="utf-8")
        return
    renderer, folder = sys.argv[1:3]
    if (DATA / "expressions.json").read_text("utf-8") != expected:
        sys.exit(f"{DATA}/expressions.json is not what Jinja2 gives: write it with {sys.argv[0]} --write")
    templates = sorted(pathlib.Path(folder).glob("*.jinja"))
    if len(templates) < 60:
        sys.exit(f"{folder} has only {len(templates)} templates")
    process = subprocess.Popen([renderer], stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8",
                               env={"TZ": "UTC"})
    counts = {"text": 0, "raised": 0, "error": 0}
    faults, refused, reached = [], set(), set()
    for name, source, variables in cases(templates):
        process.stdin.write(json.dumps({"source": source, "variables": variables}) + "\n")
        process.stdin.flush()
        ours = json.loads(process.stdout.readline())
        theirs = reference(source, variables)
        kind = next(iter(theirs))
        counts[kind] += 1
        template = name.split(",")[0]
        if kind == "text":
            reached.add(template)
        if ours == theirs or (kind == "error" and "error" in ours):
            continue
        if "error" in ours and template in REFUSED and REFUSED[template] in ours["error"]:
            refused.add(template)
            continue
        faults.append(f"{name}\n  theirs: {theirs}\n  ours:   {ours}")
    process.stdin.close()
    for fault in faults[:int(sys.argv[3]) if len(sys.argv) > 3 else 10]:
        print(fault)
    print(f"{len(templates)} templates: {counts['text']} texts, {counts['raised']} refusals by a template, "
          f"{counts['error']} errors; {len(faults)} differ")
    never = [path.name for path in templates if path.name not in reached]
    if never:
        print("rendered in no case:", ", ".join(never))
    if refused != set(REFUSED):
        print("no longer refused:", ", ".join(set(REFUSED) - refused))
    sys.exit(1 if faults or never or refused != set(REFUSED) or counts["text"] < 3000 else 0)


if __name__ == "__main__":
    main()
