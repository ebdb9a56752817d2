//! Secrets that the relay makes for itself and keeps, such as the key that its attempt tokens are made with.

use std::sync::Arc;

use async_trait::async_trait;

use crate::StoreError;

/// The relay's own secrets.
#[async_trait]
pub trait Secrets: Send + Sync {
    /// The secret of this name: made of the operating system's randomness when first asked for, and the same ever after.
    ///
    /// # Errors
    /// As the variants of [`StoreError`] say.
    async fn secret(&self, name: &str) -> Result<[u8; 32], StoreError>;
}

/// Randomness of the operating system.
pub(crate) fn fresh() -> Result<[u8; 32], StoreError> {
    let mut fresh = [0; 32];
    getrandom::fill(&mut fresh)
        .map_err(|error| StoreError::Backend(Arc::new(std::io::Error::other(error.to_string()))))?;
    Ok(fresh)
}
