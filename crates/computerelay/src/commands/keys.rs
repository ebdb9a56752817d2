//! `keys`: API keys, in the store itself or by the API of the relay that has it open.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use ::store::{Deadlines, KeyId, Scope, Store, StoreError, StoredKey};
use anyhow::{Context, bail};
use clap::Subcommand;
use daemon::{Secret, Table, quote};
use rpc::keys::{CreateKey, CreatedKey, KeyView};
use taskmarket::Timestamp;
use url::Url;

use super::remote::Remote;
use super::{print, say};
use crate::keys::{KeySpec, PAGE, view};
use crate::location::StoreLocation;
use crate::misuse::Misuse;
use crate::relay::open_store;

/// What to do with keys.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a key and print it; it is shown this once
    ///
    /// The store keeps its SHA-256 only. Scopes:
    ///
    ///   tasks:write   publish tasks, store artifacts
    ///   tasks:read    list and read them
    ///   inference     call models
    ///   admin         reaches everywhere: keys, usage, everybody's tasks
    ///
    /// In the store, while no relay runs on it, or in a shared database:
    ///
    ///   compute-relay keys create --store ./relay \
    ///     --name alice --scope tasks:write --scope tasks:read
    ///
    /// By a relay that runs, with an admin's key:
    ///
    ///   compute-relay keys create \
    ///     --relay https://relay.example --api-key-file admin.key \
    ///     --name alice --scope inference --expires 90d --requests-per-minute 600
    #[command(verbatim_doc_comment)]
    Create {
        /// What its holder is called
        #[arg(long)]
        name: String,
        /// What it may be used for: tasks:write, tasks:read, inference or admin; repeat it for several
        #[arg(long = "scope", required = true, value_name = "SCOPE", value_delimiter = ',')]
        scopes: Vec<Scope>,
        /// How long it is good, such as 12h, 90d or 52w [default: until it is revoked]
        #[arg(long, value_name = "TIME", value_parser = duration)]
        expires: Option<u64>,
        /// Requests that it may make in a minute [default: any number]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        requests_per_minute: Option<u32>,
        /// Tokens of inference that it may use in a minute [default: any number]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        tokens_per_minute: Option<u32>,
        #[command(flatten)]
        deadlines: DeadlineArgs,
        #[command(flatten)]
        place: Place,
    },
    /// List the keys, without their texts
    List {
        #[command(flatten)]
        place: Place,
    },
    /// Revoke a key, by its id
    Revoke {
        /// The key's id, 16 hex digits
        #[arg(value_name = "ID", value_parser = key_id)]
        id: KeyId,
        #[command(flatten)]
        place: Place,
    },
}

/// How long a key's requests for inference may take, where that is less than what the relay itself gives them.
#[derive(Debug, clap::Args)]
struct DeadlineArgs {
    /// How long its inference requests may take in all, in seconds [default: as long as the relay says]
    #[arg(long, value_name = "SECS", value_parser = clap::value_parser!(u32).range(1..))]
    inference_timeout: Option<u32>,
    /// How long a host may take until the first byte of a streamed answer, in seconds [default: as long as the relay says]
    #[arg(long, value_name = "SECS", value_parser = clap::value_parser!(u32).range(1..))]
    first_byte_timeout: Option<u32>,
    /// How long a host may pause within a streamed answer, in seconds [default: as long as the relay says]
    #[arg(long, value_name = "SECS", value_parser = clap::value_parser!(u32).range(1..))]
    token_timeout: Option<u32>,
}

impl From<DeadlineArgs> for Deadlines {
    fn from(args: DeadlineArgs) -> Self {
        let DeadlineArgs { inference_timeout, first_byte_timeout, token_timeout } = args;
        Self { total: inference_timeout, first_byte: first_byte_timeout, between_tokens: token_timeout }
    }
}

