# Apart from the user, each RUN line is a make target, so what is tested and what is built are the same; the full python
# image brings make. For a build without CUDA give pip the index that holds it: --build-arg PIP_EXTRA_INDEX_URL=...
FROM python:3.11

ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL

RUN useradd --create-home --uid 10001 eoseek && install -d -o eoseek /app /data /cache
USER eoseek
WORKDIR /app

# the dependencies are a layer of their own: a change of the code, but of its part in C, does not install them again
COPY --chown=eoseek Makefile pyproject.toml constraints.txt README.md LICENSE ./
COPY --chown=eoseek service/__init__.py service/
COPY --chown=eoseek service/encoders/kernels.c service/encoders/
COPY --chown=eoseek training/__init__.py training/
COPY --chown=eoseek eoseek/__init__.py eoseek/
RUN make install

COPY --chown=eoseek service service
COPY --chown=eoseek training training
COPY --chown=eoseek eoseek eoseek

ENV PATH=/app/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    XDG_CACHE_HOME=/cache \
    EOSEEK_API__HOST=0.0.0.0 \
    EOSEEK_API__PORT=8080 \
    EOSEEK_STORE__PATH=/data/store

# /data holds the embedded store, /cache the pulled checkpoints
VOLUME ["/data", "/cache"]
EXPOSE 8080
# on its own this image does not start: it listens to the network, so it wants EOSEEK_API__KEYS, or to be told that whoever
# reaches it may do everything, EOSEEK_API__OPEN_TO_NETWORK_WITHOUT_KEYS=true. With EOSEEK_API__OPEN_OPERATIONS=false give it
# EOSEEK_API_KEY, a key of any role: without one the check below sees that the service answers, not that it is ready.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --start-interval=2s --retries=3 \
    CMD ["python", "-m", "service.healthcheck"]
STOPSIGNAL SIGTERM
CMD ["eoseek", "serve"]
