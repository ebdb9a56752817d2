"""A complete client of the market in Python: publishes a signed task, waits for it, and checks the provider's proof.

Needs eth-account (PyPI). Nothing of the project is imported: this is written from docs/protocol.md alone.

usage: client.py RELAY_URL MODULE.wasm INPUT_FILE      (the API key comes from ZORAI_AI_API_KEY)
"""

import hashlib
import json
import os
import secrets
import sys
import time
import urllib.error
import urllib.request
from datetime import datetime, timezone

from eth_account import Account
from eth_account.messages import encode_typed_data

ZERO = "0x" + "00" * 20
TYPES = {
    "TaskConfig": "string runtime,string params,string gpuType,uint32 gpuCount,uint64 minVram,uint64 maxDuration,uint32 maxAttempts",
    "Task": "address requester,string modelCid,bytes32 modelHash,string inputCid,bytes32 inputHash,TaskConfig config,address token,"
    "uint256 budget,uint256 providerStake,uint256 disputeBond,uint64 deadline,uint64 disputeWindow,uint64 arbiterWindow,"
    "address arbiter,bytes32 salt",
    "ComputeProof": "bytes32 taskId,address provider,uint32 attempt,bytes32 modelHash,bytes32 inputHash,bytes32 resultHash,"
    "string resultCid,uint64 startedAt,uint64 finishedAt,string gpuName",
    "ApproveResult": "bytes32 taskId,address provider,uint32 attempt,bytes32 resultHash,uint64 issuedAt",
}


def fields(name):
    return [dict(zip(("type", "name"), part.split(" "))) for part in TYPES[name].split(",")]


def snake(name):
    return "".join("_" + c.lower() if c.isupper() else c for c in name)


def typed_value(kind, value):
    """Our JSON form of a field, as EIP-712 hashes it."""
    if kind in TYPES:
        return {f["name"]: typed_value(f["type"], value[snake(f["name"])]) for f in fields(kind)}
    if kind == "bytes32":
        return bytes.fromhex(value.removeprefix("0x"))
    if kind.startswith("uint"):
        if isinstance(value, str) and "T" in value:
            return int(datetime.fromisoformat(value.replace("Z", "+00:00")).timestamp())
        return int(value)
    return value


def typed(name, message, chain_id, contract):
    domain = {"name": "ZORAI Compute Market", "version": "1", "chainId": chain_id, "verifyingContract": contract}
    types = {name: fields(name)}
    if name == "Task":
        types["TaskConfig"] = fields("TaskConfig")
    return encode_typed_data(domain, types, typed_value(name, message))


def digest(signable):
    from eth_utils import keccak

    return "0x" + keccak(b"\x19" + signable.version + signable.header + signable.body).hex()


def rfc3339(seconds):
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


class Relay:
    def __init__(self, url, key):
        self.url, self.key = url.rstrip("/"), key

    def call(self, method, path, body=None, kind="application/json"):
        request = urllib.request.Request(self.url + path, data=body, method=method)
        request.add_header("Authorization", f"Bearer {self.key}")
        if body is not None:
            request.add_header("Content-Type", kind)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            raise SystemExit(f"{method} {path}: {error.code} {error.read().decode(errors='replace')}") from None
        except urllib.error.URLError as error:
            raise SystemExit(f"{method} {path}: {error.reason}") from None

    def json(self, method, path, value=None):
        return json.loads(self.call(method, path, None if value is None else json.dumps(value).encode()))

    def upload(self, data):
        name = hashlib.sha256(data).hexdigest()
        self.call("PUT", f"/v1/artifacts/{name}", data, "application/octet-stream")
        return name


def publish(relay, account, module, data):
    model, given = relay.upload(module), relay.upload(data)
    task = {
        "requester": account.address,
        "model_cid": f"artifact://{model}",
        "model_hash": model,
        "input_cid": f"artifact://{given}",
        "input_hash": given,
        "config": {
            "runtime": "wasm",
            "params": "{}",
            "gpu_type": "",
            "gpu_count": 0,
            "min_vram": 0,
            "max_duration": 60,
            "max_attempts": 3,
        },
        "token": ZERO,
        "budget": "0",
        "provider_stake": "0",
        "dispute_bond": "0",
        "deadline": rfc3339(int(time.time()) + 3600),
        "dispute_window": 86400,
        "arbiter_window": 604800,
        "arbiter": ZERO,
        "salt": "0x" + secrets.token_hex(32),
    }
    domains = relay.json("GET", "/v1/info")["domains"]
    # The zero contract: a task that nobody settles on a chain.
    domain = next(domain for domain in domains if int(domain["verifying_contract"], 16) == 0)
    contract = domain["verifying_contract"]
    signable = typed("Task", task, domain["chain_id"], contract)
    signature = "0x" + account.sign_message(signable).signature.hex().removeprefix("0x")
    answer = relay.json("POST", "/v1/tasks", {"task": task, "signature": signature, "verifying_contract": contract})
    assert answer["task_id"] == digest(signable), "the relay computed another task id"
    return answer["task_id"]


def wait(relay, task_id, statuses, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        view = relay.json("GET", f"/v1/tasks/{task_id}")
        if view["status"] in statuses:
            return view
        time.sleep(0.2)
    raise SystemExit(f"the task is still {view['status']}")


def check(view, result):
    """The four checks of a proof; raises where one fails."""
    chain_id, contract = view["chain_id"], view["verifying_contract"]
    task = typed("Task", view["task"], chain_id, contract)
    assert digest(task) == view["task_id"], "task id"
    assert Account.recover_message(task, signature=view["signature"]) == view["task"]["requester"], "requester"
    proof = view["proof"]
    signer = Account.recover_message(typed("ComputeProof", proof, chain_id, contract), signature=proof["signature"])
    assert signer == proof["provider"], "provider"
    assert proof["task_id"] == view["task_id"] and proof["attempt"] == view["attempt"], "attempt"
    for name in ("model_hash", "input_hash"):
        assert int(view["task"][name], 16) == 0 or view["task"][name] == proof[name], name
    assert hashlib.sha256(result).hexdigest() == proof["result_hash"], "result"


def approve(relay, account, view):
    mutation = {
        "task_id": view["task_id"],
        "provider": view["proof"]["provider"],
        "attempt": view["attempt"],
        "result_hash": view["proof"]["result_hash"],
        "issued_at": rfc3339(int(time.time())),
    }
    signable = typed("ApproveResult", mutation, view["chain_id"], view["verifying_contract"])
    signature = "0x" + account.sign_message(signable).signature.hex().removeprefix("0x")
    return relay.json("POST", f"/v1/tasks/{view['task_id']}/approve", {"mutation": mutation, "signature": signature})


def main():
    if len(sys.argv) != 4 or not os.environ.get("ZORAI_AI_API_KEY"):
        raise SystemExit(__doc__.strip())
    url, module, given = sys.argv[1:]
    relay = Relay(url, os.environ["ZORAI_AI_API_KEY"])
    account = Account.create()
    task_id = publish(relay, account, open(module, "rb").read(), open(given, "rb").read())
    view = wait(relay, task_id, {"submitted", "completed", "failed", "expired"})
    if view["status"] not in {"submitted", "completed"}:
        raise SystemExit(f"the task is {view['status']}: {view['failure']}")
    result = relay.call("GET", f"/v1/tasks/{task_id}/result")
    check(view, result)
    print(json.dumps({"task_id": task_id, "status": approve(relay, account, view)["status"], "result": result.decode()}))


if __name__ == "__main__":
    main()
