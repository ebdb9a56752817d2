//! The certificate of the HTTPS listener: read at the start, and again when the operator says so.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::Context;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::config::TlsConfig;

/// A certificate that can be exchanged while it is in use.
pub(crate) struct Certificate {
    cert: PathBuf,
    key: PathBuf,
    current: RwLock<Arc<CertifiedKey>>,
}

impl Certificate {
    /// Reads the certificate and its key.
    ///
    /// # Errors
    /// A file cannot be read, is not PEM, or the key is not the certificate's.
    pub(crate) fn read(config: &TlsConfig) -> anyhow::Result<Arc<Self>> {
        let current = RwLock::new(read(config.cert.clone(), config.key.clone())?);
        Ok(Arc::new(Self { cert: config.cert.clone(), key: config.key.clone(), current }))
    }

    /// Reads both files again. On an error the old certificate stays in use.
    ///
    /// # Errors
    /// As of [`Certificate::read`].
    pub(crate) fn reload(&self) -> anyhow::Result<()> {
        let fresh = read(self.cert.clone(), self.key.clone())?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }

    /// How connections are encrypted: TLS 1.3 with this certificate, and HTTP/2 where the client speaks it.
    pub(crate) fn server_config(self: Arc<Self>) -> anyhow::Result<ServerConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .context("TLS 1.3")?
            .with_no_client_auth()
            .with_cert_resolver(self);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").field("cert", &self.cert).finish_non_exhaustive()
    }
}

fn read(cert: PathBuf, key: PathBuf) -> anyhow::Result<Arc<CertifiedKey>> {
    let chain: Vec<_> = CertificateDer::pem_file_iter(&cert)
        .and_then(Iterator::collect)
        .with_context(|| format!("cannot read the certificate {}", cert.display()))?;
    if chain.is_empty() {
        anyhow::bail!("{} holds no certificate in PEM", cert.display());
    }
    let secret = PrivateKeyDer::from_pem_file(&key)
        .with_context(|| format!("cannot read the private key {}", key.display()))?;
    let certified = CertifiedKey::from_der(chain, secret, &rustls::crypto::ring::default_provider())
        .with_context(|| format!("{} and {} do not fit together", cert.display(), key.display()))?;
    Ok(Arc::new(certified))
}