/// Where the keys are.
#[derive(Debug, clap::Args)]
struct Place {
    /// The store: a folder, or a database such as postgres://zorai@db.example/zorai [default: a folder of the user's data]
    #[arg(long, env = "ZORAI_RELAY_STORE", hide_env_values = true, value_name = "DIR|URL")]
    store: Option<StoreLocation>,
    /// A relay that runs, to ask instead of opening the store
    #[arg(long, value_name = "URL")]
    relay: Option<Url>,
    /// An API key of that relay with the scope admin
    #[arg(long, env = "ZORAI_AI_API_KEY", hide_env_values = true, value_name = "KEY")]
    api_key: Option<Secret>,
    /// A file, of mode 0600, that holds it
    #[arg(long, env = "ZORAI_RELAY_API_KEY_FILE", value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Does it.
pub(super) async fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Create {
            name,
            scopes,
            expires,
            requests_per_minute,
            tokens_per_minute,
            deadlines,
            place,
        } => {
            let (expires_at, deadlines) = (expires.map(|seconds| now().plus(seconds)), deadlines.into());
            let spec =
                KeySpec { name, scopes, expires_at, requests_per_minute, tokens_per_minute, deadlines };
            create(spec, &place).await
        }
        Command::List { place } => list(&place).await,
        Command::Revoke { id, place } => revoke(&id, &place).await,
    }
}

async fn create(spec: KeySpec, place: &Place) -> anyhow::Result<()> {
    let created = match place.open(IfMissing::Make).await? {
        Keys::Remote(relay) => relay.create(&wire(spec)).await?,
        Keys::Store(store) => {
            let (secret, key) = spec.make(now())?;
            let stored = StoredKey { key: key.clone(), revoked_at: None };
            let added = store.add_key(key).await;
            store.close().await;
            anyhow::ensure!(added?, "the new key's id is taken; try again");
            CreatedKey { key: Some(secret.expose().to_owned()), view: view(&stored) }
        }
    };
    if place.json {
        return print(serde_json::to_string_pretty(&created)?);
    }
    say(format_args!(
        "key {} of {} is good for {}",
        created.view.id,
        created.view.name,
        created.view.scopes.join(", ")
    ));
    say("it is shown this once:");
    print(created.key.context("the relay's answer holds no key")?)
}

fn wire(spec: KeySpec) -> CreateKey {
    CreateKey {
        name: spec.name,
        scopes: spec.scopes.iter().map(Scope::to_string).collect(),
        expires_at: spec.expires_at,
        requests_per_minute: spec.requests_per_minute,
        tokens_per_minute: spec.tokens_per_minute,
        inference_timeout_secs: spec.deadlines.total,
        first_byte_timeout_secs: spec.deadlines.first_byte,
        token_timeout_secs: spec.deadlines.between_tokens,
    }
}

async fn list(place: &Place) -> anyhow::Result<()> {
    let keys = match place.open(IfMissing::Refuse).await? {
        Keys::Remote(relay) => relay.list().await?,
        Keys::Store(store) => {
            let keys = all(&*store).await;
            store.close().await;
            keys?
        }
    };
    if place.json {
        return print(serde_json::to_string_pretty(&keys)?);
    }
    if keys.is_empty() {
        say("there are no keys; `compute-relay keys create` makes one");
    }
    let now = now();
    let rows: Vec<_> = keys.iter().map(|key| row(key, now)).collect();
    let mut table = Table::new(["KEY", "EXPIRES", "SCOPES", "REQUESTS", "NAME"]);
    // Programs read the rows as they are; people are told what they see.
    if std::io::stdout().is_terminal() && !rows.is_empty() {
        print(table.titles(&rows))?;
    }
    table.lines(&rows).into_iter().try_for_each(print)
}

fn row(key: &KeyView, now: Timestamp) -> [String; 5] {
    let limit = key.requests_per_minute.map_or_else(|| "-".to_owned(), |limit| format!("{limit}/min"));
    [key.id.clone(), standing(key, now), key.scopes.join(","), limit, quote(&key.name)]
}

async fn all(store: &dyn Store) -> Result<Vec<KeyView>, StoreError> {
    let (mut keys, mut after) = (Vec::new(), None);
    loop {
        let page = store.keys(after, PAGE).await?;
        let Some(last) = page.last() else { return Ok(keys) };
        after = Some(last.key.id.clone());
        keys.extend(page.iter().map(view));
    }
}

