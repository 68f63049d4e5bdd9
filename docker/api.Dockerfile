# The service alone: API, beat, migrations. No torch. Build from the top folder:
#   docker build -f docker/api.Dockerfile -t clipwatch-api .
ARG BASE=python:3.12-slim-bookworm
FROM ${BASE}

ENV PATH=/opt/clipwatch/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    CLIPWATCH_HOST=0.0.0.0 \
    CLIPWATCH_PORT=8000 \
    CLIPWATCH_DATA_DIR=/var/lib/clipwatch

# beat and watch ask git which files a commit changed. Versions follow the base image, which can be pinned by digest.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends git && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin clipwatch \
    && install -d -o clipwatch -g clipwatch /var/lib/clipwatch /artifacts /secrets

WORKDIR /src
# The dependencies go first: they change less often than the package, so this layer stays in the cache.
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN python3 -m venv /opt/clipwatch \
    && python3 -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print(*project['dependencies'], sep='\n')" > /tmp/requirements.txt \
    && pip install --no-cache-dir -c constraints.txt -r /tmp/requirements.txt \
    && rm /tmp/requirements.txt
COPY service service
COPY worker worker
COPY migrations migrations
RUN pip install --no-cache-dir --no-deps .

WORKDIR /var/lib/clipwatch
USER 10001:10001
VOLUME ["/var/lib/clipwatch"]
EXPOSE 8000
CMD ["clipwatch", "api"]
