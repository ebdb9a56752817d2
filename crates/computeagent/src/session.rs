//! The connection to the relay: made, registered, served, and made again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use daemon::quote;
use hyper_util::service::TowerToHyperService;
use link::{Closed, ConnectError, Handshake, HandshakeError, close_code};
use rpc::error::{ErrorBody, ErrorCode};
use rpc::link::{AttemptKey, Hello, Register, Welcome};
use rpc::relay::DomainView;
use taskmarket::{Bytes32, Domain, RegisterNode, keccak256};
use tokio_util::sync::CancellationToken;

use crate::agent::{RunError, Shared, now};
use crate::service::service;

/// The longest session id that is signed, in bytes.
const MAX_SESSION_ID_BYTES: usize = 256;
/// The longest wait that a relay's `Retry-After` can ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);
/// Requests that a relay may have open at once.
const MAX_REQUESTS: u32 = 256;
/// How long requests that are open may take when this side ends the connection.
const DRAIN: Duration = Duration::from_secs(5);
/// Bounds of what a relay may ask for as the time between heartbeats, in seconds.
const HEARTBEAT_SECS: std::ops::RangeInclusive<u64> = 1..=60;

/// Why there is no connection.
enum Loss {
    /// Another attempt makes sense, after so long at least.
    Retry(String, Duration),
    /// None does.
    Stop(RunError),
}

/// Stays connected until `closing`.
pub(crate) async fn stay_connected(shared: &Arc<Shared>) -> Result<(), RunError> {
    let timing = &shared.config.timing;
    let mut backoff = timing.backoff();
    while !shared.closing.is_cancelled() {
        let registered = tokio::select! {
            () = shared.closing.cancelled() => return Ok(()),
            registered = register(shared) => registered,
        };
        let ended = match registered {
            Ok((handshake, welcome)) => {
                let since = Instant::now();
                let ended = serve(shared, handshake, welcome).await;
                if since.elapsed() >= timing.stable_session {
                    backoff.reset();
                }
                ended
            }
            Err(loss) => Some(loss),
        };
        let (why, at_least) = match ended {
            None => continue,
            Some(Loss::Stop(error)) => return Err(error),
            Some(Loss::Retry(why, at_least)) => (why, at_least),
        };
        let delay = backoff.next_delay().max(at_least);
        tracing::warn!(why, delay_ms = delay.as_millis(), "not connected; trying again");
        let _ = shared.closing.run_until_cancelled(tokio::time::sleep(delay)).await;
    }
    Ok(())
}

/// Dials and registers.
async fn register(shared: &Arc<Shared>) -> Result<(Handshake, Welcome), Loss> {
    let config =
        link::Config { max_concurrent_streams: MAX_REQUESTS, drain: DRAIN, ..link::Config::default() };
    let relay = &shared.config.relay;
    tracing::debug!(url = relay.text(), "dialling");
    let connected = link::connect(relay.url(), Some(Arc::clone(&shared.tls)), config).await;
    let mut handshake = connected.map_err(connect_lost)?;
    let text = handshake.recv().await.map_err(handshake_lost)?;
    let hello = match read_hello(shared, &text) {
        Ok(hello) => hello,
        Err(loss) => {
            handshake.close(close_code::BAD_HANDSHAKE, "this hello is not for this agent").await;
            return Err(loss);
        }
    };
    handshake.send(&registration(shared, hello)?).await.map_err(handshake_lost)?;
    let text = handshake.recv().await.map_err(handshake_lost)?;
    match read_welcome(&text) {
        Ok(welcome) => Ok((handshake, welcome)),
        Err(loss) => Err(match handshake.recv().await {
            Err(HandshakeError::Closed(Closed::Peer { code: close_code::SUPERSEDED, .. })) => {
                Loss::Stop(RunError::Superseded)
            }
            // The refusal says more than the close that follows it.
            Ok(_) | Err(_) => loss,
        }),
    }
}

