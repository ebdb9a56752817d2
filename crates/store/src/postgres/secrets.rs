//! The relay's own secrets.

use async_trait::async_trait;

use super::Postgres;
use super::row::RowExt;
use crate::{Secrets, StoreError};

#[async_trait]
impl Secrets for Postgres {
    async fn secret(&self, name: &str) -> Result<[u8; 32], StoreError> {
        let fresh = crate::secrets::fresh()?;
        let insert = "INSERT INTO secrets (name, value) VALUES ($1, $2) ON CONFLICT DO NOTHING";
        self.execute(insert, &[&name, &fresh.as_slice()]).await?;
        let kept = self.query_opt("SELECT value FROM secrets WHERE name = $1", &[&name]).await?;
        let kept = kept.ok_or_else(|| StoreError::corrupt(format_args!("secret {name:?} went away")))?;
        kept.array(0)
    }
}
