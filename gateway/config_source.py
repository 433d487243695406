"""The configuration file, or the command line's flags, to one ``Config``; and back to YAML.

All errors of a file are found in one pass and raised together, because a sidecar that fails to
start costs its operator a roll-out for each try. Without a file no YAML parser is imported.
"""

import os
from collections.abc import Mapping as Environment
from collections.abc import Sequence as Items
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect

from gateway.config import Config, Secret
from gateway.config_check import check
from gateway.config_convert import Converter
from gateway.config_nodes import Mapping, Mark, Node, Scalar, Sequence
from gateway.config_problem import ConfigErrors, Problem, Problems
from gateway.config_types import described, shape
from gateway.config_units import NUMERIC, format_unit

_LARGEST = 4 * 1024**2


def load(path: Path | str, env: Environment[str, str] | None = None) -> Config:
    """The configuration in the file ``path``; ``ConfigErrors`` with everything wrong in it.

    ``env`` is what ``${NAME}`` reads, the process's environment by default. Reads the secrets and
    the certificates that the file names. A millisecond for a file of ordinary size.
    """
    return load_with_warnings(path, env)[0]


def load_with_warnings(
    path: Path | str, env: Environment[str, str] | None = None
) -> tuple[Config, list[Problem]]:
    """As ``load``, with the warnings: what will run and probably should not."""
    from gateway.config_yaml import parse

    text = _read(Path(path))
    problems = Problems(str(path), text)
    root = parse(text, problems)
    if root is None:
        raise ConfigErrors(problems.errors)
    return _finish(root, problems, Path(path).absolute().parent, os.environ if env is None else env)


def from_flags(listen: Items[str], upstreams: Items[str], admin: str | None = None) -> Config:
    """The configuration of ``tailrace run --listen ... --upstream ...`` without a file.

    One cluster ``default`` of all ``upstreams`` and one route to it; ``admin`` may be ``off``.
    ``ConfigErrors`` name the flag instead of a line.
    """

    def flag(name: str, text: str) -> Scalar:
        # Untyped text of a person, not of YAML: "off" is the only word that means something else.
        return Scalar(text, Mark(0, 0, name), plain=text != "off")

    def one(name: str, value: Node) -> Mapping:
        return Mapping(value.mark, [(Scalar(name, value.mark), value)])

    none = Mark(0, 0, "--upstream")
    urls = Sequence(none, [flag("--upstream", each) for each in upstreams])
    root = one("clusters", one("default", one("endpoints", urls)))
    root.pairs += one("routes", Sequence(none, [one("cluster", Scalar("default", none))])).pairs
    if listen:
        bound: list[Node] = [flag("--listen", each) for each in listen]
        root.pairs += one("listen", Sequence(Mark(0, 0, "--listen"), bound)).pairs
    if admin is not None:
        off = admin == "off"
        value = flag("--admin", admin)
        root.pairs += one("admin", value if off else one("listen", value)).pairs
    # An empty environment: the shell has already put in what ${NAME} stands for.
    return _finish(root, Problems("command line"), Path.cwd(), {})[0]


def _finish(
    root: Node, problems: Problems, folder: Path, env: Environment[str, str]
) -> tuple[Config, list[Problem]]:
    converter = Converter(problems, folder, env)
    config = converter.config(root)
    check(config, converter)
    if not problems.errors:
        try:
            # A second, independent reading of the type hints: nothing slips past the first.
            msgspec.convert(msgspec.to_builtins(config), Config)
        except msgspec.ValidationError as error:
            problems.error(Mark(1, 1), str(error))
    if problems.errors:
        raise ConfigErrors(problems.errors)
    return config, problems.warnings


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        problem = Problem(str(path), 0, 0, f"cannot be read: {reason}")
        raise ConfigErrors([problem]) from error
    if len(data) > _LARGEST:
        raise ConfigErrors([Problem(str(path), 0, 0, "larger than 4MiB")])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        problem = Problem(str(path), line, column, "not UTF-8 text")
        raise ConfigErrors([problem]) from error


def effective(config: Config) -> str:
    """The whole configuration as YAML, every default written out, secrets as where they are from.

    Loads again to an equal ``Config`` when it holds no secrets.
    """
    import yaml

    return yaml.dump(
        as_written(config, described(Config), _Off),
        Dumper=_dumper(),
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=False,
        width=10_000,
    )


class _Off:
    """Stands for None while the effective configuration is written."""


def as_written(value: Any, kind: Any, off: Any = False) -> Any:
    """``value`` of the type ``kind`` as a person would write it: with units, ``off`` for None."""
    wanted = shape(kind)
    if value is None:
        return off
    if isinstance(value, Secret):
        return value.source
    if isinstance(value, msgspec.Struct):
        fields = described(type(value)).fields
        return {each.name: as_written(getattr(value, each.name), each.type, off) for each in fields}
    if isinstance(value, tuple):
        items = wanted.one(inspect.VarTupleType)
        return [as_written(each, items.item_type, off) for each in value]
    if isinstance(value, dict):
        pairs = wanted.one(inspect.DictType)
        return {key: as_written(each, pairs.value_type, off) for key, each in value.items()}
    if isinstance(value, str):
        return value.replace("${", "$${")
    if wanted.unit in NUMERIC:
        return format_unit(value, wanted.unit)
    # "weight: 1", not "1.0"; a bool is an int, and stays one.
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _dumper() -> Any:
    import yaml

    class Dumper(yaml.SafeDumper):
        """Writes no anchors: equal parts of a file are not the same part."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    Dumper.add_representer(float, _represent_float)
    Dumper.add_representer(
        type(_Off), lambda dumper, _: dumper.represent_scalar("tag:yaml.org,2002:bool", "off")
    )
    return Dumper


def _represent_float(dumper: Any, value: float) -> Any:
    # YAML 1.1 wants a dot in a mantissa with an exponent; repr leaves it out ("1e-05").
    text = repr(value)
    mantissa, letter, exponent = text.partition("e")
    if letter and "." not in mantissa:
        text = f"{mantissa}.0e{exponent}"
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)
