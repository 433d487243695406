"""The image, without a container engine: the Dockerfile is read, what it would run is run here in
clean environments, and what it would start is started. The lock files agree with pyproject.toml."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.harness import eventually
from tests.ops import tools
from tests.ops.dockerfile import stages
from tests.ops.test_reload_configmap import free_port
from tests.tidy import ROOT
from tests.wire.origin import Connection, Origin, Request

BUILDER, FINAL = stages(ROOT / "Dockerfile")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = ("requirements.lock", "requirements-build.lock")
PINNED = re.compile(r"^([A-Za-z0-9_.-]+)==(\S+)(?: ; (.+?))? \\$", re.M)
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
"""The oldest that is supported, and what there is since."""
BLOCK = re.compile(r"^[^ #].*(?:\n +.*)*", re.M)


def lines(name: str) -> list[tuple[str, str, str]]:
    """What a lock pins: package, version, and the marker that says where ("": everywhere)."""
    found: list[tuple[str, str, str]] = PINNED.findall((ROOT / name).read_text())
    return found


def pinned(name: str, python: str = "") -> dict[str, str]:
    """The versions that one Python gets ("": the one that runs); each package once."""
    where = {"python_version": python, "python_full_version": f"{python}.0"} if python else {}
    found: dict[str, str] = {}
    for package, version, marker in lines(name):
        if not marker or Marker(marker).evaluate(where):
            assert canonicalize_name(package) not in found, f"two of {package} for {python}"
            found[canonicalize_name(package)] = version
    return found


# -- the files ----------------------------------------------------------------------------------


def test_hadolint_has_nothing_to_say() -> None:
    tools.output(tools.program("hadolint"), ROOT / "Dockerfile")


def test_both_stages_have_a_python_that_the_lock_is_for() -> None:
    """It is for the oldest that is supported and whatever is newer; the image has one of them."""
    assert BUILDER.base == FINAL.base
    recipe = (ROOT / "Makefile").read_text()
    oldest = re.search(r"--universal --python-version (\S+)", recipe)
    assert oldest
    assert PROJECT["project"]["requires-python"] == f">={oldest[1]}"
    assert PYTHONS[0] == oldest[1]
    assert FINAL.base in {f"python:{version}-slim" for version in PYTHONS}


def test_it_runs_as_nobody_in_particular() -> None:
    user, group = FINAL.last("USER").split(":")
    assert int(user) > 0
    assert int(group) > 0
    after = [word for word, _ in FINAL.steps[FINAL.steps.index(("USER", f"{user}:{group}")) :]]
    assert not {"RUN", "COPY", "ADD"} & set(after)
    assert "RUN" not in [word for word, _ in FINAL.steps], "the final stage only takes over"


def test_it_starts_what_the_manifests_start() -> None:
    assert json.loads(FINAL.last("ENTRYPOINT")) == ["tailrace"]
    assert json.loads(FINAL.last("CMD")) == ["run", "/etc/tailrace/tailrace.yaml"]
    assert FINAL.last("STOPSIGNAL") == "SIGTERM"
    assert FINAL.last("WORKDIR") == "/etc/tailrace"
    ports = re.findall(r"0\.0\.0\.0:(\d+)", (ROOT / "configs/container.yaml").read_text())
    assert FINAL.last("EXPOSE").split() == ports


def test_what_is_copied_reaches_the_build() -> None:
    """.dockerignore keeps out everything but what COPY names."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    let_in = {line[1:] for line in lines if line.startswith("!")}
    copies = [each.split() for stage in (BUILDER, FINAL) for each in stage.all("COPY")]
    named = {name for names in copies if "--from=builder" not in names for name in names[:-1]}
    assert named == let_in
    assert all((ROOT / name).exists() for name in named)
    assert "*" in lines


def test_nothing_is_installed_that_is_not_pinned() -> None:
    """Every pip command either checks hashes or has no package index to ask."""
    commands = re.findall(r"-m pip (?:--python \S+ )?(?:install|wheel) [^&]+", _run_lines())
    assert len(commands) == 4
    for each in commands:
        assert "--require-hashes" in each or "--no-index" in each, each
        assert "--no-deps" in each, each
        assert " wheel " not in each or "--no-build-isolation" in each, each


@pytest.mark.parametrize("name", LOCKS)
def test_every_line_of_a_lock_has_a_hash_and_no_address(name: str) -> None:
    text = (ROOT / name).read_text()
    assert "://" not in text
    assert not re.search(r"^-", text, re.M), "an option: an index or a folder of one machine"
    blocks = BLOCK.findall(re.sub(r"^#.*\n", "", text, flags=re.M))
    assert len(blocks) == len(lines(name)) > 0
    assert [each for each in blocks if "--hash=sha256:" not in each] == []


def test_the_lock_is_of_this_pyproject() -> None:
    """What pyproject.toml asks for is pinned within its bounds, and nothing is left over from
    before: all else is there for something else."""
    disagreement(
        PROJECT["project"]["dependencies"], "requirements.lock", "tailrace (pyproject.toml)"
    )


def test_the_build_lock_is_of_its_list() -> None:
    wanted = re.findall(r"^[^#\s].*", (ROOT / "requirements-build.in").read_text(), re.M)
    disagreement(wanted, "requirements-build.lock", "-r requirements-build.in")
    assert set(PROJECT["build-system"]["requires"]) <= set(wanted)


