#!/usr/bin/env python3
"""Checks a running relay against the documents that it serves about itself: /openapi.json and /openrpc.json.

Usage: contract_check.py [--relay target/debug/compute-relay] [--examples 20] [--seed 1]

1. A task is published, and what the relay answers about it, event streams too, is checked against the schemas.
2. Each JSON-RPC method is called well and with hostile parameters; each answer must be one that the document names.
3. schemathesis (PyPI) makes up requests for every REST call: none may fail in the relay, be answered by a status or media type that
   is not described, or be answered by something else than its schema says; and none that breaks the schema may be taken. Of a stream
   without an end it reads the first event.

Starts the relay itself, on a free port of loopback and with a store of its own. Needs scripts/requirements.txt. Exits 1 if
anything is wrong.
"""

import argparse
import json
import os
import pathlib
import re
import secrets
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import jsonschema_rs
from eth_account import Account

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs" / "examples"))
import client  # noqa: E402  The example client knows how to sign.

START_SECONDS = 30
CALL_SECONDS = 30
SCHEMATHESIS_SECONDS = 300
ZERO_ID = "0x" + "00" * 32

CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
    "missing_required_header",
    "ignored_auth",
]
# A stream without an end: its first event comes at once.
SETTINGS = """
[[operations]]
include-path = "/v1/events"
max-stream-events = 1
"""
STREAM = "text/event-stream"

# Raw JSON, since some of it is nothing that Python's json writes.
HOSTILE = [
    "null",
    "true",
    "0",
    "-1",
    "1e400",
    "18446744073709551616",
    '""',
    '"\\u0000"',
    '"0x"',
    '"' + "9" * 5000 + '"',
    "[]",
    "[[]]",
    "{}",
    '{"":null}',
    '{"task_id":null}',
    "[" * 200 + "]" * 200,
    '{"a":' * 200 + "1" + "}" * 200,
]


class Failures(list):
    def check(self, is_right, what):
        if not is_right:
            self.append(what)
            print(f"WRONG: {what}"[:2000])


def start(program, folder, key, log):
    """Starts the relay on a free port; answers the process and its URL once it serves."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ZORAI_")}
    process = subprocess.Popen(
        [program, "--listen", "127.0.0.1:0", "--store", folder],
        env=environment | {"ZORAI_AI_API_KEY": key, "NO_COLOR": "1"},
        stdout=log,
        stderr=log,
    )
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        found = re.search(r"http://127\.0\.0\.1:[1-9]\d*", pathlib.Path(log.name).read_text(errors="replace"))
        if found:
            return process, found.group()
        time.sleep(0.05)
    process.kill()
    raise SystemExit(f"the relay did not start:\n{pathlib.Path(log.name).read_text(errors='replace')}")


def validator(document, schema):
    """Checks values against a schema that refers into its document."""
    return jsonschema_rs.Draft202012Validator(schema | {"components": document["components"]})


def check_rest(relay, document, account, failures):
    """What is said of a real task must be as described."""
    task_id = client.publish(relay, account, b"\0asm\1\0\0\0", b"input")
    paths = {
        "/v1/tasks": f"/v1/tasks?requester={account.address}",
        "/v1/tasks/{id}": f"/v1/tasks/{task_id}",
        "/v1/tasks/{id}/events": f"/v1/tasks/{task_id}/events",
        "/v1/tasks/{id}/evidence": f"/v1/tasks/{task_id}/evidence",
        "/v1/tasks/{id}/explain": f"/v1/tasks/{task_id}/explain",
        "/v1/tasks/{id}/webhooks": f"/v1/tasks/{task_id}/webhooks",
        "/v1/keys": "/v1/keys",
        "/v1/usage": "/v1/usage",
        "/v1/info": "/v1/info",
        "/v1/providers": "/v1/providers",
        "/v1/stats": "/v1/stats",
    }
    for path, filled in paths.items():
        answer = relay.json("GET", filled)
        schema = document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        for error in validator(document, schema).iter_errors(answer):
            failures.check(False, f"GET {path}: {error.message} at {error.instance_path}")
    return task_id, len(paths)


def open_stream(relay, path, headers):
    """Asks for an event stream; answers status and media type, and the response, still open, or a refusal's JSON."""
    request = urllib.request.Request(relay.url + path, headers={"Accept": STREAM} | headers)
    try:
        answer = urllib.request.urlopen(request, timeout=CALL_SECONDS)
        return answer.status, answer.headers.get_content_type(), answer
    except urllib.error.HTTPError as error:
        return error.code, error.headers.get_content_type(), json.load(error)


