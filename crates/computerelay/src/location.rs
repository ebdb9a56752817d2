//! Where a relay's durable state is, as operators say it: a folder, or the URL of a PostgreSQL database.

use std::convert::Infallible;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use daemon::Secret;
use url::Url;

/// The name of the folder of artifacts within a store's.
const BLOBS: &str = "blobs";

/// Where a store is. `Display` and `Debug` show no password.
#[derive(Clone)]
pub enum StoreLocation {
    /// A folder with an SQLite file, which one relay has at a time.
    Folder(PathBuf),
    /// A PostgreSQL database, which relays can share: `postgres://…`.
    Postgres(Secret),
}

impl StoreLocation {
    /// Whether there may be a store: a folder says so, a database when it is opened.
    pub(crate) fn exists(&self) -> bool {
        match self {
            Self::Folder(folder) => folder.is_dir(),
            Self::Postgres(_) => true,
        }
    }

    /// Where the artifacts' bytes are unless said otherwise.
    pub(crate) fn artifacts(&self) -> PathBuf {
        match self {
            Self::Folder(folder) => folder.join(BLOBS),
            Self::Postgres(_) => daemon::default_data_dir("relay").join(BLOBS),
        }
    }
}

impl Default for StoreLocation {
    /// A folder of the user's data.
    fn default() -> Self {
        Self::Folder(daemon::default_data_dir("relay"))
    }
}

impl From<PathBuf> for StoreLocation {
    fn from(folder: PathBuf) -> Self {
        Self::Folder(folder)
    }
}

impl From<&Path> for StoreLocation {
    fn from(folder: &Path) -> Self {
        Self::Folder(folder.to_owned())
    }
}

impl FromStr for StoreLocation {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let is_database = ["postgres://", "postgresql://"].iter().any(|scheme| text.starts_with(scheme));
        Ok(if is_database { Self::Postgres(Secret::new(text)) } else { Self::Folder(text.into()) })
    }
}

impl fmt::Display for StoreLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) => write!(f, "{}", folder.display()),
            Self::Postgres(url) => match Url::parse(url.expose()) {
                Ok(mut url) => {
                    // Parameters can carry a password too.
                    url.set_query(None);
                    let hidden = url.password().is_none() || url.set_password(Some("…")).is_ok();
                    if hidden { write!(f, "{url}") } else { f.write_str("postgres://…") }
                }
                Err(_) => f.write_str("postgres://…"),
            },
        }
    }
}

impl fmt::Debug for StoreLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A database's URL with the password of the environment, if it has none of its own.
pub(crate) fn with_password(url: &Secret, password: Option<String>) -> Secret {
    let (text, Some(password)) = (url.expose(), password) else { return url.clone() };
    let (before, query) = text.split_once('?').map_or((text, None), |(before, query)| (before, Some(query)));
    let user = before.split_once("://").and_then(|(_, rest)| rest.split_once('@')).map(|(user, _)| user);
    let has_own = user.is_some_and(|user| user.contains(':'))
        || query.is_some_and(|query| query.split('&').any(|pair| pair.starts_with("password=")));
    if has_own || password.is_empty() {
        return url.clone();
    }
    let encoded: String = password.bytes().map(|byte| format!("%{byte:02X}")).collect();
    // Each byte is escaped: none of them means anything in a URL then.
    let separator = if query.is_some() { '&' } else { '?' };
    Secret::new(format!("{text}{separator}password={encoded}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_and_databases_are_told_apart() {
        let of = |text: &str| text.parse::<StoreLocation>().unwrap();
        assert!(matches!(of("./relay"), StoreLocation::Folder(_)));
        assert!(matches!(of("postgres"), StoreLocation::Folder(_)));
        for url in ["postgres://db/zorai", "postgresql://db/zorai"] {
            assert!(matches!(of(url), StoreLocation::Postgres(_)));
            assert_eq!(of(url).to_string(), url);
        }
        assert_eq!(of("/data/relay").artifacts(), Path::new("/data/relay/blobs"));
    }

    #[test]
    fn the_environments_password_is_for_who_has_none() {
        let with = |url: &str, password: &str| {
            with_password(&Secret::new(url), Some(password.to_owned())).expose().to_owned()
        };
        assert_eq!(with("postgres://zorai@db/zorai", "a b"), "postgres://zorai@db/zorai?password=%61%20%62");
        assert_eq!(with("postgres:///zorai?host=/run", "a"), "postgres:///zorai?host=/run&password=%61");
        for own in ["postgres://zorai:own@db/zorai", "postgres://zorai@db/zorai?password=own"] {
            assert_eq!(with(own, "other"), own);
        }
        assert_eq!(with("postgres://db/zorai", ""), "postgres://db/zorai");
    }

    #[test]
    fn passwords_are_not_shown() {
        for url in [
            "postgres://zorai:hunter2@db.example/zorai",
            "postgres://zorai@db.example/zorai?password=hunter2",
            "postgres://zorai:hunter2@db.example:port/zorai",
        ] {
            let location: StoreLocation = url.parse().unwrap();
            let shown = format!("{location} {location:?}");
            assert!(shown.contains("postgres://") && !shown.contains("hunter2"), "{shown}");
        }
    }
}
