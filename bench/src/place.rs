//! Where stores are made: in folders of the measured disk, or in schemas of a PostgreSQL database.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use store::{Options, Postgres, Sqlite, Store};
use tokio_postgres::{Client, NoTls};

/// What the names of the bench's schemas begin with.
const PREFIX: &str = "market_bench_";

/// A kind of store, and where there is room for some.
#[derive(Debug, Clone)]
pub(crate) enum Backend {
    /// SQLite, in folders of this one.
    Sqlite(PathBuf),
    /// PostgreSQL, in schemas of this database.
    Postgres(String),
}

/// Room for one store.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// A folder.
    Folder(PathBuf),
    /// A schema of a database.
    Schema {
        /// The database.
        url: String,
        /// Its name.
        name: String,
    },
}

impl Backend {
    /// What it is called.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Sqlite(_) => "SQLite",
            Self::Postgres(_) => "PostgreSQL",
        }
    }

    /// A place of a name, empty: what an earlier run left there is removed.
    pub(crate) async fn make(&self, name: &str) -> anyhow::Result<Place> {
        let place = match self {
            Self::Sqlite(dir) => Place::Folder(dir.join(name)),
            Self::Postgres(url) => {
                Place::Schema { url: url.clone(), name: format!("{PREFIX}{}", name.replace('-', "_")) }
            }
        };
        place.clone().remove().await?;
        match &place {
            Place::Folder(path) => std::fs::create_dir(path)?,
            Place::Schema { url, name } => {
                connect(url).await?.batch_execute(&format!("CREATE SCHEMA {name}")).await?;
            }
        }
        Ok(place)
    }
}

impl Place {
    /// How the store's users name it.
    pub(crate) fn location(&self) -> anyhow::Result<String> {
        Ok(match self {
            Self::Folder(path) => path.to_str().context("the folder's name is no text")?.to_owned(),
            Self::Schema { url, name } => {
                let separator = if url.contains('?') { '&' } else { '?' };
                format!("{url}{separator}options=-csearch_path%3D{name}")
            }
        })
    }

    /// Opens the store, and makes it where there is none.
    pub(crate) async fn open(&self, options: Options) -> anyhow::Result<Arc<dyn Store>> {
        let location = self.location()?;
        Ok(match self {
            Self::Folder(_) => Arc::new(Sqlite::open_with(location, options).await?),
            Self::Schema { .. } => Arc::new(Postgres::connect_with(&location, options).await?),
        })
    }

    /// Removes it with all that is in it.
    pub(crate) async fn remove(self) -> anyhow::Result<()> {
        match self {
            Self::Folder(path) => remove_folder(&path),
            Self::Schema { url, name } => {
                let client = connect(&url).await?;
                client.batch_execute("SET client_min_messages = warning").await?;
                Ok(client.batch_execute(&format!("DROP SCHEMA IF EXISTS {name} CASCADE")).await?)
            }
        }
    }
}

/// A connection to a database.
pub(crate) async fn connect(url: &str) -> anyhow::Result<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.context("the database")?;
    // It ends with the client.
    tokio::spawn(connection);
    Ok(client)
}

fn remove_folder(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}
