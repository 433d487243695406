"""One scalar of the file to one value, and the traps of YAML 1.1 on the way.

YAML 1.1 reads ``no`` as false, ``12:30`` as 750 and ``010`` as 8. Whoever wrote that meant
something else, so a scalar that YAML does not read as it looks is an error that says so.
"""

import math
import operator
import re
from typing import Any

from msgspec import inspect

from gateway.config_nodes import Scalar
from gateway.config_text import PARSERS
from gateway.config_types import Shape
from gateway.config_units import NUMERIC, BadValueError, format_unit, short

_OFF = frozenset(("off", "no", "false"))
_ON = frozenset(("on", "yes", "true"))
_INTEGER = re.compile(r"[+-]?(?:0|[1-9]\d*)", re.ASCII)
_DECIMAL = re.compile(r"[+-]?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?", re.ASCII)
_LONGEST_NUMBER = 40
_BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
EXPECTED = {
    "duration": "a duration such as 10s",
    "size": "a size such as 64KiB",
    "share": "a share such as 5%",
    "quantile": "a quantile such as p95",
    "rate": "a rate such as 100/s",
    "address": "an address such as 127.0.0.1:8080",
    "endpoint": "a URL such as http://127.0.0.1:8000",
    "url": "a URL such as http://127.0.0.1:4318",
    "cidr": "a network such as 10.0.0.0/8",
    "file": "the path of a file",
    "host": "a host name",
    "path": "a path such as /v1",
    "name": "a name",
    "method": "a method such as POST",
    "input": "the name of an input",
    "function": "MODULE:FUNCTION",
    "header": "a header's name",
    "header_value": "a header's value",
    "hash_key": "header:NAME",
    "limit_key": "client, route or header:NAME",
}
_QUOTABLE = ("", "file", "header", "header_value", "host", "input", "name", "path")
_MADE = {"bool": "", "int": "the number ", "float": "the number ", "null": "", "date": "the date "}


def is_off(scalar: Scalar, shape: Shape) -> bool:
    """Whether this says None: ``off`` as YAML reads it, or the quoted word where no text fits."""
    free_text = shape.one(inspect.StrType) is not None and not shape.unit
    if scalar.tag == "bool":
        # Not "no": it is as likely a word that YAML took away, such as Norway's code.
        return scalar.text.lower() in ("off", "false")
    return scalar.text == "off" and not (scalar.plain and not scalar.untyped) and not free_text


def scalar_value(scalar: Scalar, shape: Shape) -> Any:
    """The value, or ``BadValueError``. ``file`` paths are not made absolute here."""
    if scalar.tag == "null" and not scalar.untyped:
        off = "write off to turn it off, or " if shape.optional else ""
        raise BadValueError(f"expected {expected(shape)}, got nothing", f"{off}leave the key out")
    number = shape.one(inspect.IntType) or shape.one(inspect.FloatType)
    literal = shape.one(inspect.LiteralType)
    if shape.unit in NUMERIC and number:
        return _bounded(_with_unit(scalar, shape), number, shape.unit)
    if literal and (not number or (scalar.tag == "str" and not _INTEGER.fullmatch(scalar.text))):
        return _literal(scalar, literal, shape)
    if number:
        return _bounded(_number(scalar, number, shape), number, "")
    if shape.one(inspect.BoolType):
        return _bool(scalar, shape)
    if shape.one(inspect.StrType):
        return _text(scalar, shape)
    raise BadValueError(f"expected {expected(shape)}, got {_written(scalar)}")


def expected(shape: Shape) -> str:
    """In words, what the file should have here."""
    names = []
    for option in shape.options:
        if shape.unit in EXPECTED and isinstance(
            option, inspect.StrType | inspect.IntType | inspect.FloatType
        ):
            names.append(EXPECTED[shape.unit])
        elif isinstance(option, inspect.LiteralType):
            names.append("one of " + ", ".join(str(value) for value in option.values))
        else:
            names.append(_KINDS.get(type(option), "a value"))
    if shape.optional:
        names.append("off")
    return " or ".join(dict.fromkeys(names))


_KINDS: dict[type, str] = {
    inspect.IntType: "a whole number",
    inspect.FloatType: "a number",
    inspect.BoolType: "true or false",
    inspect.StrType: "text",
    inspect.StructType: "a mapping",
    inspect.DictType: "a mapping",
    inspect.VarTupleType: "a list",
}


def _with_unit(scalar: Scalar, shape: Shape) -> Any:
    if scalar.plain and not scalar.untyped:
        simple = scalar.tag in ("int", "float") and _DECIMAL.fullmatch(scalar.text)
        if scalar.tag != "str" and not simple:
            raise _trap(scalar, shape)
    return PARSERS[shape.unit](scalar.text)


