# vLLM for the student: the project's own image, started by our serve.sh, as an unprivileged user.
#     docker build -f deploy/docker/vllm.Dockerfile -t goldstream/vllm:0.1.0 .
# Its flags come from `goldstream vllm-args`: a file that an init container writes (compose.yaml, k8s/components/vllm).
ARG VLLM=v0.32.0

FROM vllm/vllm-openai:${VLLM}
RUN command -v python || ln -s "$(command -v python3)" /usr/local/bin/python
RUN groupadd --gid 10001 goldstream \
    && useradd --uid 10001 --gid 10001 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin goldstream
COPY --chmod=0755 deploy/vllm/serve.sh deploy/docker/serve_from_file.sh /usr/local/bin/
ENV HOME=/tmp \
    HF_HUB_OFFLINE=1 \
    VLLM_NO_USAGE_STATS=1
USER 10001:10001
EXPOSE 8000
ENTRYPOINT ["serve_from_file.sh", "/run/goldstream/vllm-args"]
