//! HTTP clients for URLs that strangers name, which must not lead into the operator's network.

use std::error::Error as _;
use std::io;
use std::sync::Arc;

use reqwest::{Client, ClientBuilder, Method, RequestBuilder};
use url::Url;

use crate::guard::{AddressRule, ForbiddenAddress, GuardedResolver};

/// Makes requests to URLs that strangers name: `https` to public hosts, or, where private addresses are allowed, `https` to any host
/// and plain `http` to private ones. Names are judged by the addresses they resolve to. Redirects are not followed, and proxies of the
/// environment are not used: both would lead past the guard.
#[derive(Debug, Clone)]
pub struct GuardedClient {
    https: Client,
    https_rule: AddressRule,
    /// For plain `http`, to private hosts only.
    http: Client,
    allow_private: bool,
}

/// Why a URL may not be called.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RefusedUrl {
    /// Its host is a literal address that it may not be.
    #[error("{0}")]
    Address(#[source] RefusedAddress),
    /// It is plain `http` to a public host.
    #[error("plain http is not used with public hosts; use https")]
    PlainHttp,
    /// It is no URL of the web.
    #[error("it is a {scheme}: URL; only https is taken")]
    Scheme {
        /// What it is.
        scheme: String,
    },
}

/// An address that may not be called.
#[derive(Debug, Clone, thiserror::Error)]
#[error(transparent)]
pub struct RefusedAddress(pub(crate) ForbiddenAddress);

impl GuardedClient {
    /// A client that trusts the certificate authorities of this machine (also those of `SSL_CERT_FILE` and `SSL_CERT_DIR`).
    ///
    /// # Errors
    /// The TLS library cannot be set up.
    pub fn new(allow_private: bool) -> io::Result<Self> {
        let tls = system_tls().map_err(io::Error::other)?;
        Self::with_tls(allow_private, &tls).map_err(io::Error::other)
    }

    pub(crate) fn with_tls(allow_private: bool, tls: &rustls::ClientConfig) -> Result<Self, reqwest::Error> {
        let https_rule = if allow_private { AddressRule::PublicOrPrivate } else { AddressRule::Public };
        let guarded = |rule| unguarded(tls).dns_resolver(GuardedResolver(rule)).build();
        Ok(Self {
            https: guarded(https_rule)?,
            https_rule,
            http: guarded(AddressRule::Private)?,
            allow_private,
        })
    }

    /// Whether a URL may be called, as far as can be told without resolving its host.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, url: &Url) -> Result<(), RefusedUrl> {
        self.client_for(url).map(|_| ())
    }

    /// Begins a request to a URL.
    ///
    /// # Errors
    /// As [`GuardedClient::check`]. Where only the resolving of the host tells, the request itself fails, and [`GuardedClient::is_refusal`] knows.
    pub fn request(&self, method: Method, url: &Url) -> Result<RequestBuilder, RefusedUrl> {
        Ok(self.client_for(url)?.request(method, url.clone()))
    }

    /// Whether a request failed because its host has no address that it may have.
    pub fn is_refusal(error: &reqwest::Error) -> bool {
        let mut cause = error.source();
        while let Some(inner) = cause {
            if inner.is::<ForbiddenAddress>() {
                return true;
            }
            cause = inner.source();
        }
        false
    }

    /// The client whose rule fits the URL, if the URL may be called at all.
    pub(crate) fn client_for(&self, url: &Url) -> Result<&Client, RefusedUrl> {
        let refused = |error| RefusedUrl::Address(RefusedAddress(error));
        match url.scheme() {
            "https" => {
                self.https_rule.check_literal(url).map_err(refused)?;
                Ok(&self.https)
            }
            "http" if self.allow_private => match AddressRule::Private.check_literal(url) {
                Ok(()) => Ok(&self.http),
                Err(error) if error.class == crate::AddressClass::Public => Err(RefusedUrl::PlainHttp),
                Err(error) => Err(refused(error)),
            },
            "http" => {
                self.https_rule.check_literal(url).map_err(refused)?;
                Err(RefusedUrl::PlainHttp)
            }
            scheme => Err(RefusedUrl::Scheme { scheme: scheme.to_owned() }),
        }
    }
}

/// What all clients have in common; without the guard.
pub(crate) fn unguarded(tls: &rustls::ClientConfig) -> ClientBuilder {
    Client::builder()
        .tls_backend_preconfigured(tls.clone())
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .retry(reqwest::retry::never())
        .user_agent(concat!("zorai-compute/", env!("CARGO_PKG_VERSION")))
}

/// TLS that trusts the certificate authorities of this machine. Without any, only plain `http` can be used.
pub(crate) fn system_tls() -> Result<rustls::ClientConfig, rustls::Error> {
    let mut roots = rustls::RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    let (added, ignored) = roots.add_parsable_certificates(found.certs);
    if added == 0 || ignored > 0 || !found.errors.is_empty() {
        tracing::warn!(added, ignored, errors = ?found.errors, "certificate authorities are missing");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(tls)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(client: &GuardedClient, url: &str) -> Option<RefusedUrl> {
        client.client_for(&Url::parse(url).unwrap()).err()
    }

    #[test]
    fn urls_are_judged_before_they_are_called() {
        let tls = system_tls().unwrap();
        let public = GuardedClient::with_tls(false, &tls).unwrap();
        let private = GuardedClient::with_tls(true, &tls).unwrap();
        assert!(refused(&public, "https://hooks.example/x").is_none());
        assert!(refused(&private, "http://127.0.0.1:1/x").is_none());
        assert!(refused(&private, "https://10.0.0.1/x").is_none());
        for url in ["https://127.0.0.1/", "https://[::1]/", "https://169.254.169.254/", "http://10.0.0.1/"] {
            assert!(matches!(refused(&public, url), Some(RefusedUrl::Address(_))), "{url}");
        }
        assert!(matches!(refused(&public, "http://hooks.example/"), Some(RefusedUrl::PlainHttp)));
        assert!(matches!(refused(&private, "http://1.1.1.1/"), Some(RefusedUrl::PlainHttp)));
        assert!(matches!(refused(&private, "https://169.254.169.254/"), Some(RefusedUrl::Address(_))));
        assert!(matches!(refused(&private, "ftp://hooks.example/"), Some(RefusedUrl::Scheme { .. })));
    }

    #[tokio::test]
    async fn a_name_is_judged_by_its_addresses() {
        let client = GuardedClient::with_tls(false, &system_tls().unwrap()).unwrap();
        let url = Url::parse("https://localhost:1/").unwrap();
        let error = client.request(Method::POST, &url).unwrap().send().await.unwrap_err();
        assert!(GuardedClient::is_refusal(&error), "{error:?}");
    }
}
