# Two targets from one file: `api` (no torch, small) and `worker` (the compression engine).
#   docker build --target api -t tightfit-api .
#   docker build --target worker -t tightfit-worker .
FROM python:3.11-slim AS base
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    TIGHTFIT_DATA_DIR=/data TIGHTFIT_HOST=0.0.0.0 TIGHTFIT_PORT=8765
RUN useradd --system --uid 10001 --create-home tightfit && install -d -o tightfit -g tightfit /data
WORKDIR /srv/tightfit
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY app app
COPY worker worker
COPY tightfit tightfit
COPY migrations migrations
VOLUME /data

FROM base AS api
RUN pip install -c constraints.txt -e .
USER tightfit
EXPOSE 8765
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD python -c "import urllib.request as u; u.urlopen('http://127.0.0.1:8765/healthz', timeout=2)"
CMD ["tightfit", "serve", "--workers", "0"]

FROM base AS worker
# as app/supervisor.py starts workers
ENV MALLOC_ARENA_MAX=2
# torch 2.13.0 is pinned in constraints.txt. Where your package index serves a CUDA build under that version and a
# CPU build is wanted, name your CPU index in PIP_EXTRA_INDEX_URL at build time.
ARG PIP_EXTRA_INDEX_URL=""
RUN pip install -c constraints.txt -e '.[worker]'
USER tightfit
CMD ["tightfit", "worker"]
