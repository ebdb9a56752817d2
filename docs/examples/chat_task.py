"""Publishes a task through the chat endpoint: asks what to sign, signs exactly that, and sends the body again.

Needs eth-account (PyPI). Nothing of the project is imported: this is written from docs/protocol.md alone.

usage: chat_task.py RELAY_URL MODULE.wasm INPUT_FILE      (the API key comes from ZORAI_AI_API_KEY)
"""

import hashlib
import json
import os
import sys
import urllib.error
import urllib.request

from eth_account import Account
from eth_account.messages import encode_typed_data


class Relay:
    def __init__(self, url, key):
        self.url, self.key = url.rstrip("/"), key

    def call(self, method, path, body, kind="application/json"):
        request = urllib.request.Request(self.url + path, data=body, method=method)
        request.add_header("Authorization", f"Bearer {self.key}")
        request.add_header("Content-Type", kind)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def upload(self, data):
        name = hashlib.sha256(data).hexdigest()
        status, answer = self.call("PUT", f"/v1/artifacts/{name}", data, "application/octet-stream")
        assert status in (200, 201), answer
        return f"artifact://{name}"

    def chat(self, body):
        status, answer = self.call("POST", "/v1/chat/completions", json.dumps(body).encode())
        return status, json.loads(answer)


def main():
    if len(sys.argv) != 4 or not os.environ.get("ZORAI_AI_API_KEY"):
        raise SystemExit(__doc__.strip())
    url, module, given = sys.argv[1:]
    relay = Relay(url, os.environ["ZORAI_AI_API_KEY"])
    account = Account.create()
    body = {
        "model": "upper",
        "requester": account.address,
        "model_cid": relay.upload(open(module, "rb").read()),
        "input_cid": relay.upload(open(given, "rb").read()),
        "budget": "0",
        "config": {"runtime": "wasm", "max_duration": 60},
    }
    status, refused = relay.chat(body)
    assert (status, refused["error"]["code"]) == (400, "signature_required"), refused
    signable = encode_typed_data(full_message=refused["error"]["typed_data"])
    body["signature"] = "0x" + account.sign_message(signable).signature.hex().removeprefix("0x")
    status, at_once = relay.chat({**body, "background": True})
    assert status == 202, at_once
    status, answer = relay.chat(body)
    assert status == 200, answer
    assert answer["zorai"]["task_id"] == at_once["zorai"]["task_id"], "the same body is the same task"
    content = answer["choices"][0]["message"]["content"]
    assert hashlib.sha256(content.encode()).hexdigest() == answer["zorai"]["result_hash"], "result"
    print(json.dumps({"content": content, "zorai": answer["zorai"]}))


if __name__ == "__main__":
    main()
