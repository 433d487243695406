"""The dashboard's files and its stream, on the admin listener.

The page itself holds no data and no secrets, so it is given to whoever reaches the listener; what
it then asks for is under the same rules as everything else, with the token that the operator types
into it. It is the page that is the danger: what it shows comes from requests, so it may run no
script but ours, load nothing from elsewhere, and make no HTML of text.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

if TYPE_CHECKING:
    from gateway.dashboard_feed import Feed
    from gateway.server import Server

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
FILES = {
    "/": ("index.html", "text/html"),
    "/dashboard/app.js": ("app.js", "text/javascript"),
    "/dashboard/view.js": ("view.js", "text/javascript"),
    "/dashboard/charts.js": ("charts.js", "text/javascript"),
    "/dashboard/style.css": ("style.css", "text/css"),
    "/dashboard/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""Path -> (file in ``gateway/dashboard``, media type)."""


@cache
def _read(name: str) -> bytes:
    return (files("gateway") / "dashboard" / name).read_bytes()


def wants_page(request: web.Request) -> bool:
    """A browser asks for HTML; everybody else gets the list of places."""
    return "text/html" in request.headers.get("Accept", "")


async def file(request: web.Request) -> web.Response:
    name, kind = FILES[request.path]
    response = web.Response(body=_read(name), content_type=kind, charset="utf-8")
    response.headers["Content-Security-Policy"] = POLICY
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Cross-Origin-Opener-Policy"] = "same-origin"
    response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
    response.headers["Vary"] = "Accept"
    return response


class Dashboard:
    """What the page asks for."""

    def __init__(self, server: Server) -> None:
        self._server = server

    @property
    def _feed(self) -> Feed:
        feed = self._server.feed
        assert feed is not None, "an admin listener has a feed"
        return feed

    def add_to(self, app: web.Application) -> None:
        for path in FILES:
            if path != "/":
                app.router.add_get(path, file)
        app.router.add_get("/dashboard.json", self._whole)
        app.router.add_get("/events", self._events, allow_head=False)
        app.router.add_get("/explain", self._explain)
        app.on_shutdown.append(self._close)

    async def _close(self, app: web.Application) -> None:
        self._feed.close()

    async def _whole(self, request: web.Request) -> web.Response:
        body = msgspec.json.encode(self._feed.whole())
        return web.Response(body=body, content_type="application/json")

    async def _explain(self, request: web.Request) -> web.Response:
        wanted = request.query.get("request_id", "")
        if not wanted:
            raise web.HTTPBadRequest(
                reason="ask with ?request_id=ID, see the answer's x-request-id"
            )
        recorder = self._server.telemetry.recorder
        found = recorder.explain(wanted)
        if not found:
            raise web.HTTPNotFound(
                reason="not kept: only exchanges out of the usual are, and only the latest"
            )
        body = msgspec.json.format(msgspec.json.encode({"exchanges": found}), indent=2) + b"\n"
        return web.Response(body=body, content_type="application/json")

    async def _events(self, request: web.Request) -> web.StreamResponse:
        transport = request.transport
        assert transport is not None
        subscriber = self._feed.subscribe(transport.abort)
        if subscriber is None:
            raise web.HTTPServiceUnavailable(reason="too many look already")
        response = web.StreamResponse()
        response.content_type = "text/event-stream"
        response.charset = "utf-8"
        response.headers["Cache-Control"] = "no-store"
        response.headers["X-Content-Type-Options"] = "nosniff"
        try:
            await response.prepare(request)
            while (message := await subscriber.messages.get()) is not None:
                await response.write(message)
        except ConnectionError:
            pass  # the page was closed, or did not keep up
        finally:
            self._feed.unsubscribe(subscriber)
        return response