fn standing(key: &KeyView, now: Timestamp) -> String {
    match (key.revoked_at, key.expires_at) {
        (Some(_), _) => "revoked".to_owned(),
        (None, Some(at)) if at <= now => "expired".to_owned(),
        (None, Some(at)) => at.to_string(),
        (None, None) => "never".to_owned(),
    }
}

async fn revoke(id: &KeyId, place: &Place) -> anyhow::Result<()> {
    let revoked = match place.open(IfMissing::Refuse).await? {
        Keys::Remote(relay) => relay.revoke(id).await?,
        Keys::Store(store) => {
            let stored = revoke_in(&*store, id).await;
            store.close().await;
            let stored = stored?;
            view(&stored.with_context(|| format!("there is no API key {id} in the store"))?)
        }
    };
    if place.json {
        return print(serde_json::to_string_pretty(&revoked)?);
    }
    say(format_args!("key {id} of {} is revoked", revoked.name));
    Ok(())
}

async fn revoke_in(store: &dyn Store, id: &KeyId) -> Result<Option<StoredKey>, StoreError> {
    store.revoke_key(id, now()).await?;
    store.key(id).await
}

/// Where keys are looked after.
enum Keys {
    Store(Arc<dyn Store>),
    Remote(Remote),
}

/// What to do where there is no store.
#[derive(Clone, Copy, PartialEq, Eq)]
enum IfMissing {
    Make,
    Refuse,
}

impl Place {
    async fn open(&self, if_missing: IfMissing) -> anyhow::Result<Keys> {
        if let Some(relay) = &self.relay {
            const HINT: &str = "set ZORAI_AI_API_KEY, or give --api-key-file FILE";
            let from_file = self.api_key_file.as_deref().map(daemon::read_secret_file).transpose();
            let from_file = from_file.map_err(|error| Misuse::new(error, HINT))?;
            let Some(key) = from_file.or_else(|| self.api_key.clone()) else {
                return Err(Misuse::because("--relay needs an admin's API key", HINT).into());
            };
            return Ok(Keys::Remote(Remote::new(relay.clone(), key)?));
        }
        let location = self.store.clone().unwrap_or_default();
        if if_missing == IfMissing::Refuse && !location.exists() {
            bail!(
                "there is no store in {location}\nhint: say where it is by --store, or ask a relay by --relay URL"
            );
        }
        match open_store(&location).await {
            Ok(store) => Ok(Keys::Store(store)),
            Err(error) if is_locked(&error) => Err(error.context(
                "a relay runs on this store\n\
                 hint: ask it: --relay URL, with an admin's API key in ZORAI_AI_API_KEY or --api-key-file FILE",
            )),
            Err(error) => Err(error),
        }
    }
}

fn is_locked(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| matches!(cause.downcast_ref(), Some(StoreError::Locked { .. })))
}

fn now() -> Timestamp {
    Timestamp::from_unix(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
}

fn key_id(text: &str) -> Result<KeyId, &'static str> {
    text.parse().map_err(|_| "expected 16 hex digits, as `compute-relay keys list` shows them")
}

/// A time in seconds: a number and s, m, h, d or w.
fn duration(text: &str) -> Result<u64, &'static str> {
    const WRONG: &str = "expected a number and s, m, h, d or w, such as 90d";
    let unit = text.chars().last().ok_or(WRONG)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 60 * 60,
        'd' => 24 * 60 * 60,
        'w' => 7 * 24 * 60 * 60,
        _ => return Err(WRONG),
    };
    let number = text.strip_suffix(unit).and_then(|number| number.parse::<u32>().ok()).ok_or(WRONG)?;
    if number == 0 {
        Err("a key that is good for no time is no use")
    } else {
        Ok(u64::from(number) * seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit() {
        assert_eq!(duration("90d"), Ok(7_776_000));
        assert_eq!(duration("1s"), Ok(1));
        for wrong in ["", "d", "90", "-1d", "1.5h", "0d", "90 d", "90é"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
