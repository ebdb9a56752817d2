//! Which network addresses a reference from a stranger may lead to (the SSRF guard).
//!
//! A name is judged by the addresses it resolves to, in the resolver that the connection itself
//! uses, so that a name cannot answer one thing when asked and another when dialled. Literal
//! addresses never reach a resolver and are judged in the URL, at every redirect anew.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

/// What kind of place an IP address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressClass {
    /// A host on the public internet.
    Public,
    /// This machine or a network of its operator: loopback, RFC 1918, carrier-grade NAT, unique-local.
    Private,
    /// Never a place to fetch from: link-local (where clouds serve their metadata), multicast, unspecified,
    /// documentation, reserved, and tunnels (NAT64, 6to4, Teredo) into anything but the public internet.
    Never,
}

impl AddressClass {
    /// The class of `address`. An IPv4 address written as IPv6 is what the IPv4 address is.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => class_of_v4(v4),
            IpAddr::V6(v6) => class_of_v6(v6),
        }
    }
}

/// Which classes a client may connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AddressRule {
    /// Public hosts only.
    Public,
    /// The operator's own networks only (where plain `http` is acceptable).
    Private,
    /// Either of the two.
    PublicOrPrivate,
}

impl AddressRule {
    /// Whether a connection to `address` may be opened.
    pub(crate) fn admits(self, address: IpAddr) -> bool {
        match AddressClass::of(address) {
            AddressClass::Public => self != Self::Private,
            AddressClass::Private => self != Self::Public,
            AddressClass::Never => false,
        }
    }

    /// Refuses a URL whose host is a literal address that this rule does not admit.
    pub(crate) fn check_literal(self, url: &Url) -> Result<(), ForbiddenAddress> {
        let address = match url.host() {
            Some(Host::Ipv4(v4)) => IpAddr::V4(v4),
            Some(Host::Ipv6(v6)) => IpAddr::V6(v6),
            Some(Host::Domain(_)) | None => return Ok(()),
        };
        if self.admits(address) {
            return Ok(());
        }
        Err(ForbiddenAddress { host: address.to_string(), class: AddressClass::of(address) })
    }
}

/// A host that has no address which the rule admits.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{host} is not an address that references may lead to")]
pub(crate) struct ForbiddenAddress {
    pub(crate) host: String,
    /// What the (first) address of the host is.
    pub(crate) class: AddressClass,
}

/// The system's resolver, with the addresses left out that the rule does not admit.
#[derive(Debug)]
pub(crate) struct GuardedResolver(pub(crate) AddressRule);

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let rule = self.0;
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let admitted: Vec<SocketAddr> = found.iter().copied().filter(|a| rule.admits(a.ip())).collect();
            if let (true, Some(first)) = (admitted.is_empty(), found.first()) {
                let class = AddressClass::of(first.ip());
                return Err(ForbiddenAddress { host: name.as_str().to_owned(), class }.into());
            }
            Ok(Box::new(admitted.into_iter()) as Addrs)
        })
    }
}

fn class_of_v4(v4: Ipv4Addr) -> AddressClass {
    let [a, b, c, _] = v4.octets();
    match (a, b, c) {
        (10, _, _) | (127, _, _) | (172, 16..=31, _) | (192, 168, _) | (100, 64..=127, _) => {
            AddressClass::Private
        }
        // "This network"; link-local; protocol assignments; 6to4 relays; benchmarks; documentation.
        (0, _, _) | (169, 254, _) | (192, 0, 0) | (192, 88, 99) | (198, 18..=19, _) => AddressClass::Never,
        (192, 0, 2) | (198, 51, 100) | (203, 0, 113) => AddressClass::Never,
        // Multicast, reserved, broadcast.
        (224..=255, _, _) => AddressClass::Never,
        _ => AddressClass::Public,
    }
}

