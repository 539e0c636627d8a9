# Two images from the same steps:
#   docker build --target cpu -t eoseek .          torch
#   docker build --target gpu -t eoseek:gpu .      vLLM on CUDA; the machine brings NVIDIA's container toolkit
# --build-arg CHECKPOINT=default puts a checkpoint into the image, another than the default to be named at start too, by
# EOSEEK_ENCODER__CHECKPOINT; without it the first start pulls it into the volume /cache. For the cpu image give pip the index that holds torch's build without CUDA: --build-arg PIP_EXTRA_INDEX_URL=...
ARG PYTHON_VERSION=3.11

# the full image brings make and a C compiler, and both stay in it
FROM python:${PYTHON_VERSION} AS source
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
WORKDIR /app
# the dependencies are a layer of their own: a change of the code, but of its part in C, does not install them again
COPY Makefile pyproject.toml constraints.txt requirements-vllm.txt README.md LICENSE ./
COPY service/__init__.py service/
COPY service/encoders/*.c service/encoders/*.h service/encoders/
COPY training/__init__.py training/
COPY eoseek/__init__.py eoseek/

FROM source AS build-cpu
RUN --mount=type=cache,target=/root/.cache/pip make install EXTRAS=otel

FROM source AS build-gpu
RUN --mount=type=cache,target=/root/.cache/pip make install EXTRAS=otel,vllm CONSTRAINTS=requirements-vllm.txt

FROM python:${PYTHON_VERSION}-slim AS runtime
LABEL org.opencontainers.image.title="EOSeek" \
      org.opencontainers.image.description="Dense retrieval with decoder LLMs pooled at their closing [EOS] token" \
      org.opencontainers.image.licenses="Apache-2.0"
# /data holds the embedded store, /cache the pulled checkpoints; the code is root's, and read-only to the service
RUN useradd --create-home --uid 10001 eoseek && install -d -o eoseek /data /cache
WORKDIR /app
ENV PATH=/app/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    XDG_CACHE_HOME=/cache \
    EOSEEK_API__HOST=0.0.0.0 \
    EOSEEK_API__PORT=8080 \
    EOSEEK_STORE__PATH=/data/store
EXPOSE 8080
# on its own this image does not start: it listens to the network, so it wants EOSEEK_API__KEYS, or to be told that whoever
# reaches it may do everything, EOSEEK_API__OPEN_TO_NETWORK_WITHOUT_KEYS=true. With EOSEEK_API__OPEN_OPERATIONS=false give it
# EOSEEK_API_KEY, a key of any role: without one the check below sees that the service answers, not that it is ready.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --start-interval=2s --retries=3 \
    CMD ["python", "-m", "service.healthcheck"]
STOPSIGNAL SIGTERM
CMD ["eoseek", "serve"]

FROM runtime AS gpu
ENV EOSEEK_ENCODER__BACKEND=vllm \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
# vLLM's Triton compiles for the card that it finds
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY --from=build-gpu /app /app
COPY service service
COPY training training
COPY eoseek eoseek
USER 10001
ARG CHECKPOINT
RUN if [ -n "$CHECKPOINT" ]; then eoseek model pull "$CHECKPOINT"; fi
VOLUME ["/data", "/cache"]

# the last target is the one that is built where none is named
FROM runtime AS cpu
# OpenMP, for the part in C
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
COPY --from=build-cpu /app /app
COPY service service
COPY training training
COPY eoseek eoseek
USER 10001
ARG CHECKPOINT
RUN if [ -n "$CHECKPOINT" ]; then eoseek model pull "$CHECKPOINT"; fi
VOLUME ["/data", "/cache"]
