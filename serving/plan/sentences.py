"""A text's sentences: what is spoken at a time.

A rule of thumb for many languages, not a parser: a wrong split costs a pause, a missed one makes a
listener wait a little longer. Nothing of the text is lost, and no piece is longer than asked.
"""

from __future__ import annotations

import re

CHARS_MAX = 400
"""Some thirty seconds of speech."""

_ABBREVIATIONS = (
    "mr mrs ms dr prof st sr jr gen col capt lt rev hon mt vs etc e.g i.e cf approx dept est fig "
    "inc ltd co corp vol pp ca bzw z.b d.h u.a usw nr str hr fr bspw vgl mme mlle av env p.ex "
    "sra srta dra ud uds pág"
)
ABBREVIATIONS = frozenset(_ABBREVIATIONS.split())
"""After these a full stop ends no sentence. In lower case, without their last full stop."""

_END = re.compile(
    r"""(?P<stop>[.!?…]+)(?P<close>["'”’»)\]]*)(?=\s|$)   # an end, what closes after it
      | (?P<wide>[。！？]+[”’」』）]*)                       # needs no space after it
      | (?P<line>\s*\n\s*\n\s*)                            # a new paragraph""",
    re.VERBOSE,
)
_BREAK = re.compile(r"(?<=[,;:、，；：])\s*|\s+[–—-]\s+")


def speakable(text: str) -> bool:
    """Whether there is anything to say: a letter or a digit, in any script."""
    return any(char.isalnum() for char in text)


def sentences(text: str, chars_max: int = CHARS_MAX) -> list[str]:
    """The sentences of ``text`` in order, each of 1 to ``chars_max`` characters, with one at least
    that can be spoken. White space around them is dropped, and runs of it are one space."""
    found: list[str] = []
    start = 0
    for match in _END.finditer(text):
        if match["stop"] and not _ends(text, start, match):
            continue
        found.append(text[start : match.end()])
        start = match.end()
    found.append(text[start:])
    pieces = [piece for each in found for piece in _fitting(" ".join(each.split()), chars_max)]
    return [piece for piece in pieces if speakable(piece)]


def _ends(text: str, start: int, match: re.Match[str]) -> bool:
    """Whether this full stop, or the like, ends a sentence."""
    after = text[match.end() :].lstrip()
    if after[:1].islower():
        return False
    if match["stop"] != ".":
        return True
    words = text[start : match.start()].split()
    if not words:
        return False
    last = words[-1].lstrip("\"'“‘«([")
    # An initial ("J. Bach"), or the number of an item or a day with nothing before it.
    initial = len(last) == 1 and last.isalpha() and last.isupper() and last != "I"
    number = last.isdecimal() and len(words) == 1
    return not (initial or number or last.lower() in ABBREVIATIONS)


def _fitting(sentence: str, chars_max: int) -> list[str]:
    """A sentence in pieces of at most so many characters: after a comma or the like, else after a
    word, else wherever it must be."""
    pieces = []
    while len(sentence) > chars_max:
        head = sentence[:chars_max]
        ends = [match.end() for match in _BREAK.finditer(head) if match.end() > chars_max // 4]
        at = ends[-1] if ends else head.rfind(" ") + 1 or chars_max
        pieces.append(sentence[:at].strip())
        sentence = sentence[at:].lstrip()
    return [*pieces, sentence] if sentence else pieces