fn read_hello(shared: &Shared, text: &str) -> Result<Hello, Loss> {
    let hello: Hello = serde_json::from_str(text).map_err(|_| garbled("Hello"))?;
    let expected = &shared.config.relay_id;
    if hello.relay_id != *expected {
        let actual = quote(&hello.relay_id);
        return Err(Loss::Stop(RunError::WrongRelay { expected: expected.clone(), actual }));
    }
    if hello.session_id.is_empty()
        || hello.session_id.len() > MAX_SESSION_ID_BYTES
        || hello.session_id.chars().any(char::is_control)
    {
        return Err(garbled("Hello"));
    }
    if !hello.domains.contains(&DomainView::from(Domain::UNSETTLED)) {
        return Err(Loss::Stop(RunError::NoCommonDomain));
    }
    Ok(hello)
}

fn read_welcome(text: &str) -> Result<Welcome, Loss> {
    match serde_json::from_str::<Welcome>(text) {
        Ok(welcome) if welcome.accepted => return Ok(welcome),
        Ok(_) => return Err(garbled("Welcome")),
        Err(_) => {}
    }
    let ErrorBody { error } = serde_json::from_str(text).map_err(|_| garbled("Welcome"))?;
    let (code, message) = (quote(&error.code), quote(&error.message));
    // Faults of this side stay faults; what the relay cannot do now, and codes of later versions, may pass.
    let known = ErrorCode::ALL.iter().find(|known| known.as_str() == code);
    match known.map(|known| known.http_status()) {
        Some(400..=407 | 413 | 422 | 426) => Err(Loss::Stop(RunError::Refused { code, message })),
        Some(_) | None => {
            Err(Loss::Retry(format!("the relay refuses for now: {code}: {message}"), Duration::ZERO))
        }
    }
}

fn connect_lost(error: ConnectError) -> Loss {
    if !error.is_retryable() {
        return Loss::Stop(RunError::Connect(error));
    }
    let asked = if let ConnectError::Refused { retry_after, .. } = &error { *retry_after } else { None };
    let why = match tls_error(&error) {
        Some(_) => format!("{error} ({})", connect_hint(&error)),
        None => error.to_string(),
    };
    Loss::Retry(why, asked.unwrap_or_default().min(MAX_RETRY_AFTER))
}

/// What an operator can do about a relay that cannot be reached.
pub(crate) fn connect_hint(error: &ConnectError) -> &'static str {
    match tls_error(error) {
        Some(rustls::Error::InvalidCertificate(why)) if format!("{why:?}").contains("CaUsedAsEndEntity") => {
            "the relay's certificate is a CA certificate; make one with -addext basicConstraints=critical,CA:FALSE"
        }
        Some(rustls::Error::InvalidMessage(_)) => "this port speaks plain HTTP: write ws://",
        Some(_) | None => "check --relay; a relay with a private certificate needs --ca-file",
    }
}

fn tls_error(error: &ConnectError) -> Option<&rustls::Error> {
    let ConnectError::Tls { source, .. } = error else { return None };
    source.get_ref()?.downcast_ref()
}

fn garbled(what: &str) -> Loss {
    Loss::Retry(format!("the relay's {what} cannot be read"), Duration::ZERO)
}

fn handshake_lost(error: HandshakeError) -> Loss {
    match error {
        HandshakeError::Closed(closed) => closed_loss(closed),
        HandshakeError::Upgrade(_)
        | HandshakeError::TimedOut(_)
        | HandshakeError::NotText
        | HandshakeError::TooLong { .. }
        | HandshakeError::Flood => Loss::Retry(error.to_string(), Duration::ZERO),
    }
}

