//! What a relay checks of a registration before it lets a host in.

use link::close_code;
use rpc::PROVIDER_CONNECT_PATH;
use rpc::error::ErrorCode;
use rpc::link::{NodeMetadata, Register};
use rpc::relay::RefreshNode;
use taskmarket::{
    Bytes32, CLOCK_TOLERANCE_SECS, Domain, MAX_GPU_NAME_BYTES, RegisterNode, Signed, Timestamp, Verified,
    keccak256,
};
use url::{Host, Url};

use crate::error::ApiError;

/// The most devices of one host.
const MAX_DEVICES: usize = 64;
/// The most runtimes of one host.
const MAX_RUNTIMES: usize = 16;
/// The most tasks that a host may run at once.
const MAX_SLOTS: u32 = 1024;
/// The longest metadata, in bytes: room for the devices of the largest host, in JSON. Each session keeps them in the store.
const MAX_METADATA_BYTES: usize = 16 * 1024;
/// The longest version, platform or UUID, in bytes.
const MAX_WORD_BYTES: usize = 128;

/// What the relay offered, which the registration must answer to.
#[derive(Debug)]
pub(super) struct Offered<'a> {
    pub(super) relay_id: &'a str,
    pub(super) session_id: &'a str,
    pub(super) nonce: Bytes32,
    pub(super) public_urls: &'a [Url],
}

/// A registration that may come in.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) register: Register,
    pub(super) metadata: NodeMetadata,
}

/// Why a registration may not come in: what the agent is told, and the code that its connection is closed with.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) error: ApiError,
    pub(super) close: u16,
}

impl Refusal {
    /// The agent said something wrong.
    fn new(code: ErrorCode, param: &str, message: impl Into<String>) -> Self {
        Self { error: ApiError::new(code, message).with_param(param), close: close_code::REFUSED }
    }

    /// A newer session of the host is open.
    pub(super) fn superseded() -> Self {
        let why = "a newer session of this host is open";
        Self { error: ApiError::new(ErrorCode::Conflict, why), close: close_code::SUPERSEDED }
    }

    /// The relay cannot let anybody in now; the agent may try again.
    pub(super) fn unavailable(message: &str) -> Self {
        Self { error: ApiError::new(ErrorCode::Unavailable, message), close: close_code::GOING_AWAY }
    }
}

/// Reads the agent's answer to the relay's hello and checks all that it claims.
///
/// # Errors
/// The first thing that is wrong.
pub(super) fn check(text: &str, offered: &Offered<'_>, now: Timestamp) -> Result<Admitted, Refusal> {
    let register: Register = serde_json::from_str(text).map_err(|error| Refusal {
        error: ApiError::new(ErrorCode::MalformedRequest, format!("registration: {error}")),
        close: close_code::BAD_HANDSHAKE,
    })?;
    let signed = Signed { message: register.registration.clone(), signature: register.signature };
    let verified = signed
        .verify(&Domain::UNSETTLED)
        .map_err(|error| Refusal::new(ErrorCode::InvalidSignature, "signature", error.to_string()))?;
    check_binding(verified.message(), offered, now)?;
    let metadata = check_metadata(&verified, &register.metadata)?;
    Ok(Admitted { register, metadata })
}

/// A session's registration as the store keeps it: the provider's word for the session, which evidence shows.
pub(super) fn to_keep(registration: &Signed<RegisterNode>, metadata: &str) -> String {
    let Signed { message, signature } = registration.clone();
    let word = RefreshNode { registration: message, metadata: metadata.to_owned(), signature };
    serde_json::to_string(&word).expect("registrations have string keys and no failing fields")
}

/// Checks that the registration is for this relay, this session and now.
fn check_binding(message: &RegisterNode, offered: &Offered<'_>, now: Timestamp) -> Result<(), Refusal> {
    let wrong = |param, why: String| Err(Refusal::new(ErrorCode::InvalidField, param, why));
    if message.relay_id != offered.relay_id {
        return wrong("relay_id", format!("this relay is {:?}", offered.relay_id));
    }
    if message.session_id != offered.session_id {
        return wrong("session_id", "it is not the session that was offered".into());
    }
    if message.nonce != offered.nonce {
        return wrong("nonce", "it is not the nonce that was offered".into());
    }
    if !is_own_url(&message.relay_url, offered.public_urls) {
        return wrong("relay_url", format!("this relay takes {}", own_urls(offered.public_urls)));
    }
    check_time(message, now)
}

/// Checks that a registration was signed about now.
pub(super) fn check_time(message: &RegisterNode, now: Timestamp) -> Result<(), Refusal> {
    if now.distance(message.timestamp) <= CLOCK_TOLERANCE_SECS {
        return Ok(());
    }
    let why = format!("{} is more than {CLOCK_TOLERANCE_SECS} s from the relay's clock", message.timestamp);
    Err(Refusal::new(ErrorCode::InvalidField, "timestamp", format!("{why} ({now})")))
}

/// Reads metadata that the registration vouches for.
pub(super) fn check_metadata(
    registration: &Verified<RegisterNode>,
    text: &str,
) -> Result<NodeMetadata, Refusal> {
    if Bytes32(keccak256(text.as_bytes())) != registration.message().metadata_hash {
        let why = "the metadata's Keccak-256 is another";
        return Err(Refusal::new(ErrorCode::HashMismatch, "metadata_hash", why));
    }
    let wrong = |why: String| Refusal::new(ErrorCode::InvalidField, "metadata", why);
    if text.len() > MAX_METADATA_BYTES {
        return Err(wrong(format!("at most {MAX_METADATA_BYTES} bytes")));
    }
    let metadata: NodeMetadata = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
    check_bounds(&metadata).map_err(wrong)?;
    Ok(metadata)
}

