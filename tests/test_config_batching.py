"""What the fields of ``routes[].batching`` say together: each contradiction is found at its place.

In the tables ``§`` stands before the place that the problem must point at.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.config import Config
from gateway.config_problem import ConfigErrors, Problem
from gateway.config_source import effective, load, load_with_warnings

CLUSTERS = "clusters: {llm: {endpoints: http://a}, two: {endpoints: [http://b, http://c]}}\n"
V2 = "routes: [{cluster: llm, batching: {format: kserve_v2, %s}}]"
V1 = "routes: [{cluster: llm, batching: {format: kserve_v1, %s}}]"
TWO = "routes: [{cluster: two, batching: {format: kserve_v2, %s}}]"
NONE = "routes: [§{batching: {format: openai_embeddings, %s}}]"

ERRORS: dict[str, tuple[str, str]] = {
    "no format": ("routes: [{cluster: llm, batching: §{}}]", "missing key 'format'"),
    "format": (
        "routes: [{cluster: llm, batching: {format: §kserve}}]",
        "did you mean 'kserve_v",
    ),
    "key": (V2 % "§max_row: 1", "did you mean 'max_rows'"),
    "rows": (V2 % "max_rows: §0", "at least 1, is 0"),
    "delay": (V2 % "max_delay: §11s", "at most 10s"),
    "delay without a unit": (V2 % "max_delay: §5", "5ms"),
    "target": (V2 % "target: §0s", "at least 1ms"),
    "buffer": (V2 % "buffer: §1MiB", "buffer 1MiB cannot hold max_bytes 8MiB"),
    "max_bytes": (V2 % "max_bytes: 32MiB, buffer: §16MiB", "16MiB cannot hold max_bytes 32MiB"),
    "max_bytes alone": (
        "routes: [{cluster: llm, batching: §{format: kserve_v2, max_bytes: 32MiB}}]",
        "16MiB cannot hold max_bytes 32MiB",
    ),
    "max_request": (V2 % "max_request: §2MiB", "only 1MiB of a body are kept"),
    "replay_bytes": (
        "limits: {replay_bytes: 64KiB}\nroutes: [{cluster: llm, batching: §{format: kserve_v2}}]",
        "only 64KiB of a body are kept",
    ),
    "preferred": (V2 % "preferred: §[8, 128]", "no batch has more than max_rows 64 rows"),
    "preferred order": (V2 % "preferred: §[8, 4]", "expected growing numbers"),
    "preferred twice": (V2 % "preferred: §[8, 8]", "expected growing numbers"),
    "header": (V2 % "headers: [§x y]", "not a header's name"),
    "own header": (V2 % "headers: §[Content-Type]", "'content-type' is the batch's own"),
    "trace": (V2 % "headers: §[x-a, traceparent]", "'traceparent' is the batch's own"),
    "pack": (V2 % "pack: §pads", "did you mean 'pad'"),
    "no buckets": (
        "routes: [{cluster: llm, batching: §{format: kserve_v2, pack: bucket}}]",
        "buckets: expected exactly in mode bucket",
    ),
    "bucket order": (V2 % "pack: bucket, buckets: §[8, 4]", "expected ascending numbers"),
    "axes": (V2 % "inputs: §{x: {axes: [2, 1]}}", "expected ascending numbers from 1"),
    "batch axis": (V2 % "inputs: {x: {axes: [§0]}}", "at least 1, is 0"),
    "ragged axes": (V2 % "pack: ragged, inputs: §{x: {axes: [2]}}", "joined along axis 1"),
    "ragged mask": (V2 % "pack: ragged, inputs: §{x: {mask: m}}", "a mask belongs to padding"),
    "offsets": (V2 % "inputs: §{x: {offsets: o}}", "offsets belong to mode ragged"),
    "mask of nothing": (V2 % "inputs: §{x: {axes: [], mask: m}}", "an extra input is made from"),
    "made and given": (V2 % "inputs: §{x: {mask: y}, y: {}}", "both an input with a rule"),
    "mask and lengths": (V2 % "inputs: §{x: {mask: m, lengths: m}}", "have to be two of mask"),
    "lengths": (
        V2 % "inputs: §{x: {lengths: n, extra_datatype: FP32}}",
        "datatype 'FP32', expected INT",
    ),
    "output of nothing": (V2 % "outputs: §{y: x}", "there is no input 'x' under inputs"),
    "inputs without tensors": (V1 % "inputs: §{x: {}}", "kserve_v1 has no tensors to pack"),
    "buckets without tensors": (V1 % "buckets: §[8]", "kserve_v1 has no tensors to pack"),
    "runner": (V2 % "runner: §triton", "expected"),
    "python without a function": (V2 % "runner: §python", "needs a function"),
    "function": (V2 % "runner: python, function: §model.embed", "MODULE:FUNCTION"),
    "input without a name": (V2 % "inputs: {§'': {}}", "name"),
    "CUDA on the host": (V2 % "runner: §cuda_shared_memory", "needs device: cuda"),
    "shared without tensors": (V1 % "runner: §system_shared_memory", "is for tensors"),
    "shared without binary": (V2 % "runner: §system_shared_memory, binary: false", "binary: true"),
    "shared with several": (TWO % "runner: §system_shared_memory", "the cluster has several"),
    "no cluster": (NONE % "max_rows: 8", "missing key 'cluster'"),
    "no cluster but a function": (NONE % "runner: auto, function: 'm:f'", "missing key 'cluster'"),
    "wrong cluster": (
        "routes: [{cluster: §lm, batching: {format: kserve_v2}}]",
        "there is no cluster 'lm'",
    ),
    "share": (V2 % "bisection: {share: §200%}", "100%"),
    "burst": (V2 % "bisection: {burst: §-1}", "at least 0, is -1"),
}

WARNINGS: dict[str, tuple[str, str]] = {
    "delay": (V2 % "max_delay: §1s", "longer than the target"),
    "function": (V2 % "function: §'m:f'", "only runner: python calls a function"),
    "device": (V2 % "device: §cuda", "runner: http packs in host memory"),
    "auto with several": (TWO % "runner: §auto", "several .*batches go by http"),
    "buckets": (V2 % "buckets: §[8]", "with pack: bucket only"),
    "hedge": (
        (
            "routes: [{cluster: llm, filters: {hedge: {}}, batching: {format: kserve_v2,"
            " runner: §system_shared_memory}}]"
        ),
        "neither hedged nor retried",
    ),
}

GOOD = {
    "least": V2 % "",
    "all in one": V2
    % (
        "max_rows: 8, max_bytes: 64KiB, max_items: 4, max_tokens: 512, max_request: 16KiB,"
        " max_delay: 0s, target: 1s, max_in_flight: 1, queue: 10, preferred: [4, 8],"
        " headers: [X-Team], pack: bucket, buckets: [16, 32], inputs: {x: {mask: m}},"
        " outputs: {y: x}, runner: system_shared_memory, buffer: 64KiB, quarantine: refuse,"
        " bisection: {share: 0%, burst: 0}"
    ),
    "python without a cluster": (
        "routes: [{cluster: llm, path: /x},"
        " {batching: {format: openai_embeddings, runner: python, function: 'm.n:f'}}]"
    ),
    "off": "routes: [{cluster: llm, batching: off}]",
}


def marked(text: str) -> tuple[str, int, int]:
    before, _, after = (CLUSTERS + text).partition("§")
    return before + after, before.count("\n") + 1, len(before) - before.rfind("\n")


def check(found: list[Problem], pattern: str, place: tuple[int, int]) -> None:
    matching = [each for each in found if re.search(pattern, f"{each.message} ({each.hint})")]
    assert matching, [str(each) for each in found]
    assert (matching[0].line, matching[0].column) == place, str(matching[0])


@pytest.mark.parametrize("case", ERRORS)
def test_points_at_the_error(case: str, tmp_path: Path) -> None:
    text, line, column = marked(ERRORS[case][0])
    file = tmp_path / "tailrace.yaml"
    file.write_text(text)
    with pytest.raises(ConfigErrors) as raised:
        load(file, {})
    problems = raised.value.problems
    check(problems, ERRORS[case][1], (line, column))
    assert len(problems) == 1, [str(each) for each in problems]


def about_batching(found: list[Problem]) -> list[Problem]:
    return [each for each in found if "no route leads" not in each.message]


@pytest.mark.parametrize("case", WARNINGS)
def test_points_at_what_has_no_effect(case: str, tmp_path: Path) -> None:
    text, line, column = marked(WARNINGS[case][0])
    file = tmp_path / "tailrace.yaml"
    file.write_text(text)
    found = about_batching(load_with_warnings(file, {})[1])
    check(found, WARNINGS[case][1], (line, column))


@pytest.mark.parametrize("case", GOOD)
def test_nothing_to_say(case: str, tmp_path: Path) -> None:
    assert loaded(GOOD[case], tmp_path).routes


def loaded(text: str, tmp_path: Path) -> Config:
    file = tmp_path / "tailrace.yaml"
    file.write_text(CLUSTERS + text)
    config, warnings = load_with_warnings(file, {})
    assert not about_batching(warnings)
    return config


def test_names_of_headers_are_in_lower_case(tmp_path: Path) -> None:
    batching = loaded(V2 % "headers: [X-Team]", tmp_path).routes[0].batching
    assert batching is not None
    assert batching.headers == ("x-team",)


def test_what_is_shown_can_be_loaded(tmp_path: Path) -> None:
    config = loaded(GOOD["all in one"], tmp_path)
    again = tmp_path / "again.yaml"
    again.write_text(effective(config))
    assert load(again, {}) == config


LOADED = """
import sys
from pathlib import Path
from gateway.config_source import load
load(Path(sys.argv[1]), {})
loaded = [name for name in sys.modules if name.split(".")[0] in ("gpu_batcher", "numpy")]
assert bool(loaded) == (sys.argv[2] == "True"), loaded
"""


@pytest.mark.parametrize("batching", [True, False])
def test_the_batcher_is_loaded_where_it_is_used(batching: bool, tmp_path: Path) -> None:
    file = tmp_path / "tailrace.yaml"
    file.write_text(CLUSTERS + GOOD["least" if batching else "off"])
    command = [sys.executable, "-c", LOADED, str(file), str(batching)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
