#!/usr/bin/env python3
"""Makes the test vectors for signing: vectors/eip712.json.

Usage: make_vectors.py            writes the file
       make_vectors.py --check    fails if the file is not what would be written

Needs PyPI's eth-account (pip install eth-account==0.14.0), an implementation of EIP-712 that shares no code with the
market's. Everything else that it takes to hash the market's JSON is below: FIELDS says which JSON field is which field of
the signed struct, and `to_typed` how its value is read. The output is the same each time (RFC 6979 signatures).
"""

import datetime
import json
import pathlib
import sys

from eth_account import Account
from eth_account._utils.encode_typed_data.encoding_and_hashing import encode_type
from eth_account.messages import encode_typed_data
from eth_utils import keccak, to_checksum_address

OUT = pathlib.Path(__file__).resolve().parent.parent / "vectors" / "eip712.json"

ABOUT = (
    "Test vectors for the market's EIP-712 signatures, made by scripts/make_vectors.py. The private keys are the first three "
    "development accounts of Anvil and Hardhat: everybody knows them, so never send anything to them. Some integers are larger "
    "than 2^53: read them with a parser that keeps them exact."
)

# Known to everybody: Anvil's and Hardhat's development accounts.
KEYS = [
    "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80",
    "0x59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d",
    "0x5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a",
]
ADDRESSES = [Account.from_key(key).address for key in KEYS]

ZERO_ADDRESS = "0x" + "00" * 20
DOMAINS = {
    "unsettled": {"chain_id": 1, "verifying_contract": ZERO_ADDRESS},
    "settled": {"chain_id": 31337, "verifying_contract": "0x5FbDB2315678afecb367f032d93F642f64180aa3"},
}
DOMAIN_TYPE = [
    {"name": "name", "type": "string"},
    {"name": "version", "type": "string"},
    {"name": "chainId", "type": "uint256"},
    {"name": "verifyingContract", "type": "address"},
]

# Per struct: (field in JSON, type). The field's name in the struct is the same in camelCase. `time` is RFC 3339 in JSON and
# uint64 unix seconds in the struct; `sha256` is 64 hex digits without 0x in JSON and bytes32 in the struct; uint256 is a
# decimal string in JSON; smaller integers are JSON numbers.
TIME, SHA256 = "time", "sha256"
FIELDS = {
    "TaskConfig": [
        ("runtime", "string"),
        ("params", "string"),
        ("gpu_type", "string"),
        ("gpu_count", "uint32"),
        ("min_vram", "uint64"),
        ("max_duration", "uint64"),
        ("max_attempts", "uint32"),
    ],
    "Task": [
        ("requester", "address"),
        ("model_cid", "string"),
        ("model_hash", SHA256),
        ("input_cid", "string"),
        ("input_hash", SHA256),
        ("config", "TaskConfig"),
        ("token", "address"),
        ("budget", "uint256"),
        ("provider_stake", "uint256"),
        ("dispute_bond", "uint256"),
        ("deadline", TIME),
        ("dispute_window", "uint64"),
        ("arbiter_window", "uint64"),
        ("arbiter", "address"),
        ("salt", "bytes32"),
    ],
    "CancelTask": [("task_id", "bytes32"), ("issued_at", TIME)],
    "AcceptTask": [("task_id", "bytes32"), ("provider", "address"), ("attempt", "uint32"), ("lease_until", TIME)],
    "FailTask": [
        ("task_id", "bytes32"),
        ("provider", "address"),
        ("attempt", "uint32"),
        ("code", "string"),
        ("message", "string"),
        ("issued_at", TIME),
    ],
    "ComputeProof": [
        ("task_id", "bytes32"),
        ("provider", "address"),
        ("attempt", "uint32"),
        ("model_hash", SHA256),
        ("input_hash", SHA256),
        ("result_hash", SHA256),
        ("result_cid", "string"),
        ("started_at", TIME),
        ("finished_at", TIME),
        ("gpu_name", "string"),
    ],
    "ApproveResult": [
        ("task_id", "bytes32"),
        ("provider", "address"),
        ("attempt", "uint32"),
        ("result_hash", SHA256),
        ("issued_at", TIME),
    ],
    "DisputeTask": [
        ("task_id", "bytes32"),
        ("provider", "address"),
        ("attempt", "uint32"),
        ("result_hash", SHA256),
        ("reason", "string"),
        ("evidence", "string"),
        ("issued_at", TIME),
    ],
    "ResolveDispute": [
        ("task_id", "bytes32"),
        ("attempt", "uint32"),
        ("provider_bps", "uint32"),
        ("issued_at", TIME),
    ],
    "RegisterNode": [
        ("provider", "address"),
        ("node_id", "bytes32"),
        ("relay_id", "string"),
        ("relay_url", "string"),
        ("session_id", "string"),
        ("nonce", "bytes32"),
        ("timestamp", TIME),
        ("metadata_hash", "bytes32"),
    ],
    "UpdateNodeStatus": [
        ("provider", "address"),
        ("node_id", "bytes32"),
        ("status", "string"),
        ("issued_at", TIME),
    ],
    "ReadTask": [("task_id", "bytes32"), ("reader", "address"), ("issued_at", TIME)],
    "InferenceReceipt": [
        ("request_id", "string"),
        ("provider", "address"),
        ("node_id", "bytes32"),
        ("relay_id", "string"),
        ("request_hash", SHA256),
        ("response_hash", SHA256),
        ("model", "string"),
        ("engine", "string"),
        ("quantization", "string"),
        ("prompt_tokens", "uint64"),
        ("completion_tokens", "uint64"),
        ("started_at", TIME),
        ("finished_at", TIME),
    ],
}


