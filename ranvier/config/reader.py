"""Take values out of a configuration by name and type, noting everything that is wrong with them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

import yaml

from ranvier.config.problems import Problems, Severity
from ranvier.config.units import parse_duration_ms, parse_size_bytes
from ranvier.config.yaml_files import Entries, UnreadableError, entries_of, place_of, plain_value

T = TypeVar("T")
Place = tuple[str, int]
MAX_SECRET_BYTES = 64 * 1024


class WrongValueError(ValueError):
    """Say what was expected instead of a value."""


class Section:
    """One mapping of the configuration. Each method takes a key; ``finish`` tells of those nobody took.

    A value that is missing or wrong gives the default, so that reading goes on and finds the next error.
    """

    def __init__(
        self, entries: Entries, problems: Problems, *, prefix: str = "", place: Place = ("", 0)
    ) -> None:
        self._entries = entries
        self._problems = problems
        self._prefix = prefix
        self._place = place
        self._broken = False
        self._known: set[str] = set()

    def has(self, key: str) -> bool:
        """Tell whether the key is given and is not ``null``."""
        return key in self._entries and self._entries[key][1].tag != "tag:yaml.org,2002:null"

    def error(self, key: str, message: str) -> None:
        """Note that something is wrong with this key."""
        self._note("error", key, message)

    def warn(self, key: str, message: str) -> None:
        """Note that an administrator should know something about this key."""
        self._note("warning", key, message)

    def note(self, key: str, message: str) -> None:
        """Note what an administrator may want to know about this key."""
        self._note("note", key, message)

    def file_of(self, key: str) -> str:
        """Give the file in which the key is given."""
        return self._place_of(key)[0]

    @overload
    def take(self, key: str, read: Callable[[Any], T], default: T) -> T: ...
    @overload
    def take(self, key: str, read: Callable[[Any], T], default: None = None) -> T | None: ...
    def take(self, key: str, read: Callable[[Any], T], default: T | None = None) -> T | None:
        """Take what ``read`` makes of the plain value; it raises ``WrongValueError`` with what it expects."""
        self._known.add(key)
        if not self.has(key):
            return default
        node = self._entries[key][1]
        try:
            value = plain_value(node)
        except UnreadableError:
            self.error(key, "this value cannot be read")
            return default
        try:
            return read(value)
        except WrongValueError as wrong:
            self.error(key, f"expected {wrong}, got {_shown(value)}")
            return default
        except ValueError:  # a number of more digits than Python makes text of
            self.error(key, "this value cannot be read")
            return default

    def text(self, key: str, default: str = "") -> str:
        """Take a text."""
        return self.take(key, text, default)

    def optional_text(self, key: str) -> str | None:
        """Take a text, or ``None``."""
        return self.take(key, text)

    def boolean(self, key: str, default: bool) -> bool:
        """Take ``true`` or ``false``."""
        return self.take(key, boolean, default)

    def integer(self, key: str, default: int, *, minimum: int = 0, maximum: int = 2**31) -> int:
        """Take a whole number."""
        return self.take(key, whole_number(minimum, maximum), default)

    def number(self, key: str, default: float, *, minimum: float = 0.0) -> float:
        """Take a number."""

        def read(value: Any) -> float:
            if isinstance(value, bool) or not isinstance(value, int | float) or not minimum <= value < 1e15:
                raise WrongValueError(f"a number, at least {minimum:g}")
            return float(value)

        return self.take(key, read, default)

    def duration_ms(self, key: str, default: str | int) -> int:
        """Take a duration, in milliseconds."""
        return self.take(key, _duration, parse_duration_ms(default))

    def optional_duration_ms(self, key: str, default: str | None = None) -> int | None:
        """Take a duration, in milliseconds; ``null`` where one is the default means none."""
        if key in self._entries and not self.has(key):
            self._known.add(key)
            return None
        return self.take(key, _duration, parse_duration_ms(default) if default is not None else None)

    def size_bytes(self, key: str, default: str) -> int:
        """Take a size, in bytes."""
        return self.take(key, _size, parse_size_bytes(default))

    def choice(self, key: str, choices: Sequence[str], default: str) -> str:
        """Take one of a few words; ``on`` and ``off``, which YAML makes true and false of, may be some."""

        def read(value: Any) -> str:
            word = {True: "on", False: "off"}[value] if isinstance(value, bool) else value
            if word not in choices:
                raise WrongValueError("one of " + ", ".join(choices))
            return str(word)

        return self.take(key, read, default)

    def texts(self, key: str, default: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Take a list of texts."""
        return self.take(key, texts, default)

    def path(self, key: str) -> Path | None:
        """Take a path; one that is not absolute begins at the folder of the file that gives it."""
        value = self.take(key, text)
        return None if value is None else self._folder(key) / value

    def secret(self, key: str) -> str | None:
        """Take a secret, in line or from the file that ``<key>_path`` names."""
        value = self.optional_text(key)
        path = self.path(f"{key}_path")
        if path is None:
            return value
        if value is not None:
            self.error(f"{key}_path", f"give either this or {key}, not both")
            return value
        try:
            with path.open("rb") as file:
                secret = file.read(MAX_SECRET_BYTES).decode().strip()
        except (OSError, UnicodeDecodeError) as error:
            self.error(f"{key}_path", f"cannot read the file: {error}")
            return None
        if not secret:
            self.error(f"{key}_path", f"the file {path} is empty")
        return secret or None

    def section(self, key: str) -> Section:
        """Take a mapping; an empty one if it is missing."""
        self._known.add(key)
        if not self.has(key):
            return Section({}, self._problems, prefix=self._path(key), place=self._place_of(key))
        return self._section(self._entries[key][1], self._path(key))

    def sections(self, key: str) -> list[Section]:
        """Take a list of mappings."""
        self._known.add(key)
        if not self.has(key):
            return []
        node = self._entries[key][1]
        if not isinstance(node, yaml.SequenceNode):
            self.error(key, "expected a list (lines that begin with `-`)")
            return []
        return [self._section(item, f"{self._path(key)}.{index}") for index, item in enumerate(node.value)]

    def names(self) -> list[str]:
        """Give the keys that are given."""
        return list(self._entries)

    def ignore(self, table: Mapping[str, str], message: str, *, severity: Severity = "note") -> None:
        """Accept the keys of ``table`` and tell why (``{}`` in the message) each given one has no effect."""
        for key in self._entries:
            if key in table:
                self._note(severity, key, message.format(table[key]))
        self._known.update(table)

    def finish(self) -> None:
        """Warn of every key that nobody took, with the name that was perhaps meant."""
        for key in self._entries:
            if key not in self._known:
                near = difflib.get_close_matches(key, self._known, n=1, cutoff=0.75)
                hint = f"; did you mean {near[0]}?" if near else ""
                self.warn(key, f"this key is not known and has no effect{hint}")

    def _section(self, node: yaml.Node, path: str) -> Section:
        if isinstance(node, yaml.MappingNode):
            entries = entries_of(node, path, self._problems)
            return Section(entries, self._problems, prefix=path, place=place_of(node))
        broken = Section({}, self._problems, prefix=path, place=place_of(node))
        self._problems.add("error", *place_of(node), path, "expected `key: value` lines")
        broken._broken = True
        return broken

    def _path(self, key: str) -> str:
        return f"{self._prefix}.{key}" if self._prefix else key

    def _place_of(self, key: str) -> Place:
        return place_of(self._entries[key][0]) if key in self._entries else self._place

    def _folder(self, key: str) -> Path:
        return Path(self._place_of(key)[0]).absolute().parent

    def _note(self, severity: Severity, key: str, message: str) -> None:
        if not self._broken:  # one error is enough for what is no mapping at all
            self._problems.add(severity, *self._place_of(key), self._path(key), message)