def events(stream):
    """Its events as they come, each with its fields; comments are left out."""
    event = {}
    for line in stream:
        name, _, value = line.decode().rstrip("\n").partition(":")
        if name:
            event[name] = value.removeprefix(" ")
        elif event:
            yield event
            event = {}


def check_streams(relay, document, account, task_id, failures):
    """Opens streams rightly and wrongly: what they begin with, and how they are refused, must be as described."""
    of_task, of_requester = "/v1/tasks/{id}/events", "/v1/events"
    asked = f"{of_requester}?requester={account.address}"
    authorized = {"Authorization": f"Bearer {relay.key}"}
    good = [
        (of_requester, asked, {}, ["following"]),
        (of_requester, asked + "&last_event_id=0", {}, ["following", "published"]),
        (of_requester, asked, {"Last-Event-ID": "0"}, ["following", "published"]),
        (of_task, f"/v1/tasks/{task_id}/events", {}, ["published"]),
    ]
    for path, filled, headers, expected in good:
        status, kind, stream = open_stream(relay, filled, authorized | headers)
        what = f"GET {filled} {headers}"
        failures.check((status, kind) == (200, STREAM), f"{what}: {status} {kind}")
        if status != 200:
            continue
        described = document["paths"][path]["get"]["responses"]["200"]["content"][kind]["schema"]
        data = validator(document, described["properties"]["data"]["contentSchema"])
        with stream:
            names = []
            for event in events(stream):
                for error in validator(document, described).iter_errors(event):
                    failures.check(False, f"{what}: {event} is not as described: {error.message}")
                for error in data.iter_errors(json.loads(event["data"])):
                    failures.check(False, f"{what}: {error.message} at {error.instance_path} of {event['data']}")
                names.append(event["event"])
                if len(names) == len(expected):
                    break
        failures.check(names == expected, f"{what}: {names}")
    wrong = [
        (of_requester, of_requester, authorized, 400),
        (of_requester, of_requester + "?requester=0x12", authorized, 400),
        (of_requester, asked + "&last_event_id=-1", authorized, 400),
        (of_requester, asked + "&unknown=1", authorized, 400),
        (of_requester, asked, authorized | {"Last-Event-ID": "x"}, 400),
        (of_requester, asked, {}, 401),
        (of_requester, asked, {"Authorization": "Bearer nobody's"}, 401),
        (of_task, f"/v1/tasks/{task_id}/events", authorized | {"Last-Event-ID": "x"}, 400),
        (of_task, f"/v1/tasks/{ZERO_ID}/events", authorized, 404),
    ]
    shape = validator(document, document["components"]["responses"]["Error"]["content"]["application/json"]["schema"])
    for path, filled, headers, expected in wrong:
        status, kind, refusal = open_stream(relay, filled, headers)
        what = f"GET {filled} {headers.get('Last-Event-ID', '')}"
        failures.check((status, kind) == (expected, "application/json"), f"{what}: {status} {kind}")
        if status < 400:
            refusal.close()
            continue
        failures.check(shape.is_valid(refusal), f"{what}: {refusal}")
        words = document["paths"][path]["get"]["responses"].get(str(status), {}).get("description", "").split(", ")
        failures.check(refusal.get("error", {}).get("code") in words, f"{what}: {refusal} is not one of {words}")
    return len(good) + len(wrong)


