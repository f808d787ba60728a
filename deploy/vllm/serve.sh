#!/usr/bin/env bash
# Serves a base model with vLLM so that Goldstream's rollout can load adapters into it while it runs, and, with
# --enable-sleep-mode, put it to sleep. Runs in an environment of its own, see README.md.
# usage: serve.sh $(goldstream vllm-args --task TASK) [--port 8000] [any other flag of vLLM]
set -euo pipefail
if [[ " $* " != *" --model "* || " $* " != *" --max-lora-rank "* ]]; then
  echo "usage: serve.sh \$(goldstream vllm-args --task TASK) [--port 8000] [any other flag of vLLM]" >&2
  exit 2
fi

# Lets POST /v1/load_lora_adapter work; anyone who reaches the port can use it, so it stays on loopback.
export VLLM_ALLOW_RUNTIME_LORA_UPDATING=True
# Lets POST /sleep and /wake_up work.
[[ " $* " == *" --enable-sleep-mode "* ]] && export VLLM_SERVER_DEV_MODE=1
exec python -m vllm.entrypoints.openai.api_server --host 127.0.0.1 "$@"
