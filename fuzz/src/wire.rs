//! The handshake of a provider's connection, and the queries of listings.

use std::fmt::Debug;

use axum::extract::Query;
use axum::http::Uri;
use rpc::error::ErrorBody;
use rpc::link::{Assignment, Heartbeat, Hello, NodeMetadata, Register, Welcome};
use rpc::relay::{PageQuery, RefreshNode};
use rpc::tasks::{EventQuery, OpenTasksFilter, TaskQuery};
use serde::Serialize;
use serde::de::DeserializeOwned;
use store::{Cursor, KeyId};
use taskmarket::{Bytes32, Domain, Signed, keccak256};

use crate::{Outcome, read};

/// Any message between a relay and a provider's host. What a registration says of its metadata is about the text that came along.
pub fn handshake(data: &[u8]) -> Outcome {
    let register = read::<Register>(data).map(|register| {
        let Register { registration, metadata, signature, .. } = register;
        registration_holds(registration, &metadata, signature);
    });
    let refresh = read::<RefreshNode>(data).map(|refresh| {
        let RefreshNode { registration, metadata, signature } = refresh;
        registration_holds(registration, &metadata, signature);
    });
    let taken = [
        register,
        refresh,
        read::<Hello>(data).map(drop),
        read::<Welcome>(data).map(drop),
        read::<NodeMetadata>(data).map(drop),
        read::<Assignment>(data).map(drop),
        read::<Heartbeat>(data).map(drop),
        read::<ErrorBody>(data).map(drop),
    ];
    Outcome::of(taken.into_iter().flatten().next())
}

/// The text of a query after `?`, of a listing by JSON-RPC, of a cursor or of a key's id.
pub fn task_query(data: &[u8]) -> Outcome {
    let Ok(text) = std::str::from_utf8(data) else { return Outcome::Refused };
    let cursor = text.parse::<Cursor>().ok().map(|cursor| assert_eq!(cursor.to_string(), text));
    let key = text.parse::<KeyId>().ok().map(|id| assert_eq!(id.as_str(), text));
    let page = query::<TaskQuery>(text).and_then(|query| query.cursor);
    if let Some(Ok(cursor)) = page.as_deref().map(str::parse::<Cursor>) {
        assert_eq!(Some(cursor.to_string()), page);
    }
    let taken = [
        cursor,
        key,
        query::<TaskQuery>(text).map(drop),
        query::<PageQuery>(text).map(drop),
        query::<EventQuery>(text).map(drop),
        read::<TaskQuery>(data).map(drop),
        read::<OpenTasksFilter>(data).map(drop),
    ];
    Outcome::of(taken.into_iter().flatten().next())
}

fn registration_holds(
    registration: taskmarket::RegisterNode,
    metadata: &str,
    signature: taskmarket::Signature,
) {
    let said = registration.metadata_hash;
    let provider = registration.provider;
    if let Ok(verified) = (Signed { message: registration, signature }).verify(&Domain::UNSETTLED) {
        assert_eq!(verified.signer(), provider, "a stranger registered a provider's host");
    }
    if Bytes32(keccak256(metadata.as_bytes())) == said {
        // The text decides, so reading it must not depend on anything else; a text that is no metadata is refused by its reader.
        read::<NodeMetadata>(metadata.as_bytes());
    }
}

/// Reads a query as the relay does, if it is one. What was read comes back from its JSON unchanged.
fn query<Q: DeserializeOwned + Serialize + PartialEq + Debug>(text: &str) -> Option<Q> {
    let uri: Uri = format!("/?{text}").parse().ok()?;
    let Query(query) = Query::<Q>::try_from_uri(&uri).ok()?;
    assert_eq!(crate::again(&query), query);
    Some(query)
}
