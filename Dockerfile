ARG BASE_IMAGE=python:3.12-slim-bookworm

FROM ${BASE_IMAGE} AS build
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
COPY requirements.txt /build/
# A layer of its own: it is built again only when a requirement changes.
RUN pip install --no-cache-dir --require-hashes -r /build/requirements.txt
COPY job /build/job
WORKDIR /build
# The default backbone, made from its weights once, here, and not in every pod.
RUN python -m job backbone build builtin:efficientnet-lite0 /opt/backbones/efficientnet-lite0

FROM ${BASE_IMAGE}
# Numeric, so that Kubernetes can check runAsNonRoot; it needs no entry in /etc/passwd.
RUN install -d -o 65532 -g 65532 /work
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/backbones /opt/backbones
COPY entrypoint.sh /app/
COPY job /app/job
# PYTHONSAFEPATH: a folder named `job` in the current directory must not stand in for ours.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/work \
    TFHUB_CACHE_DIR=/work/tfhub
WORKDIR /work
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
