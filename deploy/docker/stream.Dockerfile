# The stream side: intake, worker, retries, sink, rollout, exporter, dashboard and every command that asks. No torch.
#     docker build -f deploy/docker/stream.Dockerfile -t goldstream/stream:0.1.0 .
# Models are called over HTTP. A task whose student is local/NAME needs trainer.Dockerfile for its workers too.
ARG PYTHON=3.11.14-slim-bookworm

FROM python:${PYTHON} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/goldstream
WORKDIR /src
# Dependencies in a layer of their own: it is built anew only when they change.
COPY pyproject.toml deploy/docker/requirements.py ./
COPY deploy/constraints.txt constraints.txt
RUN --mount=type=cache,target=/root/.cache/pip \
    python requirements.py > requirements.txt \
    && /opt/goldstream/bin/pip install -c constraints.txt -r requirements.txt
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/goldstream/bin/pip install --no-deps . \
    && /opt/goldstream/bin/pip check

FROM python:${PYTHON}
RUN groupadd --gid 10001 goldstream \
    && useradd --uid 10001 --gid 10001 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin goldstream \
    && install -d -o goldstream -g goldstream -m 0750 /var/lib/goldstream /run/goldstream \
    && install -d /etc/goldstream
COPY --from=build /opt/goldstream /opt/goldstream
# The root may be read-only: what is kept goes to the state folder, all else to /tmp.
ENV PATH=/opt/goldstream/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    LITELLM_LOCAL_MODEL_COST_MAP=True \
    GOLDSTREAM_CONFIG=/etc/goldstream/goldstream.toml \
    GOLDSTREAM_STATE_DIR=/var/lib/goldstream \
    GOLDSTREAM_METRICS__HOST=0.0.0.0 \
    GOLDSTREAM_METRICS__PORT=9100
USER 10001:10001
WORKDIR /var/lib/goldstream
EXPOSE 9100
ENTRYPOINT ["goldstream"]
CMD ["--help"]
