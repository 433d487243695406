"""The command ``tailrace``: run, check, config, schema, explain, top, demo.

Exit codes: 0 ok; 1 could not start (restarting blindly will not help); 2 wrong usage or
configuration; 3 a drain was forced. Each command imports what it needs when it is called: a
sidecar's start is on the way of its pod, and ``run`` with flags never sees a YAML parser.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from gateway.config import Config
    from gateway.config_problem import Problem

WRONG = 2
_FILE = click.Path(path_type=Path)


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        number = version("tailrace")
    except PackageNotFoundError:
        number = "(run from a source tree, not installed)"
    click.echo(f"tailrace {number}")
    ctx.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, callback=_version, expose_value=False, is_eager=True)
def main() -> None:
    """Sidecar proxy and reliability gateway for AI model servers.

    Exit codes: 0 ok, 1 could not start, 2 wrong usage or configuration, 3 a drain was forced.
    """


@main.command()
@click.argument("config", type=_FILE, required=False)
@click.option("--listen", multiple=True, metavar="ADDRESS", help="Default: 127.0.0.1:8080.")
@click.option("--upstream", multiple=True, metavar="URL", help="A model server; may be repeated.")
@click.option("--admin", metavar="ADDRESS", help="Default: 127.0.0.1:9901; off for none.")
def run(
    config: Path | None, listen: tuple[str, ...], upstream: tuple[str, ...], admin: str | None
) -> None:
    """Run the gateway from the file CONFIG, or without a file from flags.

    \b
    tailrace run tailrace.yaml
    tailrace run --upstream http://127.0.0.1:8000

    SIGTERM and SIGINT drain, a second one stops now; SIGHUP reloads CONFIG, and so does a change
    of the file.
    """
    if config is not None and (listen or upstream or admin is not None):
        raise click.UsageError("CONFIG and flags: which? A file says everything by itself.")
    if config is None and not upstream:
        raise click.UsageError("name a CONFIG file, or an --upstream such as http://127.0.0.1:8000")
    if config is not None:
        loaded, warnings = _load(config)
        for warning in warnings:
            click.echo(warning, err=True)
    else:
        loaded = _from_flags(listen, upstream, admin)
    from gateway.server import run as serve

    sys.exit(serve(loaded, config))


@main.command()
@click.argument("config", type=_FILE)
@click.option("--json", "as_json", is_flag=True, help="A list of problems; [] when all is well.")
def check(config: Path, as_json: bool) -> None:
    """Show everything that is wrong with the file CONFIG, and start nothing.

    Reads the certificates and secrets that the file names. Warnings do not change the exit code.
    """
    from gateway.config_problem import ConfigErrors
    from gateway.config_source import load_with_warnings

    summary = ""
    failed = False
    try:
        loaded, problems = load_with_warnings(config)
        summary = "ok: " + _counts(loaded)
    except ConfigErrors as errors:
        problems = errors.problems
        failed = True
        summary = _plural(len(problems), "error")
    if as_json:
        import msgspec

        click.echo(msgspec.json.format(msgspec.json.encode(problems)).decode())
    else:
        for problem in problems:
            click.echo(problem)
        click.echo(summary)
    sys.exit(WRONG if failed else 0)


@main.command("config")
@click.argument("config", type=_FILE)
def show_config(config: Path) -> None:
    """Print the effective configuration: CONFIG with every default filled in, secrets hidden."""
    from gateway.config_source import effective

    click.echo(effective(_load(config)[0]), nl=False)


@main.command()
def schema() -> None:
    """Print the JSON Schema of the configuration file, for editors.

    The first line of a file can name it: # yaml-language-server: $schema=schema.json
    """
    import json

    from gateway.schema import json_schema

    click.echo(json.dumps(json_schema(), indent=2))


@main.command()
@click.argument("config", type=_FILE)
@click.option("--method", default="GET", show_default=True)
@click.option("--path", default="/", show_default=True, help="With a query, if there is one.")
@click.option(
    "--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="May be repeated."
)
@click.option("--client", default="127.0.0.1", show_default=True, help="The client's address.")
@click.option("--body-bytes", default=0, show_default=True, type=click.IntRange(min=0))
@click.option("--json", "as_json", is_flag=True)
def explain(
    config: Path,
    method: str,
    path: str,
    headers: tuple[str, ...],
    client: str,
    body_bytes: int,
    as_json: bool,
) -> None:
    """Say how a request would be routed and filtered by the file CONFIG, without sending it.

    \b
    tailrace explain tailrace.yaml --method POST --path /v1/chat/completions \\
        --header 'x-request-priority: sheddable' --body-bytes 2000

    Values of headers are not printed. What became of a request that was sent: /explain on the
    admin listener. The exit code is 0 whether or not it would be refused.
    """
    from gateway.explain_request import explain as decide
    from gateway.explain_request import head, rendered

    loaded = _load(config)[0]
    try:
        told = decide(loaded, head(method, path, headers), client, body_bytes)
    except ValueError as error:
        raise click.UsageError(f"--client: {error}") from None
    if as_json:
        import msgspec

        rows = [row._asdict() for row in told.rows]
        data = {**told._asdict(), "rows": rows}
        click.echo(msgspec.json.format(msgspec.json.encode(data)).decode())
    else:
        click.echo(rendered(told))


@main.command()
@click.argument("admin", metavar="[ADMIN-URL]", default="http://127.0.0.1:9901")
@click.option("--token", metavar="FILE", type=_FILE, help="Holds admin.token, if it asks for one.")
@click.option("--once", is_flag=True, help="Print it once, and end.")
def top(admin: str, token: Path | None, once: bool) -> None:
    """Watch a running gateway in this terminal: what its dashboard shows, as text.

    ADMIN-URL is where its admin listener is: http://127.0.0.1:9901 or unix:PATH. Ctrl-C ends it.
    """
    from gateway.top import run as watch

    sys.exit(watch(admin, token, once))


@main.command()
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), help="Then end by itself.")
def demo(seconds: float | None) -> None:
    """Run model servers with faults, a gateway and a load, live in this terminal."""
    from gateway.demo import run as show

    sys.exit(show(seconds))


def _load(path: Path) -> tuple[Config, list[Problem]]:
    from gateway.config_problem import ConfigErrors
    from gateway.config_source import load_with_warnings

    try:
        return load_with_warnings(path)
    except ConfigErrors as errors:
        click.echo(errors, err=True)
        sys.exit(WRONG)


def _from_flags(listen: tuple[str, ...], upstream: tuple[str, ...], admin: str | None) -> Config:
    from gateway.config_problem import ConfigErrors
    from gateway.config_source import from_flags

    try:
        return from_flags(listen, upstream, admin)
    except ConfigErrors as errors:
        click.echo(errors, err=True)
        sys.exit(WRONG)


def _counts(config: Config) -> str:
    return ", ".join(
        (
            _plural(len(config.listen), "listener"),
            _plural(len(config.clusters), "cluster"),
            _plural(len(config.routes), "route"),
        )
    )


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")