def disagreement(wanted: list[str], lock: str, asker: str) -> None:
    requirements = [Requirement(each) for each in wanted]
    for python in PYTHONS:
        found = pinned(lock, python)
        for each in requirements:
            version = found.get(canonicalize_name(each.name), "nothing")
            assert each.specifier.contains(version, prereleases=True), (
                f"make lock: {each}, {version} for Python {python}"
            )
    text = (ROOT / lock).read_text()
    asked = {
        canonicalize_name(block.partition("==")[0])
        for block in BLOCK.findall(text)
        if re.search(rf"^ +#(?: via)? +{re.escape(asker)}$", block, re.M)
    }
    assert asked == {canonicalize_name(each.name) for each in requirements}, "make lock"


# -- what it does -------------------------------------------------------------------------------


def _run_lines() -> str:
    return " && ".join(BUILDER.all("RUN"))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with /opt/tailrace and /etc/tailrace as the image has them, made by the commands
    of the Dockerfile with its paths moved below the folder."""
    folder = tmp_path_factory.mktemp("image")
    build = folder / "build"
    build.mkdir()
    for names in (each.split() for each in BUILDER.all("COPY")):
        for name in names[:-1]:
            _copy(ROOT / name, build / name)
    moved = re.sub(r"(?<![\w./])/(opt|wheels)\b", rf"{folder}/\1", _run_lines())
    moved = re.sub(r"(?<![\w./])python -m venv", f"{sys.executable} -m venv", moved)
    (folder / "opt").mkdir()
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    shell = json.loads(BUILDER.last("SHELL"))
    run = subprocess.run(
        [*shell, moved], cwd=build, env=clean, capture_output=True, text=True, check=False
    )
    told = run.stdout[-4000:] + run.stderr[-4000:]
    if "NewConnectionError" in told or "name resolution" in told:
        tools.missing("what only a network can bring")
    assert run.returncode == 0, told
    return folder


def _copy(source: Path, target: Path) -> None:
    ignore = shutil.ignore_patterns("__pycache__", ".mypy_cache")
    if source.is_dir():
        shutil.copytree(source, target, ignore=ignore)
    else:
        shutil.copy(source, target)


def _written(folder: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.timeout(600)
async def test_what_the_dockerfile_makes_serves_and_drains(image: Path, tmp_path: Path) -> None:
    """Its entry point with its configuration in front of a server: healthy by its own HEALTHCHECK,
    serving, ended by its STOPSIGNAL, and it has written nothing."""
    proxy, probes, admin = free_port(), free_port(), free_port()
    text = (ROOT / "configs" / "container.yaml").read_text()
    for old, new in ((8080, proxy), (9902, probes), (9901, admin)):
        text = text.replace(f":{old}", f":{new}").replace(f"0.0.0.0:{new}", f"127.0.0.1:{new}")
    file = tmp_path / "tailrace.yaml"
    file.write_text(text + "\ndrain: {grace: 0s, timeout: 5s}\n")
    (binary,) = json.loads(FINAL.last("ENTRYPOINT"))
    command, path = json.loads(FINAL.last("CMD"))
    assert Path(path).name == file.name
    bin_folder = image / "opt" / "tailrace" / "bin"
    before = _written(image)

    async def model(connection: Connection, request: Request) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with Origin(model) as origin:
        environment = {
            **dict(each.split("=", 1) for each in FINAL.last("ENV").split()),
            "PATH": str(bin_folder),
            "TAILRACE_UPSTREAM": origin.url,
            # What a cluster sets for everybody must not send the image's own check elsewhere.
            "http_proxy": "http://127.0.0.1:1",
        }
        running = await asyncio.create_subprocess_exec(
            str(bin_folder / binary), command, str(file), cwd=tmp_path, env=environment,
            stdout=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            await eventually(lambda: _healthy(bin_folder, probes, environment), 60)
            assert await _status(proxy) == 200
            running.send_signal(getattr(signal, FINAL.last("STOPSIGNAL")))
            assert await asyncio.wait_for(running.wait(), 30) == 0
            assert not _healthy(bin_folder, probes, environment)
        finally:
            if running.returncode is None:
                running.kill()
    assert _written(image) == before
    assert _written(tmp_path).keys() == {str(file)}


def _healthy(bin_folder: Path, port: int, environment: dict[str, str]) -> bool:
    """Run the image's own health check, at this port."""
    check = FINAL.last("HEALTHCHECK").partition(" CMD ")[2].replace("9902", str(port))
    program, *arguments = json.loads(check)
    run = subprocess.run(
        [bin_folder / program, *arguments], env=environment, capture_output=True, check=False
    )
    return run.returncode == 0


async def _status(port: int) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return int(answer.split()[1])


@pytest.mark.timeout(600)
def test_the_environment_is_what_the_lock_says(image: Path) -> None:
    """No package more, none less, and no installer in it."""
    program = (
        "import importlib.metadata as m;"
        "print(*{d.name + '==' + d.version for d in m.distributions()})"
    )
    out = tools.output(image / "opt" / "tailrace" / "bin" / "python", "-I", "-c", program)
    found = dict(each.split("==") for each in out.split())
    installed: dict[str, str] = {
        canonicalize_name(name): version for name, version in found.items()
    }
    assert installed.pop("tailrace") == PROJECT["project"]["version"]
    assert installed == pinned("requirements.lock")