def camel(name):
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def solidity_type(kind):
    return {TIME: "uint64", SHA256: "bytes32"}.get(kind, kind)


def struct_types(name):
    """The struct's definition as EIP-712 libraries take it, with the structs that it nests."""
    types = {name: [{"name": camel(field), "type": solidity_type(kind)} for field, kind in FIELDS[name]]}
    for _, kind in FIELDS[name]:
        if kind in FIELDS:
            types.update(struct_types(kind))
    return types


def to_typed(name, message):
    """The values to sign, read from the JSON form."""
    return {camel(field): typed_value(kind, message[field]) for field, kind in FIELDS[name]}


def typed_value(kind, value):
    if kind in FIELDS:
        return to_typed(kind, value)
    if kind == TIME:
        return int(datetime.datetime.fromisoformat(value).timestamp())
    if kind in (SHA256, "bytes32"):
        return bytes.fromhex(value.removeprefix("0x"))
    if kind == "uint256":
        return int(value)
    return value


def hashes(name, domain, message):
    """The domain separator, the struct's hash, and the digest that is signed."""
    signable = encode_typed_data(
        full_message={
            "types": {"EIP712Domain": DOMAIN_TYPE, **struct_types(name)},
            "primaryType": name,
            "domain": {
                "name": "ZORAI Compute Market",
                "version": "1",
                "chainId": domain["chain_id"],
                "verifyingContract": domain["verifying_contract"],
            },
            "message": to_typed(name, message),
        }
    )
    return signable.header, signable.body, keccak(b"\x19" + signable.version + signable.header + signable.body)


def hex0x(data):
    return "0x" + bytes(data).hex()


def sign(digest, key):
    return hex0x(Account.unsafe_sign_hash(digest, key).signature)


def recover(digest, signature):
    """Whom the signature is of, or None where no key can have made it."""
    try:
        return Account._recover_hash(digest, signature=bytes.fromhex(signature[2:]))
    except Exception:
        return None


