"""Plain YAML values to frozen dataclasses, strictly: an unknown key or a wrong type is an error that says where.

Knows types, not recipes: `int`, `float`, `bool`, `str`, `Literal`, `X | None`, `tuple[X, ...]`, `dict[str, X]`
and dataclasses.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
from collections.abc import Iterable
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

T = TypeVar("T")


class _Loader(yaml.SafeLoader):
    """YAML in which `1e-3` is a number (YAML 1.1 wants `1.0e-3`) and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value!r} is given twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def parse_yaml(text: str, where: str) -> Any:
    """Read YAML.

    Raises:
        ValueError: not valid YAML; the message starts with `where` and has line and column.

    Example:
        >>> parse_yaml("rate: 1e-3", "recipe.yaml")
        {'rate': 0.001}
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        raise ValueError(f"{where}{place}: not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: not valid YAML: {error}") from error


def build(kind: type[T], value: Any, where: str, path: str = "", partial: bool = False) -> T:
    """Build a value of type `kind` from plain YAML values.

    Args:
        kind: a dataclass, or any type named at the top of this file.
        value: what YAML gave.
        where: the file, for error messages.
        path: the place within the file, like `stages[0].data`.
        partial: the values are a part of a whole: keys and types are checked as far as they go, keys may be
            missing, and dataclasses come out as dicts.

    Raises:
        ValueError: unknown or missing key, wrong type, or a dataclass's own `__post_init__` said no. The
            message names file and place; for an unknown key also the nearest valid one.

    Example:
        >>> build(tuple[int, ...], [4, 8], "recipe.yaml")
        (4, 8)
    """
    place = f"{where}: {path}" if path else where
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, where, path, partial)  # type: ignore[return-value]

    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None  # type: ignore[return-value]
        choices = [choice for choice in args if choice is not type(None)]
        fitting = [choice for choice in choices if _fits(choice, value)]
        if not fitting and len(choices) > 1:
            raise ValueError(f"{place}: expected {_name(kind)}, got {_show(value)}")
        return build((fitting or choices)[0], value, where, path, partial)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{place}: expected a list of {_name(args[0])}, got {_show(value)}")
        items = [build(args[0], item, where, f"{path}[{index}]", partial) for index, item in enumerate(value)]
        return tuple(items)  # type: ignore[return-value]
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{place}: expected names and {_name(args[1])}, got {_show(value)}")
        prefix = f"{path}." if path else ""
        return {str(k): build(args[1], v, where, f"{prefix}{k}", partial) for k, v in value.items()}  # type: ignore[return-value]
    if not _fits(kind, value):
        raise ValueError(f"{place}: expected {_name(kind)}, got {_show(value)}")
    return float(value) if kind is float else value  # type: ignore[return-value]


def to_plain(value: Any) -> Any:
    """Turn a dataclass into what YAML and JSON can write: dicts, lists and plain values.

    Example:
        >>> to_plain((1, 2))
        [1, 2]
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    return value


def merge(base: Any, changes: Any, named_lists: Iterable[str] = (), path: str = "") -> Any:
    """Lay plain values over others: dicts key by key and deeply, anything else replaces what was there.

    Args:
        base: what is changed; stays as it is.
        changes: what comes on top.
        named_lists: places (like `stages`) of lists whose items are dicts that are told apart by `name`: those of
            the same name are merged, new ones come last.
        path: the place of both.

    Example:
        >>> merge({"a": {"b": 1, "c": [1, 2]}}, {"a": {"c": [3]}})
        {'a': {'b': 1, 'c': [3]}}
        >>> merge([{"name": "x", "n": 1}], [{"name": "x", "m": 2}], named_lists=["stages"], path="stages")
        [{'name': 'x', 'n': 1, 'm': 2}]
    """
    if isinstance(base, dict) and isinstance(changes, dict):
        merged = dict(base)
        for key, value in changes.items():
            place = f"{path}.{key}" if path else str(key)
            merged[key] = merge(base[key], value, named_lists, place) if key in base else value
        return merged
    if path in named_lists and isinstance(base, list) and isinstance(changes, list):
        items = {item.get("name"): item for item in base}
        for item in changes:
            items[item.get("name")] = merge(items.get(item.get("name"), {}), item)
        return list(items.values())
    return changes


def suggest(name: str, valid: Iterable[str]) -> str:
    """Say which valid name is meant, and list them all.

    Example:
        >>> suggest("seeds", ["seed", "name"])
        'did you mean `seed`? Valid: seed, name'
    """
    valid = list(valid)
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return (f"did you mean `{near[0]}`? " if near else "") + f"Valid: {', '.join(valid)}"


def _build_dataclass(kind: Any, value: Any, where: str, path: str, partial: bool) -> Any:
    place = f"{where}: {path}" if path else where
    if not isinstance(value, dict):
        raise ValueError(f"{place}: expected keys and values, got {_show(value)}")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    hints = get_type_hints(kind)
    prefix = f"{path}." if path else ""
    for key in value:
        if key not in fields:
            raise ValueError(f"{where}: {prefix}{key}: unknown key, {suggest(str(key), fields)}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in value and not partial:
            raise ValueError(f"{where}: {prefix}{name}: missing")
    built = {key: build(hints[key], item, where, f"{prefix}{key}", partial) for key, item in value.items()}
    if partial:
        return built
    try:
        return kind(**built)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _fits(kind: Any, value: Any) -> bool:
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if get_origin(kind) is tuple:
        return isinstance(value, list | tuple)
    if get_origin(kind) is dict:
        return isinstance(value, dict)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, dict) if dataclasses.is_dataclass(kind) else isinstance(value, kind)


def _name(kind: Any) -> str:
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(args)
    if origin is tuple:
        return f"a list of {_name(args[0])}"
    if origin is dict:
        return f"names and {_name(args[1])}"
    if dataclasses.is_dataclass(kind):
        return "keys and values"
    if origin in (Union, types.UnionType):
        return " or ".join(_name(choice) for choice in args if choice is not type(None))
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}.get(
        kind, str(kind)
    )


def _show(value: Any) -> str:
    return "nothing" if value is None else f"{value!r:.60} ({type(value).__name__})"
