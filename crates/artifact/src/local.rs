//! Files and folders of this machine, in the folders that its operator allows.

use std::io;
use std::path::{Component, Path, PathBuf};

use crate::digest::Digest;
use crate::error::FetchError;
use crate::fetch::{Call, LocalFile, LocalFolder, Names};
use crate::manifest::{FolderError, FolderManifest};

impl Call<'_> {
    /// A file of this machine, hashed and served in place.
    pub(crate) async fn local_file(&self, path: &Path, pin: Option<Digest>) -> Result<LocalFile, FetchError> {
        let path = self.allowed(path).await?;
        // Asked before it is opened, since opening a pipe would wait for its other end.
        let metadata = tokio::fs::metadata(&path).await.map_err(|e| self.io(e))?;
        if metadata.is_dir() {
            return Err(self.bad("it names a folder, but a file is needed"));
        }
        if !metadata.is_file() {
            return Err(self.not_allowed("it is not a regular file"));
        }
        self.check_size(metadata.len())?;
        let (digest, size) = Digest::of_file(&path).await.map_err(|e| self.io(e))?;
        self.check(pin, digest)?;
        (self.progress)(size, Some(size));
        Ok(LocalFile { path, digest, size })
    }

    /// A folder of this machine, hashed and served in place.
    pub(crate) async fn local_folder(
        &self,
        path: &Path,
        pin: Option<Digest>,
        names: &Names<'_>,
    ) -> Result<LocalFolder, FetchError> {
        let dir = self.allowed(path).await?;
        if !tokio::fs::metadata(&dir).await.map_err(|e| self.io(e))?.is_dir() {
            return Err(self.bad("it names a file, but a folder is needed"));
        }
        let manifest = FolderManifest::of_dir(&dir).await.map_err(|e| match e {
            FolderError::Manifest(source) => self.bad_manifest(source),
            FolderError::Io { source, .. } => self.io(source),
            FolderError::Irregular { .. } | FolderError::NotUtf8 { .. } => self.not_allowed(&e.to_string()),
        })?;
        let digest = manifest.digest();
        self.check(pin, digest)?;
        let wanted = names.select(&manifest).map_err(|missing| self.not_found(missing))?;
        let total = self.check_total(&wanted)?;
        (self.progress)(total, Some(total));
        let files = wanted.into_iter().map(|e| (e.path.clone(), dir.join(&e.path))).collect();
        Ok(LocalFolder { digest, files })
    }

    /// The path without symbolic links, if it lies in a folder that the policy allows.
    async fn allowed(&self, path: &Path) -> Result<PathBuf, FetchError> {
        let mut roots = self.fetcher.policy.allowed_dirs.clone();
        for dir in &self.fetcher.policy.allowed_dirs {
            match tokio::fs::canonicalize(dir).await {
                Ok(real) => roots.push(real),
                Err(error) => {
                    tracing::warn!(dir = %dir.display(), %error, "an allowed folder cannot be used")
                }
            }
        }
        let inside = |path: &Path| roots.iter().any(|root| path.starts_with(root));
        let outside =
            "the path is not in a folder that this machine's operator allows for file:// references";
        match tokio::fs::canonicalize(path).await {
            Ok(real) if inside(&real) => Ok(real),
            Ok(_) => Err(self.not_allowed(outside)),
            // Whether something exists elsewhere is nobody's business.
            Err(_) if !inside(path) || path.components().any(|c| c == Component::ParentDir) => {
                Err(self.not_allowed(outside))
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Err(self.not_found("it"))
            }
            Err(e) => Err(self.io(e)),
        }
    }
}
