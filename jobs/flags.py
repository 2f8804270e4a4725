"""How the fields of a job become flags: their order and values in the help, and the spellings of booleans."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

_BOOLEANS = {"True": True, "true": True, "False": False, "false": False}
_VALUES = {str: "TEXT", int: "INT", float: "FLOAT"}


def rules() -> ConstructorRegistry:
    """Rules for tyro. Required flags come first. A value is INT, TEXT... and not {None}|INT; no value as a default is not shown."""
    registry, is_nested = ConstructorRegistry(), False

    def rule(info: StructTypeInfo) -> StructConstructorSpec | None:
        nonlocal is_nested
        if is_nested or not dataclasses.is_dataclass(info.type):
            return None
        is_nested = True  # the next call asks tyro's own rules
        try:
            usual = ConstructorRegistry.get_struct_spec(info)
        finally:
            is_nested = False
        if not isinstance(usual, StructConstructorSpec):
            return None
        fields = sorted(usual.fields, key=lambda field: not _is_required(field))
        return dataclasses.replace(usual, fields=tuple(map(_readable, fields)))

    registry.struct_rule(rule)
    return registry


def plain_booleans(arguments: Sequence[str], kind: Any) -> list[str]:
    """`--dry-run True` as `--dry-run`, and `--dry-run False` as `--no-dry-run`, for the flags that are booleans."""
    flags = set(_boolean_flags(kind))
    plain: list[str] = []
    for word in arguments:
        name, equals, value = word.partition("=")
        if equals and name in flags and value in _BOOLEANS:
            plain.append(name if _BOOLEANS[value] else _negative(name))
        elif word in _BOOLEANS and plain[-1:] and plain[-1] in flags:
            plain[-1] = plain[-1] if _BOOLEANS[word] else _negative(plain[-1])
        else:
            plain.append(word)
    return plain


def _is_required(field: StructFieldSpec) -> bool:
    return field.default is tyro.MISSING or field.default is tyro.MISSING_NONPROP


def _readable(field: StructFieldSpec) -> StructFieldSpec:
    """The field as a flag whose help shows its value and its default in words."""
    hint, marks = _without_marks(field.type)
    optional = [tyro.conf.DisallowNone] if _is_boolean(hint) else []
    shown = tyro.conf.arg(metavar=None if dataclasses.is_dataclass(hint) else _value(hint), help_behavior_hint=_default)
    marked: Any = Annotated[(hint, shown, *optional, *marks)]
    return dataclasses.replace(field, type=marked, helptext=_help_of(field))


def _without_marks(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    return (get_args(hint)[0], get_args(hint)[1:]) if get_origin(hint) is Annotated else (hint, ())


def _help_of(field: StructFieldSpec) -> Any:
    """The help in one paragraph, when tyro asks for it: to read it takes time."""
    return lambda: " ".join(((field.helptext() if callable(field.helptext) else field.helptext) or "").split()) or None


def _default(value: str) -> str:
    """What the help says about a default."""
    return "" if value in ("None", "") else f"(default: {({'True': 'on', 'False': 'off'}).get(value, value)})"


def _value(hint: Any) -> str | None:
    """INT, {zstd,none}, TEXT...; None for a boolean, which has no value."""
    kinds = [kind for kind in get_args(hint) if kind is not NoneType]
    if NoneType in get_args(hint):
        return _value(kinds[0])
    if get_origin(hint) is Literal:
        return f"{{{','.join(map(str, kinds))}}}"
    return f"{_value(kinds[0])}..." if get_origin(hint) is tuple else _VALUES.get(hint)


def _negative(flag: str) -> str:
    """--no-dry-run, --train.no-gpu."""
    group, dot, name = flag.removeprefix("--").rpartition(".")
    return f"--{group}{dot}no-{name}"


def _boolean_flags(kind: Any, prefix: str = "") -> Iterator[str]:
    for name, hint in get_type_hints(kind, include_extras=True).items():
        plain, marks = _without_marks(hint)
        if _is_boolean(plain):
            yield f"--{prefix}{name.replace('_', '-')}"
        elif dataclasses.is_dataclass(plain):
            yield from _boolean_flags(plain, prefix if tyro.conf.OmitArgPrefixes in marks else f"{prefix}{name.replace('_', '-')}.")


def _is_boolean(hint: Any) -> bool:
    return hint is bool or set(get_args(hint)) == {bool, NoneType}
