"""Small pictures in terminals that say that they can show them: the protocols of kitty and of iTerm2."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import ControlType, Segment

Protocol = Literal["kitty", "iterm"]
ROWS = 6  # of text that a picture takes
_CHUNK = 4096  # characters of kitty's base64 in one sequence


def find_protocol(environ: Mapping[str, str]) -> Protocol | None:
    """The protocol of the terminal, as far as the environment says; None within tmux and screen, which pass none on.

    >>> find_protocol({"TERM": "xterm-kitty"}), find_protocol({"TERM_PROGRAM": "iTerm.app"}), find_protocol({})
    ('kitty', 'iterm', None)
    """
    term = environ.get("TERM", "")
    if "TMUX" in environ or "STY" in environ or term.startswith(("screen", "tmux", "dumb")):
        return None
    if term in ("xterm-kitty", "xterm-ghostty") or "KITTY_WINDOW_ID" in environ:
        return "kitty"
    if environ.get("TERM_PROGRAM") in ("iTerm.app", "WezTerm") or environ.get("LC_TERMINAL") == "iTerm2":
        return "iterm"
    return None


def encode(protocol: Protocol, content: bytes, rows: int = ROWS) -> str:
    """The control sequence that shows a PNG file, `rows` lines of text high.

    >>> encode("iterm", b"png", 2)
    '\\x1b]1337;File=inline=1;size=3;height=2;preserveAspectRatio=1:cG5n\\x07'
    """
    text = b64encode(content).decode()
    if protocol == "iterm":
        return f"\x1b]1337;File=inline=1;size={len(content)};height={rows};preserveAspectRatio=1:{text}\x07"
    chunks = [text[start : start + _CHUNK] for start in range(0, len(text), _CHUNK)] or [""]
    first = f"a=T,f=100,q=2,r={rows},"
    return "".join(
        f"\x1b_G{first if place == 0 else ''}m={int(place < len(chunks) - 1)};{chunk}\x1b\\"
        for place, chunk in enumerate(chunks)
    )


@dataclass(frozen=True)
class Picture:
    """A PNG file as something that rich prints, above its bars."""

    protocol: Protocol
    content: bytes

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the sequence as a control, which has no width, and the end of its line."""
        yield Segment(encode(self.protocol, self.content), None, [(ControlType.CARRIAGE_RETURN,)])
        yield Segment.line()
