# The wheel is built and installed in one stage; the other takes over the result and nothing else.
# At run time: a numeric user, no shell, no package manager needed, a read-only root file system:
#   docker run --read-only -p 8080:8080 -v $PWD/tailrace.yaml:/etc/tailrace/tailrace.yaml:ro tailrace
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS builder
WORKDIR /build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
COPY pyproject.toml README.md LICENSE ./
COPY gateway gateway
COPY filters filters
COPY gpu_batcher gpu_batcher
# The environment has the same path in both stages, so it moves as it is; it needs no pip. Whatever
# would need a compiler is an error; quantile-python is published as (plain Python) source only.
RUN python -m pip wheel --no-deps --wheel-dir /wheels . \
 && python -m venv --without-pip /opt/tailrace \
 && python -m pip --python /opt/tailrace/bin/python install \
      --only-binary :all: --no-binary quantile-python /wheels/*.whl \
 && /opt/tailrace/bin/python -m compileall -q /opt/tailrace

FROM python:${PYTHON}-slim
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
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:9902/livez', timeout=2)"]
ENTRYPOINT ["tailrace"]
CMD ["run", "/etc/tailrace/tailrace.yaml"]
