# syntax=docker/dockerfile:1.9
# Three images of one file:
#   docker build --target cpu    --tag reelserve:0.1.0-cpu .
#   docker build --target cuda   --tag reelserve:0.1.0-cuda .
#   docker build --target triton --tag reelserve-triton:0.1.0 .

FROM python:3.11.13-slim-bookworm AS python
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1

FROM python AS build
WORKDIR /src
RUN python -m venv /opt/reelserve
ENV PATH=/opt/reelserve/bin:$PATH
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY serving serving
COPY quota quota
COPY autoscale autoscale
COPY loadtest loadtest
COPY deployments deployments

# torch first: which build of it there is decides what else comes. PyPI's brings CUDA's libraries.
FROM build AS build-cpu
RUN pip install --index-url https://download.pytorch.org/whl/cpu --constraint constraints.txt torch \
 && pip install --constraint constraints.txt '.[speech,traces]'

FROM build AS build-cuda
RUN pip install --constraint constraints.txt torch \
 && pip install --constraint constraints.txt '.[speech,traces]'

# bash and wget: KubeRay's probes and commands call them.
FROM python AS runtime
RUN apt-get update \
 && apt-get install --yes --no-install-recommends bash wget \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 10001 reelserve \
 && useradd --uid 10001 --gid 10001 --home-dir /home/reelserve --create-home reelserve \
 && install --directory --owner=10001 --group=10001 /data /models
ENV PATH=/opt/reelserve/bin:$PATH \
    REELSERVE_DATA_DIR=/data \
    REELSERVE_HOST=0.0.0.0
WORKDIR /home/reelserve
USER 10001:10001
VOLUME /data
EXPOSE 8000
# The first start may have to download weights.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30m --retries=6 \
    CMD ["wget", "--quiet", "--tries=1", "--output-document=/dev/null", "http://127.0.0.1:8000/healthz"]
CMD ["reelserve", "up"]

FROM runtime AS cpu
COPY --from=build-cpu /opt/reelserve /opt/reelserve

FROM runtime AS cuda
# `load.compile` has Triton's compiler call a C compiler.
USER root
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*
USER 10001:10001
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=build-cuda /opt/reelserve /opt/reelserve

# Speech: Reelserve's own model repository, and as much of Reelserve as its Python models import.
# With numpy 2, Python backends of this age answer with empty tensors.
FROM nvcr.io/nvidia/tritonserver:24.12-py3 AS triton
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY serving serving
COPY quota quota
COPY autoscale autoscale
COPY loadtest loadtest
COPY deployments deployments
RUN pip install --no-cache-dir --no-deps . espeakng-loader==0.2.4 \
 && pip install --no-cache-dir 'pydantic>=2.11,<3' 'numpy<2' \
 && cp -r deployments/triton /models
USER 1000:1000
EXPOSE 8000 8001 8002
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["curl", "--fail", "--silent", "http://127.0.0.1:8000/v2/health/ready"]
CMD ["tritonserver", "--model-repository=/models"]