fn closed_loss(closed: Closed) -> Loss {
    match closed {
        Closed::Peer { code: close_code::SUPERSEDED, .. } => Loss::Stop(RunError::Superseded),
        Closed::Peer { code: close_code::REFUSED, reason } => {
            Loss::Stop(RunError::Refused { code: "closed".to_owned(), message: quote(&reason) })
        }
        Closed::Peer { .. }
        | Closed::Local { .. }
        | Closed::TimedOut { .. }
        | Closed::Lost(_)
        | Closed::Protocol(_) => Loss::Retry(quote(&closed.to_string()), Duration::ZERO),
    }
}

/// The signed answer to a relay's hello.
fn registration(shared: &Shared, hello: Hello) -> Result<String, Loss> {
    let config = &shared.config;
    let metadata = shared.host.borrow().metadata.clone().unwrap_or_default();
    let registration = RegisterNode {
        provider: shared.wallet().address(),
        node_id: shared.home.node_id,
        relay_id: hello.relay_id,
        relay_url: config.relay.text().to_owned(),
        session_id: hello.session_id,
        nonce: hello.nonce,
        timestamp: now(),
        metadata_hash: Bytes32(keccak256(metadata.as_bytes())),
    };
    let signed = shared
        .wallet()
        .sign(&registration, &Domain::UNSETTLED)
        .map_err(|error| Loss::Stop(RunError::Sign(error)))?;
    let register = Register {
        registration: signed.message,
        metadata: metadata.as_ref().to_owned(),
        signature: signed.signature,
        attempts: shared.attempts.held(),
        unacked_proofs: shared.attempts.unacknowledged(),
    };
    Ok(serde_json::to_string(&register).expect("strings, numbers and lists always serialise"))
}

/// Serves the relay until the connection ends. `None` asks for another connection at once: the host is not what it was.
async fn serve(shared: &Arc<Shared>, handshake: Handshake, welcome: Welcome) -> Option<Loss> {
    tracing::info!(
        relay = shared.config.relay.text(), relay_id = %shared.config.relay_id, generation = welcome.generation, "connected"
    );
    call_off(shared, &welcome.drop);
    let ending = CancellationToken::new();
    let _ended = ending.clone().drop_guard();
    let every = welcome.heartbeat_secs.clamp(*HEARTBEAT_SECS.start(), *HEARTBEAT_SECS.end());
    let service = service(Arc::clone(shared), Duration::from_secs(every), ending.clone());
    let mut host = shared.host.clone();
    let metadata = host.borrow_and_update().metadata.clone();
    let stop = async {
        tokio::select! {
            () = shared.closing.cancelled() => {}
            Ok(_) = host.wait_for(|host| host.metadata != metadata) => {
                tracing::info!("the host has changed: registering anew");
            }
        }
        ending.cancel();
    };
    let closed = handshake.serve(TowerToHyperService::new(service), stop).await;
    let by_us = matches!(closed, Closed::Local { .. });
    (!by_us).then(|| closed_loss(closed))
}

/// Calls off what the relay says is held in vain, except where a proof waits: the answer to the proof decides about that.
fn call_off(shared: &Shared, keys: &[AttemptKey]) {
    for key in keys.iter().filter(|key| !shared.attempts.is_proven(key)) {
        shared.attempts.call_off(key);
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use rustls::{CertificateError, InvalidMessage, OtherError};

    use super::*;

    fn hint(error: rustls::Error) -> &'static str {
        let source = io::Error::new(io::ErrorKind::InvalidData, error);
        connect_hint(&ConnectError::Tls { address: "relay:443".to_owned(), source })
    }

    #[derive(Debug, thiserror::Error)]
    #[error("CaUsedAsEndEntity")]
    struct CaUsedAsEndEntity;

    #[test]
    fn tls_errors_say_what_to_do() {
        let other = CertificateError::Other(OtherError(Arc::new(CaUsedAsEndEntity)));
        assert!(
            hint(rustls::Error::InvalidCertificate(other)).contains("basicConstraints=critical,CA:FALSE")
        );
        assert!(hint(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)).contains("ws://"));
        assert!(
            hint(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)).contains("--ca-file")
        );
    }
}