fn check_bounds(metadata: &NodeMetadata) -> Result<(), String> {
    let word = |what: &str, text: &str, max: usize| {
        if text.len() <= max && !text.chars().any(char::is_control) {
            Ok(())
        } else {
            Err(format!("{what}: at most {max} printable bytes"))
        }
    };
    word("agent_version", &metadata.agent_version, MAX_WORD_BYTES)?;
    word("node_version", &metadata.node_version, MAX_WORD_BYTES)?;
    word("platform", &metadata.platform, MAX_WORD_BYTES)?;
    if metadata.devices.len() > MAX_DEVICES {
        return Err(format!("devices: at most {MAX_DEVICES}"));
    }
    for device in &metadata.devices {
        word("devices.name", &device.name, MAX_GPU_NAME_BYTES)?;
        word("devices.uuid", device.uuid.as_deref().unwrap_or_default(), MAX_WORD_BYTES)?;
    }
    if metadata.runtimes.len() > MAX_RUNTIMES {
        return Err(format!("runtimes: at most {MAX_RUNTIMES}"));
    }
    if !(1..=MAX_SLOTS).contains(&metadata.slots) {
        return Err(format!("slots: 1 to {MAX_SLOTS}"));
    }
    Ok(())
}

/// Whether a URL that an agent dialled is one of the relay's, or loopback.
fn is_own_url(dialled: &str, public: &[Url]) -> bool {
    let Ok(dialled) = Url::parse(dialled) else { return false };
    let Some(origin) = origin(&dialled) else { return false };
    let path = dialled.path().trim_end_matches('/');
    let is_loopback = match dialled.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    let below = |base: &str| {
        let base = base.trim_end_matches('/');
        let base = base.strip_suffix(PROVIDER_CONNECT_PATH).unwrap_or(base);
        path.strip_prefix(base).is_some_and(|rest| rest.is_empty() || rest == PROVIDER_CONNECT_PATH)
    };
    (is_loopback && below(""))
        || public.iter().any(|url| self::origin(url).as_ref() == Some(&origin) && below(url.path()))
}

/// The URLs that agents may dial, as a refusal names them.
fn own_urls(public: &[Url]) -> String {
    let urls = public.iter().map(Url::to_string).chain(["loopback URLs".to_owned()]);
    urls.collect::<Vec<_>>().join(", ")
}

/// Whether the transport is encrypted, the host and the port. `wss` and `https` are the same, and so are `ws` and `http`.
fn origin(url: &Url) -> Option<(bool, String, u16)> {
    let encrypted = match url.scheme() {
        "wss" | "https" => true,
        "ws" | "http" => false,
        _ => return None,
    };
    Some((encrypted, url.host_str()?.to_owned(), url.port_or_known_default()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_compared_by_what_they_reach() {
        let public: Vec<Url> =
            ["wss://relay.example", "https://a.example:8443/zorai"].map(|url| url.parse().unwrap()).into();
        for own in [
            "wss://relay.example/v1/provider/connect",
            "wss://RELAY.example:443",
            "https://relay.example/",
            "wss://a.example:8443/zorai/v1/provider/connect",
            "ws://127.0.0.1:8787/v1/provider/connect",
            "ws://[::1]:1/v1/provider/connect/",
            "ws://localhost:9",
        ] {
            assert!(is_own_url(own, &public), "{own}");
        }
        for other in [
            "",
            "relay.example",
            "ws://relay.example/v1/provider/connect",
            "wss://relay.example:8443/v1/provider/connect",
            "wss://relay.example.evil.example/v1/provider/connect",
            "wss://evil.example/wss://relay.example",
            "wss://relay.example/elsewhere",
            "wss://a.example:8443/v1/provider/connect",
            "ftp://127.0.0.1/",
            "ws://127.0.0.1.evil.example/",
            "ws://10.0.0.1/",
        ] {
            assert!(!is_own_url(other, &public), "{other}");
        }
    }

    #[test]
    fn a_refusal_names_the_urls_that_would_do() {
        let public = ["wss://relay.example/".parse().unwrap()];
        assert_eq!(own_urls(&public), "wss://relay.example/, loopback URLs");
        assert_eq!(own_urls(&[]), "loopback URLs");
    }

    #[test]
    fn metadata_out_of_bounds_is_refused() {
        let device = |name: &str| rpc::link::DeviceView {
            kind: rpc::link::DeviceKind::Gpu,
            name: name.to_owned(),
            vram_mb: u64::MAX,
            uuid: None,
        };
        let good = NodeMetadata {
            agent_version: "0.1.0".into(),
            node_version: "0.1.0".into(),
            platform: "linux/x86_64".into(),
            devices: vec![device("NVIDIA A100"); MAX_DEVICES],
            runtimes: vec![taskmarket::Runtime::Wasm; MAX_RUNTIMES],
            slots: MAX_SLOTS,
        };
        assert_eq!(check_bounds(&good), Ok(()));
        let bad = [
            NodeMetadata { slots: 0, ..good.clone() },
            NodeMetadata { slots: MAX_SLOTS + 1, ..good.clone() },
            NodeMetadata { devices: vec![device("A"); MAX_DEVICES + 1], ..good.clone() },
            NodeMetadata { devices: vec![device(&"A".repeat(129))], ..good.clone() },
            NodeMetadata { devices: vec![device("A\n")], ..good.clone() },
            NodeMetadata { runtimes: vec![taskmarket::Runtime::Wasm; 17], ..good.clone() },
            NodeMetadata { platform: "p".repeat(129), ..good.clone() },
        ];
        for (number, metadata) in bad.iter().enumerate() {
            assert!(check_bounds(metadata).is_err(), "case {number}");
        }
    }
}