# Values for the variants of each struct, by type. `edge` holds what is smallest or empty, `extreme` what is largest, and text
# beyond ASCII: several scripts, a pair of surrogates, a combining accent that must not be composed, control characters.
UNICODE = "Größe 模型 ✓ 🦀 e\u0301 \"quoted\" \\ \n\t\u0000"
PLAIN = {
    "string": lambda field: f"some {field.replace('_', ' ')}",
    "uint32": lambda _: 2,
    "uint64": lambda _: 40960,
    "uint256": lambda _: "10000000000000000",
    "bytes32": lambda field: hex0x(keccak(text=field)),
    SHA256: lambda field: keccak(text=field).hex(),
    TIME: lambda field: "2026-11-23T12:00:00Z" if field == "started_at" else "2026-11-23T12:34:56Z",
}
EDGE = {
    "string": lambda _: "",
    "uint32": lambda _: 0,
    "uint64": lambda _: 0,
    "uint256": lambda _: "0",
    "bytes32": lambda _: "0x" + "00" * 32,
    SHA256: lambda _: "00" * 32,
    TIME: lambda _: "1970-01-01T00:00:00Z",
}
EXTREME = {
    "string": lambda _: UNICODE,
    "uint32": lambda _: 2**32 - 1,
    "uint64": lambda _: 2**64 - 1,
    "uint256": lambda _: str(2**256 - 1),
    "bytes32": lambda _: "0x" + "ff" * 32,
    SHA256: lambda _: "ff" * 32,
    TIME: lambda _: "9999-12-30T22:00:00Z",
}
# Fields whose text is not free.
SET = {
    "runtime": {"plain": "embed", "edge": "wasm", "extreme": "wasm"},
    "params": {"plain": "{}", "edge": "", "extreme": '{"args":["é","🦀"],"fuel":9007199254740991}'},
    "status": {"plain": "online", "edge": "draining", "extreme": "offline"},
    "model_cid": {
        "plain": "artifact://" + "ab" * 32,
        "edge": "file:///m",
        "extreme": "https://example.org/" + "ü模🦀/" * 20 + "?a=b&c=%20#d",
    },
    "input_cid": {
        "plain": "ipfs://bafkreifzjut3te7nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e",
        "edge": "http://127.0.0.1/i",
        "extreme": "oci://registry.example/image@sha256:" + "cd" * 32,
    },
    "result_cid": {
        "plain": "artifact://" + "ef" * 32,
        "edge": "artifact://" + "00" * 32 + "/",
        "extreme": "https://example.org/%F0%9F%A6%80/結果",
    },
}
# The requester's and the arbiter's messages about a task do not name their signer; the others do.
NAME_THEIR_SIGNER = set(FIELDS) - {"CancelTask", "ApproveResult", "DisputeTask", "ResolveDispute"}
VARIANTS = {"plain": PLAIN, "edge": EDGE, "extreme": EXTREME}


def example(name, variant, signer):
    """A message of a struct. Where it names its signer, that is `signer`."""
    message = {}
    for field, kind in FIELDS[name]:
        if field in SET:
            message[field] = SET[field][variant]
        elif kind in FIELDS:
            message[field] = example(kind, variant, signer)
        elif kind == "address":
            named = field in ("requester", "provider", "reader") and name in NAME_THEIR_SIGNER
            other = {"plain": ADDRESSES[2], "edge": ZERO_ADDRESS, "extreme": to_checksum_address("0x" + "ff" * 20)}
            message[field] = signer if named else other[variant]
        else:
            message[field] = VARIANTS[variant][kind](field)
    return message


def vector(name, domain_name, variant, key):
    domain = DOMAINS[domain_name]
    message = example(name, variant, Account.from_key(key).address)
    separator, struct_hash, digest = hashes(name, domain, message)
    signature = sign(digest, key)
    assert recover(digest, signature) == Account.from_key(key).address
    return {
        "id": f"{name}/{domain_name}/{variant}",
        "type": name,
        "type_string": encode_type(name, struct_types(name)),
        "domain": domain,
        "message": message,
        "domain_separator": hex0x(separator),
        "struct_hash": hex0x(struct_hash),
        "digest": hex0x(digest),
        "private_key": key,
        "signer": Account.from_key(key).address,
        "signature": signature,
    }


