//! The relay's own secrets.

use async_trait::async_trait;

use super::Sqlite;
use crate::{Secrets, StoreError};

#[async_trait]
impl Secrets for Sqlite {
    async fn secret(&self, name: &str) -> Result<[u8; 32], StoreError> {
        let fresh = crate::secrets::fresh()?;
        let name = name.to_owned();
        self.write(move |connection| {
            connection
                .prepare_cached("INSERT INTO secrets (name, value) VALUES (?1, ?2) ON CONFLICT DO NOTHING")?
                .execute((&name, fresh))?;
            let kept = connection
                .prepare_cached("SELECT value FROM secrets WHERE name = ?1")?
                .query_row([&name], |row| row.get(0))?;
            Ok(kept)
        })
        .await
    }
}
