"""Read YAML files into nodes that still know their file and line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from ranvier.config.problems import Problems

MAX_FILE_BYTES = 4 * 1024 * 1024

Entries = dict[str, tuple[yaml.Node, yaml.Node]]
"""The key node and the value node of each key."""

# What PyYAML raises besides its own errors for values that are none (2024-02-30, `!!int x`, "\\UFFFFFFFF").
_STRAY_ERRORS = (ValueError, LookupError, AttributeError, TypeError, ArithmeticError)


class UnreadableError(ValueError):
    """Say that a node stands for nothing."""


def read_files(paths: Sequence[Path], problems: Problems) -> Entries:
    """Read files, and folders of ``*.yaml`` and ``*.yml`` in the order of their names.

    A top-level key of a later file replaces the earlier one.
    """
    merged: Entries = {}
    for path in _files(paths, problems):
        merged.update(_read_file(path, problems))
    return merged


def entries_of(node: yaml.MappingNode, prefix: str, problems: Problems) -> Entries:
    """Give a mapping's entries, with ``<<`` merged in; a key that is given twice is an error."""
    _check_duplicates(node, prefix, problems)
    loader = yaml.SafeLoader("")
    try:
        loader.flatten_mapping(node)
    except (yaml.MarkedYAMLError, RecursionError) as error:
        file, line = place_of(node)
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else line
        problems.add("error", file, line, prefix, "expected a mapping, or a list of some, after <<")
    finally:
        loader.dispose()
    entries: Entries = {}
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode):
            entries[key.value] = (key, value)
        else:
            problems.add("error", *place_of(key), prefix, "expected a word as key")
    return entries


def plain_value(node: yaml.Node) -> Any:
    """Give what a node stands for as plain Python. Raises ``UnreadableError``."""
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node, deep=True)
    except (yaml.YAMLError, RecursionError, *_STRAY_ERRORS) as error:
        raise UnreadableError from error
    finally:
        loader.dispose()


def place_of(node: yaml.Node) -> tuple[str, int]:
    """Give the file and the line (from 1) of a node."""
    return node.start_mark.name, node.start_mark.line + 1


def _files(paths: Sequence[Path], problems: Problems) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            try:
                found = sorted(file for file in path.iterdir() if file.suffix in (".yaml", ".yml"))
            except OSError as error:
                problems.add("error", str(path), 0, "", f"cannot read the folder: {error}")
                continue
            if not found:
                problems.add("warning", str(path), 0, "", "there is no .yaml file in this folder")
            yield from found
        else:
            yield path


def _read_file(path: Path, problems: Problems) -> Entries:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            problems.add("error", str(path), 0, "", f"the file is larger than {MAX_FILE_BYTES} bytes")
            return {}
        root = _compose(path)
    except (OSError, UnicodeDecodeError) as error:
        problems.add("error", str(path), 0, "", f"cannot read the file: {error}")
        return {}
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problems.add("error", str(path), mark.line + 1 if mark else 0, "", f"not valid YAML: {error.problem}")
        return {}
    except (yaml.YAMLError, *_STRAY_ERRORS) as error:
        problems.add("error", str(path), 0, "", f"not valid YAML: {error}")
        return {}
    except RecursionError:
        problems.add("error", str(path), 0, "", "too many lists and mappings in each other")
        return {}
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        problems.add("error", *place_of(root), "", "expected `key: value` lines")
        return {}
    return entries_of(root, "", problems)


def _compose(path: Path) -> yaml.Node | None:
    loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
    loader.name = str(path)  # what the marks of all nodes will say
    try:
        return loader.get_single_node()
    finally:
        loader.dispose()


def _check_duplicates(node: yaml.MappingNode, prefix: str, problems: Problems) -> None:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
            continue
        file, line = place_of(key)
        if key.value in lines:
            path = f"{prefix}.{key.value}" if prefix else key.value
            problems.add("error", file, line, path, f"given twice; it is also in line {lines[key.value]}")
        lines[key.value] = line
