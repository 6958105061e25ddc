"""A table in a page between two marks, made from what the program says."""

import pathlib
import sys


def hold(page, begin, end, table):
    """Ends the program where the page says something else; with --write among the arguments, makes it say this."""
    text = page.read_text()
    before, rest = text.split(begin)
    after = rest.split(end)[1]
    wanted = f"{before}{begin}\n{table}\n{end}{after}"
    if "--write" in sys.argv:
        page.write_text(wanted)
    elif wanted != text:
        script = pathlib.Path(sys.argv[0]).name
        sys.exit(f"{page} does not say what zero-infer plan says; run: tests/{script} {' '.join(sys.argv[1:3])} --write")
