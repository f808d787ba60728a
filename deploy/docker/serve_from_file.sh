#!/usr/bin/env bash
# Serves with the flags that `goldstream vllm-args` wrote to a file, on all interfaces of the container.
# usage: serve_from_file.sh FILE [any other flag of vLLM]
set -euo pipefail
file=${1:?usage: serve_from_file.sh FILE [any other flag of vLLM]}
shift
if [[ ! -s $file ]]; then
  echo "error: $file is missing or empty; goldstream vllm-args --task TASK > $file writes it" >&2
  exit 2
fi
eval "flags=($(cat "$file"))" # one line of shell words, quoted by goldstream
exec serve.sh "${flags[@]}" --host 0.0.0.0 --port 8000 "$@"
