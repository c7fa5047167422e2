"""YAML that remembers on which line each value stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml

Loc = tuple[str | int, ...]
"""The way to a value: names of fields and places in lists, as pydantic counts them."""

DEPTH_MAX = 8
VALUES_MAX = 100_000
"""Both end the walk where aliases make much of a short file, or a part contains itself."""

TYPED = frozenset(f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float"))


class NotReadable(ValueError):
    """What stands on ``line``, at ``loc`` as far as that is known, cannot be read."""

    def __init__(self, line: int, message: str, loc: Loc = ()) -> None:
        super().__init__(message)
        self.line = line
        self.loc = loc


@dataclass(frozen=True)
class Document:
    """Plain values, and the line of each, counted from 1."""

    data: Any
    lines: dict[Loc, int]

    def line(self, loc: Loc) -> int:
        """Where ``loc`` stands, or what it would be a part of."""
        while loc not in self.lines:
            loc = loc[:-1]
        return self.lines[loc]


def read_document(raw: bytes) -> Document:
    """The one document in ``raw``. Names of fields are text, whatever they look like; values are
    text, numbers, booleans or null. A name given twice is an error, and so is one without a value:
    it is more often half an edit than a null."""
    walk = _Walk()
    node = _compose(raw)
    return Document(walk.value(node, (), node.start_mark.line + 1), walk.lines)


def _compose(raw: bytes) -> yaml.Node:
    try:
        text = raw.decode("utf-8-sig")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise NotReadable(raw.count(b"\n", 0, error.start) + 1, "not UTF-8 text") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise NotReadable(line, f"not YAML: {error.reason}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        told = ", ".join(part for part in (error.context, error.problem) if part)
        raise NotReadable(mark.line + 1 if mark else 1, f"not YAML: {told}") from None
    except RecursionError:
        raise NotReadable(1, "nested too deeply") from None
    if node is None:
        raise NotReadable(1, "the file is empty")
    return node


@dataclass
class _Walk:
    """From nodes to plain values, with their lines on the way."""

    lines: dict[Loc, int] = field(default_factory=dict)

    def value(self, node: yaml.Node, loc: Loc, line: int) -> Any:
        self.lines[loc] = line
        if len(loc) > DEPTH_MAX or len(self.lines) > VALUES_MAX:
            raise NotReadable(line, "nested too deeply, or too many values", loc)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, loc)
        if isinstance(node, yaml.SequenceNode):
            return [
                self.value(item, (*loc, place), item.start_mark.line + 1)
                for place, item in enumerate(node.value)
            ]
        if node.tag in TYPED and node.value == "":
            hint = "has no value: write null for no limit, {} for no fields"
            raise NotReadable(line, hint, loc)
        return _plain(node)

    def _mapping(self, node: yaml.MappingNode, loc: Loc) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise NotReadable(line, "a field's name is a word, not a list or fields", loc)
            here = (*loc, key.value)
            if key.value in made:
                raise NotReadable(line, f"given twice, first in line {self.lines[here]}", here)
            made[key.value] = self.value(value, here, line)
        return made


def _plain(node: yaml.Node) -> Any:
    """The scalar as its type says. What is of another type, or does not fit its own, is text, and
    whoever wanted a number will say so."""
    if node.tag not in TYPED:
        return node.value
    try:
        return yaml.constructor.SafeConstructor().construct_object(node)
    except (ValueError, KeyError):
        return node.value
