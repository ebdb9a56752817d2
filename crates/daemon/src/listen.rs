//! Addresses to listen on: parsing what people write, and binding with an error that names the address.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::TcpListener;

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The text is no address with a port.
    #[error("{text:?} is no address to listen on\nhint: write ADDRESS:PORT, or :PORT for every address")]
    Malformed {
        /// What was written.
        text: String,
    },
    /// The system refused the address.
    #[error("cannot listen on {addr}: {source}{}", bind_hint(source))]
    Bind {
        /// The address that was asked for.
        addr: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
}

/// Reads `ADDRESS:PORT`, `localhost:PORT`, or `:PORT` for every address of the host. Fits as a clap value parser.
pub fn parse_listen(text: &str) -> Result<SocketAddr, ListenError> {
    let malformed = || ListenError::Malformed { text: text.to_owned() };
    if let Ok(addr) = text.parse() {
        return Ok(addr);
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(malformed)?;
    let port = port.parse().map_err(|_| malformed())?;
    match host {
        "" => Ok(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port)),
        "localhost" => Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)),
        _ => Err(malformed()),
    }
}

fn bind_hint(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::AddrInUse {
        "\nhint: another program listens there; choose another --listen"
    } else {
        ""
    }
}

/// Binds a TCP listener. `[::]` falls back to `0.0.0.0` on a host without IPv6.
pub async fn bind(addr: SocketAddr) -> Result<TcpListener, ListenError> {
    match TcpListener::bind(addr).await {
        Ok(listener) => Ok(listener),
        Err(error) if addr.ip() == Ipv6Addr::UNSPECIFIED && error.kind() != io::ErrorKind::AddrInUse => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, addr.port()))
                .await
                .map_err(|source| ListenError::Bind { addr, source })
        }
        Err(source) => Err(ListenError::Bind { addr, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_ways_people_write_an_address() {
        assert_eq!(parse_listen("127.0.0.1:80").unwrap(), SocketAddr::from(([127, 0, 0, 1], 80)));
        assert_eq!(parse_listen("localhost:80").unwrap(), SocketAddr::from(([127, 0, 0, 1], 80)));
        assert_eq!(parse_listen(":8787").unwrap(), "[::]:8787".parse().unwrap());
        assert_eq!(parse_listen("[::1]:1").unwrap(), "[::1]:1".parse().unwrap());
        for bad in ["", ":", "8787", "host:80", "1.2.3.4", "1.2.3.4:99999", ":-1"] {
            assert!(parse_listen(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn the_error_names_the_address() {
        let first = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let addr = first.local_addr().unwrap();
        let error = bind(addr).await.unwrap_err();
        assert!(error.to_string().contains(&addr.to_string()), "{error}");
        assert!(error.to_string().contains("hint: another program listens there"), "{error}");
    }
}
