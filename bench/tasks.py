"""What small tasks cost over relay, agent and node, and how fast a large artifact is served: tables in Markdown.

    cargo build --release && pip install eth-account && python3 bench/tasks.py [--tasks 1000] [--slots 4] [--artifact-mib 1024]

Each task is the word count of demo/ over a few words, signed beforehand by the client of docs/examples. Processor time is user and
system time of each program, from /proc; the programs run on this machine beside their client.
"""

import argparse
import concurrent.futures
import hashlib
import http.client
import json
import os
import pathlib
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs/examples"))
import client  # noqa: E402
from eth_account import Account  # noqa: E402

TICKS = os.sysconf("SC_CLK_TCK")
KEY = secrets.token_hex(24)


def port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def cpu(process):
    fields = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def memory_mib(process, name):
    for line in pathlib.Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"/proc says no {name}")


def ready(url, what, process, seconds=60):
    end = time.monotonic() + seconds
    address = urllib.parse.urlsplit(url)
    while time.monotonic() < end:
        if process.poll() is not None:
            raise SystemExit(f"{what} ended with {process.returncode}")
        try:
            with socket.create_connection((address.hostname, address.port), timeout=1):
                return
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"{what} does not listen")


def signed(account, domain, module, given):
    now = int(time.time())
    task = {
        "requester": account.address,
        "model_cid": f"artifact://{module}",
        "model_hash": module,
        "input_cid": f"artifact://{given}",
        "input_hash": given,
        "config": {"runtime": "wasm", "params": "{}", "gpu_type": "", "gpu_count": 0, "min_vram": 0, "max_duration": 60, "max_attempts": 3},
        "token": client.ZERO,
        "budget": "0",
        "provider_stake": "0",
        "dispute_bond": "0",
        "deadline": client.rfc3339(now + 3600),
        "dispute_window": 86400,
        "arbiter_window": 604800,
        "arbiter": client.ZERO,
        "salt": "0x" + secrets.token_hex(32),
    }
    contract = domain["verifying_contract"]
    signable = client.typed("Task", task, domain["chain_id"], contract)
    signature = "0x" + account.sign_message(signable).signature.hex().removeprefix("0x")
    return json.dumps({"task": task, "signature": signature, "verifying_contract": contract})


def publish(address, bodies):
    """Publishes one after another on one connection."""
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    for body in bodies:
        connection.request("POST", "/v1/tasks", body, headers)
        answer = connection.getresponse()
        text = answer.read()
        if answer.status not in (200, 201):
            raise SystemExit(f"a task was not published: {answer.status} {text.decode(errors='replace')}")


def done(relay):
    tasks = relay.json("GET", "/v1/stats")["tasks"]
    failed = tasks.get("failed", 0) + tasks.get("expired", 0)
    if failed:
        raise SystemExit(f"{failed} tasks failed")
    return tasks.get("submitted", 0) + tasks.get("completed", 0)


def tasks_of(args, relay, address, programs):
    account = Account.create()
    domain = next(one for one in relay.json("GET", "/v1/info")["domains"] if int(one["verifying_contract"], 16) == 0)
    module = relay.upload((ROOT / "demo/wordcount.wasm").read_bytes())
    given = relay.upload(b"a few words, and a few more\n")
    print(f"signing {args.tasks} tasks", file=sys.stderr)
    bodies = [signed(account, domain, module, given) for _ in range(args.tasks + 20)]
    # The first ones fetch and compile.
    publish(address, bodies[:20])
    while done(relay) < 20:
        time.sleep(0.05)
    bodies = bodies[20:]
    before = {name: cpu(process) for name, process in programs.items()}
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(args.callers) as callers:
        list(callers.map(lambda first: publish(address, bodies[first :: args.callers]), range(args.callers)))
    published = time.monotonic() - began
    while done(relay) < args.tasks + 20:
        time.sleep(0.05)
    took = time.monotonic() - began
    spent = {name: (cpu(process) - before[name]) / args.tasks * 1000 for name, process in programs.items()}
    total = sum(spent.values())
    print(f"\n### {args.tasks} small tasks, {args.slots} slots\n")
    print("| published in s | proven in s | tasks/min | " + " | ".join(f"{name}, CPU ms a task" for name in spent) + " | all | tasks/min a core |")
    print("| --- | --- | --- | " + " | ".join("---" for _ in spent) + " | --- | --- |")
    figures = " | ".join(f"{ms:.2f}" for ms in spent.values())
    print(f"| {published:.2f} | {took:.2f} | {args.tasks / took * 60:.0f} | {figures} | {total:.2f} | {60_000 / total:.0f} |")