def _number(scalar: Scalar, kind: Any, shape: Shape) -> float:
    whole = isinstance(kind, inspect.IntType)
    text = scalar.text
    if not scalar.plain and not scalar.untyped:
        hint = "take the quotes away" if _DECIMAL.fullmatch(text) else ""
        raise BadValueError(f"expected {expected(shape)}, got the text {short(text)}", hint)
    if len(text) <= _LONGEST_NUMBER and (_INTEGER if whole else _DECIMAL).fullmatch(text):
        value = int(text) if whole else float(text)
        if math.isfinite(value):
            return value
    if _DECIMAL.fullmatch(text) and len(text) > _LONGEST_NUMBER:
        raise BadValueError("the number is out of range")
    if scalar.tag != "str":
        raise _trap(scalar, shape)
    raise BadValueError(f"expected {expected(shape)}, got {_written(scalar)}")


def _bool(scalar: Scalar, shape: Shape) -> bool:
    word = scalar.text.lower()
    if word in _ON | _OFF and (scalar.untyped or scalar.tag == "bool"):
        return word in _ON
    hint = "take the quotes away" if word in _ON | _OFF else ""
    raise BadValueError(f"expected {expected(shape)}, got {_written(scalar)}", hint)


def _literal(scalar: Scalar, kind: Any, shape: Shape) -> str:
    text = scalar.text
    if text in kind.values and (scalar.tag == "str" or scalar.untyped):
        return text
    if scalar.tag != "str":
        raise _trap(scalar, shape)
    hint = suggest(text, [str(value) for value in kind.values])
    raise BadValueError(f"expected {expected(shape)}, got {_written(scalar)}", hint)


def _text(scalar: Scalar, shape: Shape) -> str:
    text = scalar.text
    if shape.unit == "address" and scalar.tag == "int" and text.isdigit():
        # "listen: 8080": the answer to give is the address, not a lesson about quotes.
        PARSERS["address"](text)
    if scalar.tag != "str" and not scalar.untyped:
        raise _trap(scalar, shape)
    parser = PARSERS.get(shape.unit)
    if parser is not None:
        return str(parser(text))
    if not text:
        raise BadValueError(f"expected {expected(shape)}, got nothing")
    if not text.isprintable():
        raise BadValueError("the text has control characters")
    return text


def _bounded(value: Any, kind: Any, unit: str) -> Any:
    for attribute, words in _BOUNDS.items():
        bound = getattr(kind, attribute)
        if bound is not None and not getattr(operator, attribute)(value, bound):
            raise BadValueError(
                f"must be {words} {format_unit(bound, unit)}, is {format_unit(value, unit)}"
            )
    return value


def _trap(scalar: Scalar, shape: Shape) -> BadValueError:
    """What YAML made of a scalar that was meant otherwise."""
    made = _as_yaml(scalar)
    wanted = expected(shape)
    text_wanted = shape.one(inspect.StrType) or shape.one(inspect.LiteralType)
    quotable = text_wanted and shape.unit in _QUOTABLE
    hint = f'write "{scalar.text}" in quotes' if quotable else ""
    if scalar.tag == "bool" and shape.optional and scalar.text.lower() in _OFF:
        hint = "write off to turn it off" + (", or else use quotes" if quotable else "")
    if made == scalar.text:
        return BadValueError(f"expected {wanted}, got {_MADE[scalar.tag]}{made}", hint)
    message = f"expected {wanted}, but YAML 1.1 reads {scalar.text} as {_MADE[scalar.tag]}{made}"
    if not hint and scalar.tag == "int" and shape.unit not in NUMERIC:
        hint = f"write {made} if you mean that"
    return BadValueError(message, hint)


def _as_yaml(scalar: Scalar) -> str:
    if scalar.tag == "bool":
        return "true" if scalar.text.lower() in _ON else "false"
    if scalar.tag == "null":
        return "null"
    if len(scalar.text) > _LONGEST_NUMBER:
        return "out of range"
    # The parser is imported already: no scalar has such a tag unless it came from a file.
    import yaml

    try:
        return str(yaml.load(scalar.text, yaml.SafeLoader))
    except (yaml.YAMLError, ValueError, OverflowError):
        return "that is not valid"


def _written(scalar: Scalar) -> str:
    # What the environment holds may be a secret in the wrong place.
    return "something else from the environment" if scalar.untyped else short(scalar.text)


def suggest(word: str, known: list[str]) -> str:
    """A did-you-mean, or ''."""
    from difflib import get_close_matches

    close = get_close_matches(word[:100].lower(), [each.lower() for each in known], 1, 0.6)
    match = next((each for each in known if close and each.lower() == close[0]), None)
    return f"did you mean {match!r}?" if match else ""
