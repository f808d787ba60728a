# The trainer, with torch; and workers of tasks whose student is local/NAME. It holds the stream side too: every command runs.
#     docker build -f deploy/docker/trainer.Dockerfile -t goldstream/trainer:0.1.0 .
# torch brings CUDA's libraries; the machine brings the driver and NVIDIA's container runtime. 6 GB.
ARG PYTHON=3.11.14-slim-bookworm

FROM python:${PYTHON} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/goldstream
WORKDIR /src
COPY pyproject.toml deploy/docker/requirements.py ./
COPY deploy/constraints.txt constraints.txt
RUN --mount=type=cache,target=/root/.cache/pip \
    python requirements.py trainer > requirements.txt \
    && /opt/goldstream/bin/pip install -c constraints.txt -r requirements.txt
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/goldstream/bin/pip install --no-deps . \
    && /opt/goldstream/bin/pip check

FROM python:${PYTHON}
# torch.compile, which packs several cases into a row (FlexAttention), calls a compiler at run time.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 goldstream \
    && useradd --uid 10001 --gid 10001 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin goldstream \
    && install -d -o goldstream -g goldstream -m 0750 /var/lib/goldstream \
    && install -d /etc/goldstream
COPY --from=build /opt/goldstream /opt/goldstream
# What torch.compile makes goes to /tmp, which must allow execution (compose.yaml mounts it so).
ENV PATH=/opt/goldstream/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HUB_OFFLINE=1 \
    LITELLM_LOCAL_MODEL_COST_MAP=True \
    GOLDSTREAM_CONFIG=/etc/goldstream/goldstream.toml \
    GOLDSTREAM_STATE_DIR=/var/lib/goldstream \
    GOLDSTREAM_METRICS__HOST=0.0.0.0 \
    GOLDSTREAM_METRICS__PORT=9100
USER 10001:10001
WORKDIR /var/lib/goldstream
EXPOSE 9100
ENTRYPOINT ["goldstream"]
CMD ["trainer"]