def call(url, key, body):
    """Posts a call; answers the HTTP status and the JSON."""
    request = urllib.request.Request(url + "/rpc", data=body.encode(), method="POST")
    request.add_header("Content-Type", "application/json")
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=CALL_SECONDS) as answer:
            return answer.status, json.loads(answer.read() or "null")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or "null")


def message(method, params):
    return '{"jsonrpc":"2.0","id":1,"method":%s,"params":%s}' % (json.dumps(method), params)


def good_params(task_id, task, signature):
    """Parameters that are well formed: the call goes well, or the market refuses it."""
    provider, now = "0x" + "11" * 20, client.rfc3339(int(time.time()))
    accept = {"task_id": task_id, "provider": provider, "attempt": 1, "lease_until": now}
    proof = {
        "task_id": task_id,
        "provider": provider,
        "attempt": 1,
        "model_hash": "00" * 32,
        "input_hash": "00" * 32,
        "result_hash": "11" * 32,
        "result_cid": "artifact://" + "11" * 32,
        "started_at": now,
        "finished_at": now,
        "gpu_name": "CPU",
    }
    registration = {
        "provider": provider,
        "node_id": ZERO_ID,
        "relay_id": "relay",
        "relay_url": "ws://127.0.0.1/",
        "session_id": "none",
        "nonce": ZERO_ID,
        "timestamp": now,
        "metadata_hash": ZERO_ID,
    }
    update = {"provider": provider, "node_id": ZERO_ID, "status": "online", "issued_at": now}
    return {
        "zor_publishTask": {"task": task, "signature": signature, "verifying_contract": None},
        "zor_acceptTask": {"accept": accept, "signature": signature},
        "zor_submitProof": {"proof": proof, "signature": signature},
        "zor_getTaskStatus": {"task_id": task_id},
        "zor_registerNode": {"registration": registration, "metadata": "{}", "signature": signature},
        "zor_updateNodeStatus": {"update": update, "signature": signature},
        "zor_getOpenTasks": {"filter": {"limit": 10}, "cursor": None},
        "zor_getMarketStats": {},
        "rpc.discover": {},
    }


class Rpc:
    """Calls methods and checks each answer against the OpenRPC document."""

    def __init__(self, url, key, document, failures):
        self.url, self.key, self.failures, self.calls = url, key, failures, 0
        self.methods = {method["name"]: method for method in document["methods"]}
        self.results = {
            name: validator(document, method["result"]["schema"]) for name, method in self.methods.items()
        }

    def try_out(self, name, params, key=None):
        """Makes a call; answers its error's code, or 0."""
        self.calls += 1
        status, answer = call(self.url, self.key if key is None else key, message(name, params))
        what = f"{name} {params[:200]} -> {status} {json.dumps(answer)[:500]}"
        self.failures.check(status == 200 and answer.get("jsonrpc") == "2.0" and answer.get("id") == 1, what)
        if "result" in answer:
            for error in self.results[name].iter_errors(answer["result"]):
                self.failures.check(False, f"{name}: {error.message} at {error.instance_path}")
            return 0
        error = answer.get("error", {})
        documented = {one["code"]: one["message"].split(", ") for one in self.methods[name]["errors"]}
        word = (error.get("data") or {}).get("code")
        self.failures.check(word in documented.get(error.get("code"), []), f"not documented: {what}")
        self.failures.check(word not in ("internal", "unavailable"), f"the relay failed: {what}")
        return error.get("code")


