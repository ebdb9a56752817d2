#!/usr/bin/env python3
"""Compares the engine inside compute-node with llama.cpp's server: the same file, the same threads, in turns.

Prints tokens a second as Markdown. Needs a built compute-node and the folder of scripts/fetch_engine.sh.

    bench/engine.py --node target/release/compute-node --engine target/engine [--threads 1] [--rounds 5]
"""

import argparse
import json
import pathlib
import platform
import socket
import statistics
import subprocess
import time
import urllib.error
import urllib.request

MODEL = pathlib.Path(__file__).resolve().parent.parent / "models/zorai-demo.gguf"
# It goes on and on after this at temperature 0.
PROMPT = "The compute node "
PATIENCE = 60


def free_port():
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ask(port, path, body=None):
    """A request, and its answer as JSON."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return json.load(answer)


def until_up(port, process):
    """Waits until an engine answers."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return ask(port, "/v1/models")
        except (urllib.error.URLError, ConnectionError):
            if process.poll() is not None or time.monotonic() > until:
                raise
            time.sleep(0.05)


def measure(port, tokens):
    """Tokens a second of a long answer, and of a long prompt, which llama.cpp would else read only once."""
    body = {"model": "toy", "prompt": PROMPT, "temperature": 0, "max_tokens": tokens, "cache_prompt": False}
    began = time.monotonic()
    usage = ask(port, "/v1/completions", body)["usage"]
    spent = time.monotonic() - began
    long = {"model": "toy", "prompt": "The relay holds no wallet key. " * 40, "temperature": 0, "max_tokens": 1}
    long["cache_prompt"] = False
    began = time.monotonic()
    prompt = ask(port, "/v1/completions", long)["usage"]["prompt_tokens"]
    return usage["completion_tokens"] / spent, prompt / (time.monotonic() - began)


def main():
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--node", required=True, help="the program compute-node")
    parser.add_argument("--engine", required=True, help="the folder of scripts/fetch_engine.sh")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=200)
    arguments = parser.parse_args()
    threads, ports = str(arguments.threads), {"embedded": free_port(), "llama.cpp": free_port()}
    lines = {
        "embedded": [arguments.node, "__engine", "--name", "toy", "--model", MODEL, "--port", str(ports["embedded"])],
        "llama.cpp": [
            f"{arguments.engine}/llama-server", "--model", MODEL, "--alias", "toy", "--host", "127.0.0.1",
            "--port", str(ports["llama.cpp"]), "--ctx-size", "1024", "--parallel", "1", "--threads", threads,
            "--threads-batch", threads,
        ],
    }
    environment = {"PATH": "/usr/bin:/bin", "RAYON_NUM_THREADS": threads}
    started = {
        name: subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for name, line in lines.items()
    }
    figures = {name: [] for name in lines}
    try:
        for name, process in started.items():
            until_up(ports[name], process)
            measure(ports[name], arguments.tokens)
        for _ in range(arguments.rounds):
            for name in started:
                figures[name].append(measure(ports[name], arguments.tokens))
    finally:
        for process in started.values():
            process.kill()
            process.wait()
    print(f"{platform.machine()}, {threads} threads, {arguments.rounds} rounds of {arguments.tokens} tokens\n")
    print("| engine | tokens/s out (range) | tokens/s in (range) |\n| --- | --- | --- |")
    for name, measured in figures.items():
        cells = (f"{statistics.median(one):,.0f} ({min(one):,.0f}-{max(one):,.0f})" for one in zip(*measured))
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
