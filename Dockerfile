# One stage builds, the other takes over the result and nothing else. Every package comes from a
# lock file and is checked against its hash: requirements-build.lock is what builds,
# requirements.lock is what runs. `make lock` renews both.
# At run time: a numeric user, no shell, no package manager needed, a read-only root file system:
#   docker run --read-only -p 8080:8080 -v $PWD/tailrace.yaml:/etc/tailrace/tailrace.yaml:ro tailrace
# The lock files hold for this Python. To pin the base too: --build-arg BASE=python@sha256:...
ARG BASE=python:3.12-slim

FROM ${BASE} AS builder
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
WORKDIR /build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
COPY requirements-build.lock requirements.lock ./
# Before the sources, so that a change of ours fetches nothing again. Whatever would need a compiler
# is an error; quantile-python is published as (plain Python) source only.
RUN python -m venv /opt/build \
 && /opt/build/bin/python -m pip install --require-hashes --no-deps --only-binary :all: \
      -r requirements-build.lock \
 && /opt/build/bin/python -m pip wheel --require-hashes --no-deps --no-build-isolation \
      --only-binary :all: --no-binary quantile-python --wheel-dir /wheels -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY gateway gateway
COPY filters filters
COPY gpu_batcher gpu_batcher
# The environment has the same path in both stages, so it moves as it is; it needs no pip. `pip
# check` fails where pyproject.toml asks for something that the lock file does not have.
RUN /opt/build/bin/python -m pip wheel --no-deps --no-build-isolation --no-index \
      --wheel-dir /wheels . \
 && python -m venv --without-pip /opt/tailrace \
 && /opt/build/bin/python -m pip --python /opt/tailrace/bin/python install \
      --no-index --no-deps --no-compile /wheels/*.whl \
 && /opt/build/bin/python -m pip --python /opt/tailrace/bin/python check \
 && /opt/tailrace/bin/python -m compileall -q /opt/tailrace/lib

FROM ${BASE}
LABEL org.opencontainers.image.title="tailrace" \
      org.opencontainers.image.description="Sidecar proxy and reliability gateway for AI model servers" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=builder /opt/tailrace /opt/tailrace
COPY configs/container.yaml /etc/tailrace/tailrace.yaml
# Byte code was written when the image was built; nothing is written any more.
ENV PATH=/opt/tailrace/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# Numeric, so that Kubernetes can see that it is not root (runAsNonRoot).
USER 65532:65532
WORKDIR /etc/tailrace
EXPOSE 8080 9902
STOPSIGNAL SIGTERM
# In the exec form, because there may be no shell. Alive, not ready: a draining gateway is healthy.
# A configuration of your own keeps `admin: {probes: "0.0.0.0:9902"}` for this.
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s --retries=3 \
    CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 9902, timeout=2); c.request('GET', '/livez'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["tailrace"]
CMD ["run", "/etc/tailrace/tailrace.yaml"]
