#!/usr/bin/env bash
# Builds a real OpenAI-compatible engine for the tests, llama.cpp's server as PyPI has it, and a tiny model for it.
# Takes some three minutes the first time, and needs a C++ compiler; what is there already is left as it is.
#
#   scripts/fetch_engine.sh FOLDER    writes FOLDER/python (a virtual environment) and FOLDER/tiny.gguf
#
# The tests find it by ZORAI_TEST_ENGINE=FOLDER.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ $# != 1 ]; then
    echo "usage: scripts/fetch_engine.sh FOLDER" >&2
    exit 2
fi
folder=$1
mkdir -p "$folder"
python=$folder/python/bin/python
# What lies there would count as installed.
unset PYTHONPATH
if ! "$python" -c 'import llama_cpp.server.app, gguf, numpy' 2>/dev/null; then
    python3 -m venv "$folder/python"
    # Without the machine's own instructions, so that a folder that is kept serves other machines too.
    CMAKE_ARGS="-DGGML_NATIVE=OFF ${CMAKE_ARGS:-}" "$python" -m pip install --quiet --disable-pip-version-check \
        'llama-cpp-python[server]==0.3.36' 'gguf==0.19.0' numpy
fi
"$python" scripts/make_tiny_gguf.py "$folder/tiny.gguf"