def check_rpc(rpc, good, failures):
    failures.check(set(good) == set(rpc.methods), f"methods: {sorted(rpc.methods)}, expected {sorted(good)}")
    for name, method in rpc.methods.items():
        params = good[name]
        names = [param["name"] for param in method["params"]]
        by_name = rpc.try_out(name, json.dumps(params))
        by_position = rpc.try_out(name, json.dumps([params[param] for param in names]))
        failures.check(by_name == by_position, f"{name}: {by_name} by name, {by_position} by position")
        needs_key = "API key with" in method["description"]
        if needs_key:
            failures.check(rpc.try_out(name, json.dumps(params), key="") == -32001, f"{name} takes calls without a key")
        failures.check(rpc.try_out(name, json.dumps(params | {"extra": 1})) == -32602, f"{name} takes an extra parameter")
        for hostile in HOSTILE:
            rpc.try_out(name, hostile if hostile[0] in "[{" else f"[{hostile}]")
            for param in names:
                members = [f"{json.dumps(one)}:{json.dumps(params[one])}" for one in names if one != param]
                rpc.try_out(name, "{" + ",".join([*members, f"{json.dumps(param)}:{hostile}"]) + "}")
                inner = params[param]
                for field in inner if isinstance(inner, dict) else []:
                    rest = [f"{json.dumps(one)}:{json.dumps(inner[one])}" for one in inner if one != field]
                    broken = "{" + ",".join([*rest, f"{json.dumps(field)}:{hostile}"]) + "}"
                    rpc.try_out(name, "{" + ",".join([*members, f"{json.dumps(param)}:{broken}"]) + "}")


def run_schemathesis(url, key, examples, seed):
    command = [sys.executable, "-m", "schemathesis.cli", "run", url + "/openapi.json"]
    command += ["--header", f"Authorization: Bearer {key}", "--checks", ",".join(CHECKS), "--warnings", "off"]
    command += ["--phases", "examples,coverage,fuzzing", "--seed", str(seed), "--max-examples", str(examples)]
    # One worker: hypothesis takes sources apart, in which CPython 3.11 confuses its threads' depths of recursion.
    command += ["--workers", "1", "--continue-on-failure", "--request-timeout", str(CALL_SECONDS), "--no-color"]
    with tempfile.TemporaryDirectory() as folder:
        # Its own folders and database of examples go there, and it looks there for its settings.
        (pathlib.Path(folder) / "schemathesis.toml").write_text(SETTINGS)
        try:
            return subprocess.run(command, cwd=folder, timeout=SCHEMATHESIS_SECONDS, check=False).returncode
        except subprocess.TimeoutExpired:
            return f"not done within {SCHEMATHESIS_SECONDS} s"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--relay", default=ROOT / "target" / "debug" / "compute-relay")
    parser.add_argument("--examples", type=int, default=20, help="requests that schemathesis makes up for each call")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    failures, key = Failures(), secrets.token_hex(16)
    with tempfile.TemporaryDirectory() as folder, open(pathlib.Path(folder) / "log", "w") as log:
        process, url = start(pathlib.Path(arguments.relay).resolve(), pathlib.Path(folder) / "store", key, log)
        try:
            relay = client.Relay(url, key)
            openapi, openrpc = relay.json("GET", "/openapi.json"), relay.json("GET", "/openrpc.json")
            account = Account.create()
            task_id, answers = check_rest(relay, openapi, account, failures)
            streams = check_streams(relay, openapi, account, task_id, failures)
            said = f"{answers} answers about a real task and {streams} of event streams are as described"
            print(f"REST: {said}" if not failures else "REST: wrong")
            view = relay.json("GET", f"/v1/tasks/{task_id}")
            rpc = Rpc(url, key, openrpc, failures)
            check_rpc(rpc, good_params(task_id, view["task"], view["signature"]), failures)
            print(f"JSON-RPC: {len(rpc.methods)} methods, {rpc.calls} calls, {len(failures)} wrong")
            code = run_schemathesis(url, key, arguments.examples, arguments.seed)
            failures.check(code == 0, f"schemathesis: exit code {code}")
            failures.check(relay.call("GET", "/healthz") == b"ok\n", "the relay is not well after it")
            failures.check(process.poll() is None, "the relay ended")
        finally:
            process.terminate()
            try:
                process.wait(CALL_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                failures.check(False, "the relay did not end when it was told to")
        said = pathlib.Path(log.name).read_text(errors="replace")
        faults = [line for line in said.splitlines() if " ERROR " in line or "panicked" in line]
        failures.check(not faults, "the relay's log has errors: " + "\n".join(faults[:10]))
    print("the contract holds" if not failures else f"{len(failures)} things are wrong")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
