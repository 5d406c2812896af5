"""What a person sees of long work: in a terminal, and in a log."""

import os
import pty
import re
import subprocess
import sys

SCRIPT = """
import sys, time
from maskocr_core import progress
progress.EVERY_SECONDS = 0.0
one, other = progress.Progress("pretrain", total=40), progress.Progress("finetune scratch", total=10)
for step in range(1, 41):
    one.update(step, masked_loss=6.25 / step, lines=32 * step)
    other.update(step // 4)
    time.sleep(0.01)
print("a word in between", flush=True)
if sys.argv[1] == "breaks":
    raise SystemExit("maskocr: the disk is full")
one.done(40, masked_loss=0.5)
other.done(10)
"""


def in_a_terminal(*arguments):
    """What is written to a real pseudo-terminal of 160 columns, and the exit code."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments],
        stdout=theirs,
        stderr=theirs,
        stdin=theirs,
        env=os.environ | {"COLUMNS": "160", "TERM": "xterm"},
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        seen += piece
    os.close(ours)
    return seen.decode(), child.wait()


def words(seen):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen)


def test_in_a_terminal_bars_are_drawn_together_and_the_last_figures_stay():
    seen, code = in_a_terminal("ends")
    last = [line for line in words(seen).splitlines() if "40/40" in line][-1]
    assert code == 0 and last.startswith("pretrain") and "━" in last and last.rstrip().endswith("masked loss 0.5")
    assert "finetune scratch" in seen and "10/10" in seen and "a word in between" in seen
    assert seen.rindex("\x1b[?25h") > seen.rindex("\x1b[?25l")  # the cursor is back


def test_an_error_leaves_the_terminal_as_it_was():
    seen, code = in_a_terminal("breaks")
    assert code == 1 and "maskocr: the disk is full" in words(seen)
    assert seen.rindex("\x1b[?25h") > seen.rindex("\x1b[?25l")


def test_in_a_log_there_are_plain_lines():
    command = [sys.executable, "-c", SCRIPT, "ends"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "\x1b" not in said and "━" not in said
    assert re.search(r"^pretrain: 20/40  masked loss 0\.312, lines 640, \d+ s left$", said, re.MULTILINE)
    assert re.search(r"^pretrain: 40/40  masked loss 0\.5, in \d+ s$", said, re.MULTILINE)