def artifact_of(args, address, relay_process, folder):
    size = args.artifact_mib << 20
    file, whole = folder / "large", hashlib.sha256()
    with open(file, "wb") as out:
        for _ in range(args.artifact_mib):
            piece = secrets.token_bytes(1 << 20)
            whole.update(piece)
            out.write(piece)
    name = whole.hexdigest()
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=300)
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/octet-stream", "Content-Length": str(size)}
    with open(file, "rb") as body:
        connection.request("PUT", f"/v1/artifacts/{name}", body, headers)
        answer = connection.getresponse()
        text = answer.read()
    if answer.status not in (200, 201):
        raise SystemExit(f"the artifact was not kept: {answer.status} {text.decode(errors='replace')}")
    resident, buffer = memory_mib(relay_process, "VmRSS"), bytearray(1 << 20)

    def read(stream):
        began, got = time.monotonic(), 0
        while count := stream.readinto(buffer):
            got += count
        assert got == size, f"{got} of {size} bytes"
        return args.artifact_mib / (time.monotonic() - began)

    rates, floors, copies = [], [], []
    for _ in range(args.rounds):
        with open(file, "rb", buffering=0) as plain:
            floors.append(read(plain))
        copies.append(args.artifact_mib / over_loopback(file, size, buffer))
        connection.request("GET", f"/v1/artifacts/{name}", headers={"Authorization": f"Bearer {KEY}"})
        rates.append(read(connection.getresponse()))
    peak = memory_mib(relay_process, "VmHWM")
    print(f"\n### An artifact of {args.artifact_mib} MiB, {args.rounds} times\n")
    print("| file, MiB/s | the same by sendfile over loopback, MiB/s | relay, MiB/s | relay's memory before, MiB | its peak, MiB |")
    print("| --- | --- | --- | --- | --- |")
    middle = [f"{statistics.median(one):.0f}" for one in (floors, copies, rates)]
    print(f"| {' | '.join(middle)} | {resident:.0f} | {peak:.0f} |")


def over_loopback(file, size, buffer):
    """Seconds that the kernel takes for the same bytes over a socket."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        child = os.fork()
        if child == 0:
            with socket.create_connection(listener.getsockname()) as out, open(file, "rb") as source:
                out.sendfile(source)
            os._exit(0)
        began, got = time.monotonic(), 0
        accepted, _ = listener.accept()
        with accepted:
            while count := accepted.recv_into(buffer):
                got += count
        os.waitpid(child, 0)
        assert got == size
        return time.monotonic() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--programs", type=pathlib.Path, default=ROOT / "target/release")
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--artifact-mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", type=pathlib.Path, help="where the programs keep their data")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.dir) as name:
        folder = pathlib.Path(name)
        relay_port, node_port = port(), port()
        url = f"http://127.0.0.1:{relay_port}"
        environment = {**os.environ, "HOME": name, "ZORAI_AI_API_KEY": KEY, "PROVIDER_PRIVATE_KEY": secrets.token_hex(32)}
        programs = {}

        def start(program, *flags):
            log = open(folder / f"{program}.log", "wb")
            command = [args.programs / program, *flags]
            programs[program] = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            return programs[program]

        try:
            relay_process = start(
                "compute-relay", "--listen", f"127.0.0.1:{relay_port}", "--relay-id", "bench", "--public-url", f"ws://127.0.0.1:{relay_port}",
                "--store", str(folder / "relay"),
            )
            ready(url, "compute-relay", relay_process)
            token = folder / "token"
            token.write_text(secrets.token_hex(24))
            token.chmod(0o600)
            node = start(
                "compute-node", "--listen", f"127.0.0.1:{node_port}", "--data", str(folder / "node"), "--slots", str(args.slots), "--no-container",
                "--compute-token-file", str(token),
            )
            ready(f"http://127.0.0.1:{node_port}", "compute-node", node)
            start(
                "compute-agent", "--relay", f"ws://127.0.0.1:{relay_port}/v1/provider/connect", "--relay-id", "bench",
                "--compute-url", f"http://127.0.0.1:{node_port}", "--compute-token-file", str(token), "--data", str(folder / "agent"),
            )
            address = urllib.parse.urlsplit(url)
            tasks_of(args, client.Relay(url, KEY), address, programs)
            if args.artifact_mib:
                artifact_of(args, address, relay_process, folder)
        finally:
            for process in reversed(programs.values()):
                process.terminate()
            for process in programs.values():
                process.wait(timeout=60)


if __name__ == "__main__":
    main()