def text(value: Any) -> str:
    """Read a text."""
    if not isinstance(value, str):
        raise WrongValueError("text (put it in quotes)" if value is not None else "text")
    # Escapes in quotes can make what no file name, and no database, can hold.
    if "\0" in value or any("\ud800" <= char <= "\udfff" for char in value):
        raise WrongValueError("text without NUL and halves of characters")
    return value


def boolean(value: Any) -> bool:
    """Read a truth value."""
    if isinstance(value, bool):
        return value
    raise WrongValueError("true or false")


def texts(value: Any) -> tuple[str, ...]:
    """Read a list of texts; a single one counts as a list of one."""
    values = [value] if isinstance(value, str) else value
    if isinstance(values, list) and all(isinstance(item, str) for item in values):
        return tuple(map(text, values))
    raise WrongValueError("a list of texts")


def whole_number(minimum: int, maximum: int) -> Callable[[Any], int]:
    """Make the reader of a whole number within bounds."""

    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise WrongValueError(f"a whole number from {minimum} to {maximum}")
        return value

    return read


def _duration(value: Any) -> int:
    try:
        return parse_duration_ms(value)
    except ValueError:
        raise WrongValueError("a duration such as 30s, 5m, 24h or 7d, or a number of milliseconds") from None


def _size(value: Any) -> int:
    try:
        return parse_size_bytes(value)
    except ValueError:
        raise WrongValueError("a size such as 512K, 50M or 1G, or a number of bytes") from None


def _shown(value: Any) -> str:
    try:
        shown = str(value).lower() if isinstance(value, bool) else repr(value)
    except ValueError:
        return "a number of thousands of digits"
    return shown if len(shown) <= 60 else shown[:57] + "..."
