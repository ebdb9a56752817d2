#!/usr/bin/env bash
# Builds a real OpenAI-compatible engine for the tests, and a tiny model for it: llama.cpp's own server, from the sources that the package
# llama-cpp-python carries. Takes some minutes the first time, and needs a C++ compiler; what is there already is left as it is.
#
#   scripts/fetch_engine.sh FOLDER    writes FOLDER/llama-server, FOLDER/tools.jinja (a chat template by which it can be made to call tools),
#                                     FOLDER/tiny.gguf, and FOLDER/python (a virtual environment that builds them)
#
# The tests find it by ZORAI_TEST_ENGINE=FOLDER.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ $# != 1 ]; then
    echo "usage: scripts/fetch_engine.sh FOLDER" >&2
    exit 2
fi
mkdir -p "$1"
folder=$(cd "$1" && pwd)
version=0.3.36
python=$folder/python/bin/python
# What lies there would count as installed.
unset PYTHONPATH
if ! "$python" -c 'import gguf, numpy' 2>/dev/null; then
    python3 -m venv "$folder/python"
    "$python" -m pip install --quiet --disable-pip-version-check 'gguf==0.19.0' numpy
fi
if ! [ -x "$folder/llama-server" ] || ! [ -f "$folder/tools.jinja" ]; then
    build=$folder/build
    rm -rf "$build" && mkdir "$build"
    "$python" -m pip install --quiet --disable-pip-version-check cmake ninja
    "$python" -m pip download --quiet --disable-pip-version-check --no-binary llama-cpp-python --no-deps \
        --dest "$build" "llama-cpp-python==$version"
    tar -xzf "$build/llama_cpp_python-$version.tar.gz" -C "$build"
    sources=$build/llama_cpp_python-$version/vendor/llama.cpp
    export PATH=$folder/python/bin:$PATH
    # Quickly built rather than fast: the model is tiny.
    cmake -G Ninja -S "$sources" -B "$build/out" -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_FLAGS_RELEASE=-O1 -DBUILD_SHARED_LIBS=OFF \
        -DGGML_NATIVE=OFF -DGGML_OPENMP=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
        -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF >/dev/null
    cmake --build "$build/out" --target llama-server >/dev/null
    cp "$sources/models/templates/meetkai-functionary-medium-v3.2.jinja" "$folder/tools.jinja"
    cp "$build/out/bin/llama-server" "$folder/llama-server"
    rm -rf "$build"
fi
"$python" scripts/make_tiny_gguf.py "$folder/tiny.gguf"
