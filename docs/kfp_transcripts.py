"""Runs the commands in the transcripts of docs/kfp.md and writes down what they print.

Run it as `python docs/kfp_transcripts.py`.

The endpoint is the server of the tests, tests/kfp_server.py. What it is to do stands in the comment above a transcript,
such as `<!-- transcript fails=fit -->`; the fields are those of its class `Server`.
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PAGE = Path(__file__).with_name("kfp.md")
REPOSITORY = PAGE.parents[1]
sys.path[:0] = [str(REPOSITORY / "tests")]

from kfp_server import Server  # noqa: E402

DOCUMENTED = "http://localhost:8888"  # where a reader's endpoint is
TRANSCRIPT = re.compile(r"(<!-- transcript(.*?) -->\n```console\n)(.*?)(```\n<!-- end -->)", re.DOTALL)


def render(page: str) -> str:
    """The page with the output of every command in its transcripts as it is today."""

    def again(block: re.Match) -> str:
        lines = [line[2:] for line in block[3].splitlines() if line.startswith("$ ")]
        with Server(**settings(block[2])) as server:
            shown = [f"$ {line}\n{output}" for line, (output, _) in zip(lines, shell(lines, server))]
        return block[1] + "".join(shown) + block[4]

    with ThreadPoolExecutor(4) as pool:  # most of their time is waiting
        done = pool.map(again, TRANSCRIPT.finditer(page))
        return TRANSCRIPT.sub(lambda _: next(done), page)


def settings(words: str) -> dict[str, object]:
    """`name=value` words as arguments of Server."""
    given = dict(word.split("=", 1) for word in shlex.split(words))
    return {name: int(value) if value.isdigit() else value for name, value in given.items()}


def shell(lines: list[str], server: Server) -> list[tuple[str, int]]:
    """(output, exit code) of each line, typed one after the other into a shell at the root of the repository.

    The server stands in for the documented endpoint in what is typed and in what is printed; KFP_ENDPOINT is set to it.
    """
    mark = "\x01"
    # `$?` of a line is the exit code of the line before, as in a terminal.
    typed = [f"(exit $code)\n{line}\ncode=$?; printf '{mark}%d{mark}' $code\n" for line in lines]
    script = "code=0\n" + "".join(typed).replace(DOCUMENTED, server.url)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("KFP_", "KF_"))}
    with tempfile.TemporaryDirectory() as home:  # kfp keeps a namespace in the home folder
        clean |= {
            "HOME": home,
            "KFP_ENDPOINT": server.url,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{clean['PATH']}",
        }
        done = subprocess.run(
            ["bash", "-c", script],
            env=clean | {"COLUMNS": "120", "PYTHONWARNINGS": "ignore"},
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
    parts = done.stdout.replace(server.url, DOCUMENTED).split(mark)
    return [(output, int(code)) for output, code in zip(parts[::2], parts[1::2])]


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text()))