fn class_of_v6(v6: Ipv6Addr) -> AddressClass {
    if let Some(v4) = v6.to_ipv4_mapped() {
        return class_of_v4(v4);
    }
    if v6.is_loopback() {
        return AddressClass::Private;
    }
    let s = v6.segments();
    match s {
        [0x64, 0xff9b, 0, 0, 0, 0, hi, lo] => tunnel_to(hi, lo),
        [0x2002, hi, lo, ..] => tunnel_to(hi, lo),
        // Protocol assignments with Teredo; documentation.
        [0x2001, 0..=0x1ff, ..] | [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => AddressClass::Never,
        [0xfc00..=0xfdff, ..] => AddressClass::Private,
        [0x2000..=0x3fff, ..] => AddressClass::Public,
        // All that is left is not global unicast.
        _ => AddressClass::Never,
    }
}

/// A gateway's address that carries an IPv4 address inside: fine only when that is a public host.
fn tunnel_to(hi: u16, lo: u16) -> AddressClass {
    let [a, b] = hi.to_be_bytes();
    let [c, d] = lo.to_be_bytes();
    match class_of_v4(Ipv4Addr::new(a, b, c, d)) {
        AddressClass::Public => AddressClass::Public,
        AddressClass::Private | AddressClass::Never => AddressClass::Never,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_of_addresses() {
        let cases = [
            (
                AddressClass::Public,
                "1.1.1.1 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255",
            ),
            (
                AddressClass::Public,
                "128.0.0.0 172.15.255.255 172.32.0.0 192.169.0.0 198.17.0.1 223.255.255.255",
            ),
            (
                AddressClass::Public,
                "2606:4700::1111 2001:4860::8888 ::ffff:8.8.8.8 64:ff9b::808:808 2002:808:808::1",
            ),
            (
                AddressClass::Private,
                "127.0.0.1 127.255.255.254 10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1",
            ),
            (AddressClass::Private, "100.64.0.1 100.127.255.255 ::1 fc00::1 fd12:3456::1 ::ffff:127.0.0.1"),
            (AddressClass::Private, "::ffff:10.1.2.3"),
            (
                AddressClass::Never,
                "0.0.0.0 0.1.2.3 169.254.169.254 192.0.0.8 192.0.2.1 192.88.99.1 198.18.0.1",
            ),
            (AddressClass::Never, "198.51.100.7 203.0.113.9 224.0.0.1 239.1.1.1 240.0.0.1 255.255.255.255"),
            (
                AddressClass::Never,
                ":: ::7f00:1 ::ffff:169.254.169.254 fe80::1 fec0::1 ff02::1 2001:db8::1 3fff::1",
            ),
            (AddressClass::Never, "2001::1 100::1 5f00::1 64:ff9b::7f00:1 64:ff9b::a00:1 64:ff9b:1::808:808"),
            (AddressClass::Never, "2002:7f00:1::1 2002:a9fe:a9fe::1 2002:c0a8:101::1"),
        ];
        for (class, addresses) in cases {
            for address in addresses.split(' ') {
                assert_eq!(AddressClass::of(address.parse().unwrap()), class, "{address}");
            }
        }
    }

    #[test]
    fn odd_spellings_of_literal_addresses_are_seen_through() {
        for url in [
            "https://127.0.0.1/",
            "https://2130706433/",
            "https://0x7f.1/",
            "https://0177.0.0.1/",
            "https://[::1]/",
            "https://[::ffff:7f00:1]/",
            "https://127.0.0.1./",
            "https://%31%32%37.0.0.1/",
            "https://①②⑦.0.0.1/",
        ] {
            assert!(AddressRule::Public.check_literal(&Url::parse(url).unwrap()).is_err(), "{url}");
        }
        assert!(AddressRule::Public.check_literal(&Url::parse("https://example.org/").unwrap()).is_ok());
    }

    #[test]
    fn rules_admit_their_classes_only() {
        let (public, private, never) =
            (IpAddr::from([1, 1, 1, 1]), IpAddr::from([127, 0, 0, 1]), IpAddr::from([169, 254, 169, 254]));
        for (rule, admitted) in [
            (AddressRule::Public, [true, false, false]),
            (AddressRule::Private, [false, true, false]),
            (AddressRule::PublicOrPrivate, [true, true, false]),
        ] {
            assert_eq!([public, private, never].map(|a| rule.admits(a)), admitted, "{rule:?}");
        }
    }
}
