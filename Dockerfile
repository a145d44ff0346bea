# One small image for every role; the command says which: worker agents, worker tools, flower, …
# The packages are exactly those of requirements/run.lock, checked against their hashes.
FROM python:3.11-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/agentmesh
COPY requirements/run.lock requirements/
RUN /opt/agentmesh/bin/pip install --require-hashes --only-binary :all: -r requirements/run.lock
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY migrations migrations
COPY agentmesh agentmesh
RUN /opt/agentmesh/bin/pip install --no-deps --no-build-isolation . \
 && /opt/agentmesh/bin/pip uninstall --yes hatchling editables pip

FROM python:3.11-slim
RUN useradd --system --uid 10001 --home-dir /var/lib/agentmesh --create-home agentmesh
COPY --from=build /opt/agentmesh /opt/agentmesh
COPY config /app/config
ENV PATH=/opt/agentmesh/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    AGENTMESH_HOME=/var/lib/agentmesh AGENTMESH_LOG_FORMAT=json
WORKDIR /app
USER agentmesh
VOLUME /var/lib/agentmesh
# SIGTERM drains: a worker finishes what it holds for at most 30 s, then hands it back.
STOPSIGNAL SIGTERM
ENTRYPOINT ["agentmesh"]
CMD ["--help"]
