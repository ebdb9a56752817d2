//! JSON Schemas of what is text in JSON. Those of everything else are derived where the type stands.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::eip712::Signature;
use crate::params::Runtime;
use crate::primitives::{Amount, Bytes32, ContentHash, MAX_REFERENCE_BYTES, Reference, TaskId, Timestamp};
use crate::record::Provider;

/// Gives types a name and a schema.
macro_rules! schemas {
    ($($type:ty as $name:literal: $schema:tt)*) => {$(
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    )*};
}

schemas! {
    TaskId as "TaskId": {
        "type": "string",
        "pattern": "^0x[0-9a-fA-F]{64}$",
        "description": "The EIP-712 digest of a signed task.",
    }
    Bytes32 as "Bytes32": {
        "type": "string",
        "pattern": "^0x[0-9a-fA-F]{64}$",
        "description": "32 bytes.",
    }
    ContentHash as "ContentHash": {
        "type": "string",
        "pattern": "^(0x)?[0-9a-fA-F]{64}$",
        "description": "The SHA-256 of some content; all zero for unpinned. Written without 0x.",
    }
    Provider as "Address": {
        "type": "string",
        "pattern": "^0x[0-9a-fA-F]{40}$",
        "description": "An address; in mixed case only with a right EIP-55 checksum, as it is written.",
    }
    Signature as "Signature": {
        "type": "string",
        "pattern": "^0x[0-9a-fA-F]{130}$",
        "description": "A secp256k1 signature, r, s and v, with s in the lower half of the group order and v 27 or 28.",
    }
    Amount as "Amount": {
        "type": "string",
        "pattern": "^[0-9]+$",
        "description": "An amount of at most 256 bits in the token's smallest unit, in decimal.",
    }
    Timestamp as "Timestamp": {
        "type": "string",
        "format": "date-time",
        "description": "A time in whole seconds, RFC 3339; written in UTC.",
    }
    Reference as "Reference": {
        "type": "string",
        "pattern": "^(ipfs|https|http|artifact|oci|file)://",
        "maxLength": MAX_REFERENCE_BYTES,
        "description": "Where some content is.",
    }
    Runtime as "Runtime": {
        "type": "string",
        "enum": Runtime::ALL.map(Runtime::as_str),
        "description": "What executes a task.",
    }
}