def malformed_signatures(good):
    """Signatures that must be refused whatever they sign, made from a good one."""
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    r, s, v = good[2:66], int(good[66:130], 16), int(good[130:], 16)
    return [
        {"why": "the twin with s in the upper half", "signature": f"0x{r}{order - s:064x}{55 - v:02x}"},
        {"why": "s in the upper half, v kept", "signature": f"0x{r}{order - s:064x}{v:02x}"},
        {"why": "v is 29", "signature": good[:130] + "1d"},
        {"why": "v is 2", "signature": good[:130] + "02"},
        {"why": "v is 255", "signature": good[:130] + "ff"},
        {"why": "64 bytes", "signature": good[:130]},
        {"why": "66 bytes", "signature": good + "00"},
        {"why": "no 0x", "signature": good[2:]},
        {"why": "not hex", "signature": good[:-1] + "g"},
    ]


def mismatches(good):
    """Right signatures of something else: what they recover to is not the signer."""
    other_domain = next(domain for domain in DOMAINS.values() if domain != good["domain"])
    flipped = {position: bytearray.fromhex(good["signature"][2:]) for position in (0, 31, 63, 64)}
    for position, signature in flipped.items():
        signature[position] ^= 1 if position < 64 else 27 ^ 28
    changed = {**good["message"], "issued_at": "2026-11-23T12:34:57Z"}
    cases = [
        ("another domain", other_domain, good["message"], good["signature"]),
        ("another chain id", {**good["domain"], "chain_id": 2}, good["message"], good["signature"]),
        ("a field changed by one", good["domain"], changed, good["signature"]),
        ("r and s zero", good["domain"], good["message"], "0x" + "00" * 64 + "1b"),
        ("r beyond the field", good["domain"], good["message"], "0x" + "ff" * 32 + good["signature"][66:]),
    ]
    for position, signature in flipped.items():
        why = f"a bit of byte {position} flipped" if position < 64 else "v exchanged"
        cases.append((why, good["domain"], good["message"], hex0x(signature)))
    result = []
    for why, domain, message, signature in cases:
        recovers = recover(hashes(good["type"], domain, message)[2], signature)
        assert recovers != good["signer"], why
        result.append(
            {
                "why": why,
                "type": good["type"],
                "domain": domain,
                "message": message,
                "signature": signature,
                "recovers": recovers,
            }
        )
    return result


def build():
    names = [name for name in FIELDS if name != "TaskConfig"]
    vectors = [
        vector(name, domain, variant, KEYS[(index + place) % 2])
        for index, name in enumerate(names)
        for domain in DOMAINS
        for place, variant in enumerate(VARIANTS)
    ]
    by_id = {vector["id"]: vector for vector in vectors}
    return {
        "about": ABOUT,
        "domain": {"name": "ZORAI Compute Market", "version": "1"},
        "vectors": vectors,
        "malformed_signatures": malformed_signatures(by_id["CancelTask/unsettled/plain"]["signature"]),
        "mismatches": mismatches(by_id["CancelTask/unsettled/plain"])
        + mismatches(by_id["UpdateNodeStatus/settled/plain"]),
    }


def main():
    text = json.dumps(build(), indent=2, ensure_ascii=True) + "\n"
    if sys.argv[1:] == ["--check"]:
        if not OUT.exists() or OUT.read_text(encoding="utf-8") != text:
            sys.exit(f"{OUT} is not what {pathlib.Path(__file__).name} makes: run it and look at the difference")
        print(f"{OUT}: {text.count('private_key')} vectors are as made")
    elif sys.argv[1:]:
        sys.exit(__doc__)
    else:
        OUT.parent.mkdir(parents=True, exist_ok=True)
        OUT.write_text(text, encoding="utf-8")
        print(f"wrote {OUT}")


if __name__ == "__main__":
    main()
