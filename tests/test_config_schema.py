"""The shipped JSON Schema: current, and of one mind with the loader where it can be."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
import yaml

from gateway.config import Cluster, Config, Health, Telemetry, Tracing, UpstreamTls
from gateway.config_source import load
from gateway.config_types import shape
from gateway.schema import json_schema

CONFIGS = Path(__file__).parent.parent / "configs"
REST = "\nclusters: {llm: {endpoints: http://a}}\nroutes: [{cluster: llm}]\n"


class EditorLoader(yaml.SafeLoader):
    """YAML 1.2 as editors read it: only true and false are booleans, so off is a word."""


EditorLoader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in pairs if not tag.endswith(":bool")]
    for letter, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
EditorLoader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("^(?:true|false)$"), list("tf")
)


def validator() -> Any:
    made = json_schema()
    jsonschema.Draft7Validator.check_schema(made)
    return jsonschema.Draft7Validator(made)


def accepts(text: str) -> bool:
    return bool(validator().is_valid(yaml.load(text, EditorLoader)))


def test_the_shipped_schema_is_current() -> None:
    assert json.loads((CONFIGS / "schema.json").read_text()) == json_schema()


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: str(file.name))
def test_the_shipped_files_are_valid(file: Path) -> None:
    text = file.read_text()
    assert text.startswith("# yaml-language-server: $schema=schema.json\n")
    validator().validate(yaml.load(text, EditorLoader))
    validator().validate(yaml.load(text.replace("#|", ""), EditorLoader))


@pytest.mark.parametrize(
    "text",
    [
        "listen: 127.0.0.1:80",
        "listen: [127.0.0.1:80, {address: 'unix:/x'}]",
        "admin: off",
        "admin: false",
        "drain: {grace: 0}",
        "drain: {grace: 1m30s}",
        "drain: {grace: '${GRACE:-1s}'}",
        "limits: {head_bytes: 65536, headers: '${N}'}",
        "limits: {body_bytes: 1.5MB}",
        "filters: {retry: off, budget: {ratio: 5%, hedges: 0.05}}",
        "filters: {retry: {on: 503}}",
        "filters: {rate_limit: {key: client, rate: 1.5/m, burst: 3}}",
        "filters: {rate_limit: {rate: '${RATE:-1/s}', burst: 3}}",
        "telemetry: {debug_headers: true}",
    ],
)
def test_accepts_what_people_write(text: str) -> None:
    assert accepts(text + REST)


@pytest.mark.parametrize(
    "text",
    [
        "zzz: 1",
        "listen: 8080",
        "drain: {grace: 10}",
        "drain: {grace: 10 s}",
        "limits: {head_bytes: 64k}",
        "limits: {headers: 0}",
        "limits: {headers: off}",
        "limits: off",
        "filters: {budget: {ratio: 5}}",
        "filters: {discovery: {}}",
        "filters: {rate_limit: {rate: 100}}",
        "filters: {rate_limit: {key: cookie}}",
        "filters: {retry: {idempotent: sometimes}}",
        "trust: {a: b}",
    ],
)
def test_refuses_mistakes(text: str) -> None:
    assert not accepts(text + REST)


def test_clusters_and_routes_are_required() -> None:
    assert not accepts("clusters: {llm: {endpoints: http://a}}")
    assert not accepts("routes: [{cluster: llm}]")


def fields(kind: Any, place: str = "") -> set[str]:
    found: set[str] = set()
    for option in shape(kind).options:
        if isinstance(option, msgspec.inspect.StructType):
            for each in option.fields if option.cls.__name__ != "Secret" else ():
                name = f"{place}.{each.name}"
                found |= {name} | fields(each.type, name)
        elif isinstance(option, msgspec.inspect.VarTupleType):
            found |= fields(option.item_type, place)
        elif isinstance(option, msgspec.inspect.DictType):
            found |= fields(option.value_type, f"{place}.*")
    return found


NAMED = (
    ".clusters",
    ".routes.headers",
    ".routes.request_headers.set",
    ".routes.batching.inputs",
    ".routes.batching.outputs",
)


def written(node: Any, place: str = "") -> set[str]:
    found: set[str] = set()
    if isinstance(node, list):
        return found.union(*(written(each, place) for each in node))
    if isinstance(node, dict):
        for key, value in node.items():
            named = place in NAMED
            name = f"{place}.*" if named else f"{place}.{key}"
            found |= {name} | written(value, name)
    return found


def test_the_reference_has_every_field() -> None:
    text = (CONFIGS / "reference.yaml").read_text().replace("#|", "")
    have = written(yaml.load(text, EditorLoader))
    # A route's filters have the same fields as the file's.
    wanted = {
        each
        for each in fields(msgspec.inspect.type_info(Config))
        if not each.startswith(".routes.filters.")
    }
    # Written in its short form.
    wanted.discard(".telemetry.metrics.buckets.*")
    assert wanted - have == set()


def test_the_reference_shows_defaults() -> None:
    shown = load(CONFIGS / "reference.yaml", {})
    default = Config(clusters={}, routes=())
    for section in ("listen", "admin", "trust", "limits", "timeouts", "drain", "filters"):
        assert getattr(shown, section) == getattr(default, section), section
    assert msgspec.structs.replace(shown.telemetry, tracing=None) == Telemetry()
    assert shown.telemetry.tracing == Tracing(otlp="http://127.0.0.1:4318")
    llm = shown.clusters["llm"]
    assert llm == Cluster(endpoints=llm.endpoints, health=Health())
    assert shown.clusters["secure"].tls == UpstreamTls(server_name="models.internal")
