# Nightshift in a container. How it is run, and the image for an NVIDIA GPU: docs/daemon.md.
#
#     docker build -t nightshift .

ARG BUILD_IMAGE=python:3.11-slim
ARG RUN_IMAGE=python:3.11-slim

# What the system is to have besides: "tesseract-ocr tesseract-ocr-deu" for OCR in English and German.
ARG PACKAGES=""

FROM ${BUILD_IMAGE} AS build

# For any x86-64 with AVX2, or any ARM64: an image moves between machines.
ARG CMAKE_ARGS="-DGGML_NATIVE=OFF"
ARG EXTRAS="postgres,nvidia"
ENV CMAKE_ARGS=${CMAKE_ARGS} PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# The images of NVIDIA have no Python.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && { command -v python3 || apt-get install --yes --no-install-recommends python3-dev python3-venv; } \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/nightshift
RUN python3 -m venv .venv

# What is slow comes first and needs little of the source: its layers outlive a change of the program.
COPY pyproject.toml README.md LICENSE ./
COPY requirements/run.txt requirements/
RUN mkdir pipeline \
    && touch pipeline/__init__.py \
    && export CMAKE_BUILD_PARALLEL_LEVEL="$(nproc)" \
    && .venv/bin/python -m pip install --require-hashes --requirement requirements/run.txt \
    && .venv/bin/python -m pip install --editable ".[${EXTRAS}]"
COPY scripts/build_llama_server.py scripts/
RUN .venv/bin/python scripts/build_llama_server.py \
    && mv .cache/llama-server/*/* .venv/bin/ \
    && rm -r .cache /root/.cache/nightshift

COPY alembic alembic
COPY pipeline pipeline
COPY data/models data/models
RUN .venv/bin/python -m compileall -q pipeline

FROM ${RUN_IMAGE}

ARG PACKAGES
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 tini ${PACKAGES} \
    && { command -v python3 || apt-get install --yes --no-install-recommends python3; } \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --user-group --home-dir /var/lib/nightshift --create-home nightshift

COPY --from=build /opt/nightshift /opt/nightshift
COPY jobs /etc/nightshift/jobs

# There is no key here: without NIGHTSHIFT_API_KEY the daemon refuses to listen where others can reach it.
ENV PATH=/opt/nightshift/.venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    NIGHTSHIFT_DATA_DIR=/var/lib/nightshift \
    NIGHTSHIFT_HOST=0.0.0.0 \
    NIGHTSHIFT_PORT=8642

USER nightshift
# nightshift.toml, if one is mounted, and jobs/ are found here.
WORKDIR /etc/nightshift
VOLUME /var/lib/nightshift
EXPOSE 8642
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f'http://127.0.0.1:{os.environ[\"NIGHTSHIFT_PORT\"]}/health', timeout=4)"]

# tini reaps what a model server's own children leave behind.
ENTRYPOINT ["tini", "--", "nightshift"]
CMD ["daemon"]
