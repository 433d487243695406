"""The admin listener's pages on aiohttp. The rules stand in ``admin_rules.py``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

from gateway import admin_dashboard, admin_views, exposition
from gateway.admin_rules import Asked, Listening, Refusal, judge
from gateway.collect import collect

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler, Middleware

    from gateway.endpoint import Endpoint
    from gateway.membership import Membership
    from gateway.server import Server

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
IDLE_S = 75.0
SHUTDOWN_S = 1.0
"""How long answers under way get at the end; only a waiting drain takes any time."""

log = logging.getLogger("tailrace")


class Pages:
    """Every page, for one running server."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._reloading = asyncio.Lock()

    def everything(self, at: Callable[[], Listening]) -> web.AppRunner:
        """All pages, under the rules for the listener that ``at`` tells of."""
        app = web.Application(middlewares=[self._guard(at)], client_max_size=64 * 1024)
        app.router.add_get("/", self._index)
        admin_dashboard.Dashboard(self._server).add_to(app)
        app.router.add_get("/config", self._config)
        app.router.add_get("/clusters", self._clusters)
        app.router.add_get("/filters", self._filters)
        # An address may be a path: unix sockets are named by theirs, percent-encoded or not.
        app.router.add_post("/clusters/{cluster}/endpoints/{endpoint:.+}/eject", self._eject)
        app.router.add_post("/clusters/{cluster}/endpoints/{endpoint:.+}/restore", self._restore)
        app.router.add_post("/drain", self._drain)
        app.router.add_post("/reload", self._reload)
        return self._runner(app)

    def probes(self) -> web.AppRunner:
        """What the kubelet and Prometheus need, and nothing else."""
        return self._runner(web.Application(middlewares=[self._guard(None)]))

    def _runner(self, app: web.Application) -> web.AppRunner:
        app.router.add_get("/livez", self._livez, allow_head=False)
        app.router.add_get("/readyz", self._readyz, allow_head=False)
        app.router.add_get("/metrics", self._metrics, allow_head=False)
        return web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            keepalive_timeout=IDLE_S,
            shutdown_timeout=SHUTDOWN_S,
        )

    def _guard(self, at: Callable[[], Listening] | None) -> Middleware:
        """Errors, the router's own too, are JSON; and nobody passes who may not."""

        @web.middleware
        async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
            refusal = None if at is None else judge(_asked(request), at(), self._token())
            if refusal is not None:
                response: web.StreamResponse = _refused(refusal)
            else:
                try:
                    response = await handler(request)
                except web.HTTPException as error:
                    response = _error(error.status, _code(error), error.reason)
                    if "Allow" in error.headers:
                        response.headers["Allow"] = error.headers["Allow"]
                except Exception:
                    log.exception("admin: %s failed", request.path)
                    response = _error(500, "internal", "see the gateway's log")
            if response.prepared:  # a stream that is over
                return response
            response.headers["Server"] = "tailrace"
            response.headers["Cache-Control"] = "no-store"
            response.headers["X-Content-Type-Options"] = "nosniff"
            return response

        return guard

    def _token(self) -> str | None:
        """The token in force: a reload may have changed it."""
        admin = self._server.config.admin
        return admin.token.value if admin is not None and admin.token is not None else None

    # -- pages -----------------------------------------------------------------------------------

    async def _index(self, request: web.Request) -> web.Response:
        if admin_dashboard.wants_page(request):
            return await admin_dashboard.file(request)
        return _json(admin_views.index())

    async def _livez(self, request: web.Request) -> web.Response:
        return _json({"live": True})

    async def _readyz(self, request: web.Request) -> web.Response:
        return _json(admin_views.readiness(self._server), 200 if self._server.ready else 503)

    async def _metrics(self, request: web.Request) -> web.Response:
        families = collect(self._server)
        text = await asyncio.to_thread(exposition.render, families)
        return web.Response(body=text, headers={"Content-Type": METRICS_TYPE})

    async def _config(self, request: web.Request) -> web.Response:
        return _json(admin_views.configuration(self._server))

    async def _clusters(self, request: web.Request) -> web.Response:
        return _json(admin_views.clusters(self._server))

    async def _filters(self, request: web.Request) -> web.Response:
        return _json(admin_views.filters(self._server))

    async def _eject(self, request: web.Request) -> web.Response:
        membership, endpoint = self._named(request)
        refusal = membership.cluster.eject(endpoint, "by an operator")
        if refusal:
            return _error(409, "not_ejected", refusal)
        return _json(admin_views.endpoint(endpoint, membership, self._server.clock.now()))

    async def _restore(self, request: web.Request) -> web.Response:
        membership, endpoint = self._named(request)
        membership.cluster.restore(endpoint)
        return _json(admin_views.endpoint(endpoint, membership, self._server.clock.now()))

    def _named(self, request: web.Request) -> tuple[Membership, Endpoint]:
        """What the path names. Raises HTTPNotFound."""
        membership = self._server.memberships.get(request.match_info["cluster"])
        if membership is None:
            raise web.HTTPNotFound(reason="there is no such cluster, see /clusters")
        endpoint = membership.cluster.endpoints.get(request.match_info["endpoint"])
        if endpoint is None:
            raise web.HTTPNotFound(reason="there is no such endpoint, see /clusters")
        return membership, endpoint

    async def _drain(self, request: web.Request) -> web.Response:
        draining = self._server.drain()
        if request.query.get("wait") != "true":
            return _json({"draining": True}, 202)
        # Whoever waits may leave; the drain goes on.
        whole = await asyncio.shield(draining)
        return _json({"drained": True, "cut_off": not whole})

    async def _reload(self, request: web.Request) -> web.Response:
        async with self._reloading:
            if await self._server.reload():
                return _json({"reloaded": True})
            return _error(409, "reload_failed", self._server.reload_error or "")


def _asked(request: web.Request) -> Asked:
    headers = request.headers
    return Asked(
        request.method,
        request.path,
        headers.get("Host"),
        headers.get("Origin"),
        headers.get("Authorization"),
    )


def _json(data: object, status: int = 200) -> web.Response:
    body = msgspec.json.format(msgspec.json.encode(data), indent=2) + b"\n"
    return web.Response(body=body, status=status, content_type="application/json")


def _error(status: int, code: str, message: str) -> web.Response:
    return _json({"error": {"code": code, "message": message}}, status)


def _refused(refusal: Refusal) -> web.Response:
    response = _error(*refusal)
    if refusal.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def _code(error: web.HTTPException) -> str:
    return {404: "not_found", 405: "method_not_allowed", 413: "too_large"}.get(
        error.status, "error"
    )
