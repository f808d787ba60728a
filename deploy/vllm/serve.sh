#!/usr/bin/env bash
# Serves a base model with vLLM so that Goldstream's rollout can load adapters into it while it runs.
# usage: serve.sh MODEL [MAX_LORA_RANK [PORT]]      (run in an environment of its own, see README.md)
set -euo pipefail
model=${1:?usage: serve.sh MODEL [MAX_LORA_RANK [PORT]]}
rank=${2:-256} # at least tasks.NAME.trainer.rank
port=${3:-8000}

# Lets POST /v1/load_lora_adapter work; anyone who reaches the port can use it, so it stays on loopback.
export VLLM_ALLOW_RUNTIME_LORA_UPDATING=True
# --max-loras 3: the adapter that serves, the one before it, and the one being tested.
exec python -m vllm.entrypoints.openai.api_server \
  --model "$model" --served-model-name "$model" \
  --host 127.0.0.1 --port "$port" \
  --enable-lora --max-lora-rank "$rank" --max-loras 3
