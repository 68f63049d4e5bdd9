# The worker: torchrun, Opacus, Triton. Build from the top folder:
#   docker build -f docker/worker.Dockerfile -t clipwatch-worker:cuda .
# Without GPUs, with torch for CPU:
#   docker build -f docker/worker.Dockerfile -t clipwatch-worker:cpu --build-arg BASE=ubuntu:24.04 \
#     --build-arg PIP_EXTRA_INDEX_URL=<PyTorch's index of CPU builds> .
ARG BASE=nvidia/cuda:13.0.1-runtime-ubuntu24.04
FROM ${BASE}

# A second index where pip finds torch; pip reads this variable itself.
ARG PIP_EXTRA_INDEX_URL=

# Triton compiles its launchers with the C compiler and Python's headers when a kernel first runs.
# Versions follow the base image, which can be pinned by digest.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        ca-certificates gcc git libc6-dev python3 python3-dev python3-venv tini \
    && rm -rf /var/lib/apt/lists/*

ENV PATH=/opt/clipwatch/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    CLIPWATCH_DATA_DIR=/var/lib/clipwatch \
    TRITON_CACHE_DIR=/var/cache/triton \
    HOME=/var/lib/clipwatch \
    MPLCONFIGDIR=/tmp/matplotlib

RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin clipwatch \
    && install -d -o clipwatch -g clipwatch /var/lib/clipwatch /var/cache/triton /artifacts

WORKDIR /src
# The dependencies go first: they change less often than our packages, so this layer stays in the cache. flash-clipping
# is built from the checkout below.
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN python3 -m venv /opt/clipwatch \
    && python3 -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
needed = project['dependencies'] + project['optional-dependencies']['worker']; \
print(*(each for each in needed if each != 'flash-clipping'), sep='\n')" > /tmp/requirements.txt \
    && pip install --no-cache-dir -c constraints.txt -r /tmp/requirements.txt \
    && rm /tmp/requirements.txt
COPY service service
COPY worker worker
COPY migrations migrations
COPY flash_clipping flash_clipping
RUN pip install --no-cache-dir --no-deps ./flash_clipping .

WORKDIR /var/lib/clipwatch
USER 10001:10001
VOLUME ["/var/lib/clipwatch", "/var/cache/triton"]
# The ranks of a killed torchrun become orphans, which process 1 has to reap.
ENTRYPOINT ["tini", "--"]
CMD ["clipwatch", "worker"]
