# docker build .                                  for NVIDIA GPUs; it runs on CPUs as well
# docker build --build-arg VARIANT=cpu .          without the code for GPUs
# docker build --build-arg BACKBONES="https://… https://…" .     with these TF Hub modules inside

# The digest is that of the multi-platform index, so one line serves every architecture. To renew
# it: `docker buildx imagetools inspect python:3.12-slim-bookworm` prints the one of today.
ARG BASE_IMAGE=python:3.12-slim-bookworm@sha256:782412e85d0f0984994c290652577d4018aff08145c85b262bb63dc0c7522254

# Nothing but the packages: the image goes on from here, so they are stored and pushed once.
FROM ${BASE_IMAGE} AS packages
ARG VARIANT=gpu
COPY requirements-${VARIANT}.txt /app/requirements.txt
# Made again only when a requirement changes. The lock names every package: what TensorFlow's
# companions ask for besides is meant to stay out of the cpu variant. The headers are for those who
# compile operations of their own.
RUN python3 -m venv --without-pip /opt/venv \
    && python3 -m pip --python /opt/venv/bin/python install --no-cache-dir \
       --no-deps --require-hashes -r /app/requirements.txt \
    && rm -r /opt/venv/lib/python3*/site-packages/tensorflow/include

FROM packages AS sbom
COPY requirements-sbom.txt /build/
RUN python3 -m venv /opt/sbom \
    && /opt/sbom/bin/pip install --no-cache-dir --require-hashes -r /build/requirements-sbom.txt
# The tool knows Python; the packages of Debian are those that dpkg lists.
WORKDIR /usr/share/sbom
RUN /opt/sbom/bin/cyclonedx-py environment --output-reproducible --output-format JSON \
       --output-file python.cdx.json /opt/venv \
    && dpkg-query --show --showformat '${Package} ${Version} ${Architecture}\n' > /build/packages \
    && awk 'BEGIN { printf "{\"bomFormat\":\"CycloneDX\",\"specVersion\":\"1.6\",\"version\":1,\"components\":[" } \
            { coded = $2; gsub(/\+/, "%2B", coded); \
              printf "%s\n{\"type\":\"library\",\"name\":\"%s\",\"version\":\"%s\",\"purl\":\"pkg:deb/debian/%s@%s?arch=%s\"}", \
                     (NR > 1 ? "," : ""), $1, $2, $1, coded, $3 } \
            END { print "]}" }' /build/packages > debian.cdx.json \
    && /opt/sbom/bin/python -c 'import pathlib, sys; \
       from cyclonedx.schema import SchemaVersion; \
       from cyclonedx.validation.json import JsonStrictValidator as Validator; \
       bill = pathlib.Path("debian.cdx.json").read_text(); \
       sys.exit(Validator(SchemaVersion.V1_6).validate_str(bill))'

FROM packages AS job
COPY job /app/job
# Compiled now: the file system is read-only later, and every start would do it again.
RUN python3 -m compileall -q /app/job
# What is in it by then, a run neither builds nor fetches: the job needs no network but its storage.
ARG BACKBONES=""
# hadolint ignore=SC2086 # each word of it is a handle
RUN PYTHONPATH=/app PYTHONDONTWRITEBYTECODE=1 /opt/venv/bin/python -m job backbone prefetch \
       /app/backbones builtin:efficientnet-lite0 ${BACKBONES}

FROM packages
# Like /tmp: any user may write there. A tmpfs mounted on it takes its mode from this folder.
RUN install -d -m 1777 /work
COPY --from=sbom /usr/share/sbom /usr/share/sbom
COPY entrypoint.sh /app/
COPY --from=job /app/job /app/job
COPY --from=job /app/backbones /app/backbones
# PYTHONSAFEPATH: a folder named `job` in the current directory must not stand in for ours.
# NVIDIA_DRIVER_CAPABILITIES: what of the driver a container runtime lends; the GPUs it picks itself.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/work \
    MPLCONFIGDIR=/tmp/matplotlib \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /work
# Numeric, so that Kubernetes can check runAsNonRoot; it needs no entry in /etc/passwd.
USER 65532:65532
STOPSIGNAL SIGTERM
# A batch job is healthy while it runs; its exit code says the rest.
HEALTHCHECK NONE
ARG BASE_IMAGE
ARG VERSION=0.0.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Regraft" \
      org.opencontainers.image.description="Retrains an image classifier on a pretrained backbone and publishes it to TensorFlow Serving." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="${BASE_IMAGE}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENTRYPOINT ["/app/entrypoint.sh"]
