//! Files and folders of IPFS, from gateways that need not be trusted.

mod blocks;
mod car;
mod gateways;
mod unixfs;

use std::collections::HashSet;

use bytes::Bytes;
use cid::Cid;

use self::blocks::{Blocks, Want};
use self::unixfs::{Entry, Node, RAW};
use crate::blobs::Partial;
use crate::digest::Digest;
use crate::error::{ContentError, FetchError};
use crate::fetch::{Call, LocalFile, LocalFolder, Names};
use crate::http::put_error;
use crate::manifest::{FolderEntry, FolderManifest, ManifestError, check_path};
use crate::meter::Meter;

/// The deepest nesting that is read, of folders and of a file's parts each. Writers need fewer than ten levels for any file.
const MAX_DEPTH: usize = 64;
/// The most files and folders in a folder, as in a [`FolderManifest`].
const MAX_ENTRIES: usize = 65_536;

/// A file that is put together from blocks.
struct Target {
    partial: Partial,
    /// Its number among the files of [`Blocks`].
    number: usize,
}

impl Call<'_> {
    pub(crate) async fn ipfs_file(
        &self,
        cid: &str,
        path: &str,
        pin: Option<Digest>,
    ) -> Result<LocalFile, FetchError> {
        let (root, names) = self.parts(cid, path)?;
        let mut blocks = Blocks::new(self).await?;
        let cid = self.resolve(&mut blocks, root, &names).await?.ok_or_else(|| self.not_found(path))?;
        self.assemble(&mut blocks, cid, pin, &self.meter(None), true).await
    }

    pub(crate) async fn ipfs_folder(
        &self,
        cid: &str,
        path: &str,
        pin: Option<Digest>,
        names: &Names<'_>,
    ) -> Result<LocalFolder, FetchError> {
        let (root, segments) = self.parts(cid, path)?;
        let mut blocks = Blocks::new(self).await?;
        let cid = self.resolve(&mut blocks, root, &segments).await?.ok_or_else(|| self.not_found(path))?;
        let meter = self.meter(None);
        let entries = if names.is_empty() {
            self.whole_folder(&mut blocks, cid, &meter).await?
        } else {
            self.named_files(&mut blocks, cid, names, &meter).await?
        };
        let manifest = FolderManifest::new(entries).map_err(|e| self.bad_manifest(e))?;
        self.check(pin, manifest.digest())?;
        self.assembled(&manifest).await
    }

    /// The CID and the names below it.
    fn parts(&self, cid: &str, path: &str) -> Result<(Cid, Vec<String>), FetchError> {
        let root = Cid::try_from(cid).map_err(|e| self.bad(&format!("not a CID: {e}")))?;
        let decoded = |name| percent_encoding::percent_decode_str(name).decode_utf8();
        let names = path.split('/').filter(|name| !name.is_empty()).map(decoded);
        let names = names.map(|name| name.map(|name| name.into_owned())).collect::<Result<_, _>>();
        Ok((root, names.map_err(|_| self.bad("its path is not UTF-8"))?))
    }

    /// Follows names down from a folder; `None` if one of them does not exist.
    async fn resolve<N: AsRef<str>>(
        &self,
        blocks: &mut Blocks<'_>,
        from: Cid,
        names: &[N],
    ) -> Result<Option<Cid>, FetchError> {
        let mut cid = from;
        for name in names {
            let Some(found) = self.find(blocks, cid, name.as_ref()).await? else { return Ok(None) };
            cid = found;
        }
        Ok(Some(cid))
    }

    /// Looks a name up in a folder, and in its further parts where it is sharded.
    async fn find(
        &self,
        blocks: &mut Blocks<'_>,
        folder: Cid,
        name: &str,
    ) -> Result<Option<Cid>, FetchError> {
        let mut parts = vec![folder];
        let mut seen = 0;
        while let Some(part) = parts.pop() {
            let Node::Folder(entries) = self.node(blocks, &part, Want::Block(&parts)).await? else {
                // A file has nothing below it. That a folder's part is none is the folder's own fault.
                return if seen == 0 { Ok(None) } else { Err(self.bad_part(&part)) };
            };
            seen += entries.len();
            if seen > MAX_ENTRIES {
                return Err(self.bad_manifest(ManifestError::TooLong));
            }
            if let Some(found) = entries.iter().find(|entry| entry.name.as_deref() == Some(name)) {
                return Ok(Some(found.cid));
            }
            parts.extend(entries.iter().filter(|entry| entry.name.is_none()).map(|entry| entry.cid));
        }
        Ok(None)
    }

    async fn named_files(
        &self,
        blocks: &mut Blocks<'_>,
        folder: Cid,
        names: &Names<'_>,
        meter: &Meter<'_>,
    ) -> Result<Vec<FolderEntry>, FetchError> {
        let mut entries = Vec::new();
        for name in names.required.iter().chain(&names.optional) {
            let segments: Vec<&str> = name.split('/').collect();
            match self.resolve(blocks, folder, &segments).await? {
                Some(cid) => entries.push(self.entry(blocks, (*name).to_owned(), cid, meter).await?),
                None if names.optional.contains(name) => {}
                None => return Err(self.not_found(name)),
            }
        }
        Ok(entries)
    }

    /// All files of a folder, depth first as archives have them.
    async fn whole_folder(
        &self,
        blocks: &mut Blocks<'_>,
        folder: Cid,
        meter: &Meter<'_>,
    ) -> Result<Vec<FolderEntry>, FetchError> {
        let Node::Folder(entries) = self.node(blocks, &folder, Want::Tree(&[])).await? else {
            return Err(self.bad("it names a file, but a folder is needed"));
        };
        blocks.expect(&folder, entries.len())?;
        let mut files = Vec::new();
        let mut paths = HashSet::new();
        let mut open = vec![(String::new(), entries.into_iter())];
        while let Some((folder, entries)) = open.last_mut() {
            let Some(entry) = entries.next() else {
                open.pop();
                continue;
            };
            let path = self.path_of(folder, &entry)?;
            let soon: Vec<Cid> = entries.as_slice().iter().take(self.parallel()).map(|e| e.cid).collect();
            if entry.name.is_some() && !paths.insert(path.clone()) {
                return Err(self.bad_block(&entry.cid, "a folder that has a name twice"));
            }
            if paths.len() > MAX_ENTRIES || open.len() > MAX_DEPTH {
                return Err(self.bad_manifest(ManifestError::TooLong));
            }
            let node = match entry.cid.codec() {
                RAW if entry.name.is_some() => None,
                _ => Some(self.node(blocks, &entry.cid, Want::Tree(&soon)).await?),
            };
            match node {
                Some(Node::Folder(entries)) => {
                    blocks.expect(&entry.cid, entries.len())?;
                    open.push((path, entries.into_iter()));
                }
                Some(Node::File { .. }) if entry.name.is_none() => return Err(self.bad_part(&entry.cid)),
                Some(Node::File { .. }) => {
                    // The file's first block is read once more.
                    blocks.expect(&entry.cid, 1)?;
                    files.push(self.entry(blocks, path, entry.cid, meter).await?);
                }
                None => files.push(self.entry(blocks, path, entry.cid, meter).await?),
            }
        }
        Ok(files)
    }

    /// The path of what a folder's block links to; a further part of a folder has the folder's own.
    fn path_of(&self, folder: &str, entry: &Entry) -> Result<String, FetchError> {
        let Some(name) = &entry.name else { return Ok(folder.to_owned()) };
        if name.contains('/') {
            return Err(self.bad_block(&entry.cid, "a name with a slash in it"));
        }
        let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
        check_path(&path).map_err(|e| self.bad_manifest(e))?;
        Ok(path)
    }

    async fn entry(
        &self,
        blocks: &mut Blocks<'_>,
        path: String,
        cid: Cid,
        meter: &Meter<'_>,
    ) -> Result<FolderEntry, FetchError> {
        let file = self.assemble(blocks, cid, None, meter, false).await?;
        Ok(FolderEntry { path, size: file.size, digest: file.digest })
    }

    async fn node(&self, blocks: &mut Blocks<'_>, cid: &Cid, want: Want<'_>) -> Result<Node, FetchError> {
        let (block, _) = blocks.get(cid, want).await?;
        unixfs::parse(cid, block).map_err(|e| self.bad_manifest(e))
    }

    /// Writes a file, part by part, into the store.
    async fn assemble(
        &self,
        blocks: &mut Blocks<'_>,
        cid: Cid,
        pin: Option<Digest>,
        meter: &Meter<'_>,
        alone: bool,
    ) -> Result<LocalFile, FetchError> {
        let store = &self.fetcher.store;
        let partial = store.partial(self.max_bytes()).await.map_err(|e| put_error(self.name, e))?;
        let number = blocks.begin_file(partial.path().to_owned());
        let mut target = Target { partial, number };
        let mut open = vec![vec![(cid, None)].into_iter()];
        while let Some(parts) = open.last_mut() {
            let Some((cid, expected)) = parts.next() else {
                open.pop();
                continue;
            };
            let soon: Vec<Cid> = parts.as_slice().iter().take(self.parallel()).map(|(cid, _)| *cid).collect();
            if blocks.lies_in(&cid, target.number) {
                target.partial.flush().await.map_err(|e| put_error(self.name, e))?;
            }
            let (block, new) = blocks.get(&cid, Want::Tree(&soon)).await?;
            let Node::File { data, parts, size } =
                unixfs::parse(&cid, block).map_err(|e| self.bad_manifest(e))?
            else {
                return Err(self.not_a_file(&cid, expected.is_none()));
            };
            if expected.is_some_and(|expected| expected != size) {
                return Err(self.bad_block(&cid, "a part of a file has another size than listed"));
            }
            if expected.is_none() {
                self.check_size(size)?;
                target.partial.announce(size).await.map_err(|e| put_error(self.name, e))?;
                if alone {
                    meter.set_total(Some(size));
                }
            }
            if open.len() > MAX_DEPTH {
                return Err(self.bad_block(&cid, "a file of too many levels"));
            }
            blocks.expect(&cid, parts.len())?;
            let keep = new && cid.codec() == RAW;
            self.append(blocks, &mut target, (&cid, keep), &data, meter).await?;
            open.push(parts.into_iter().map(|(cid, size)| (cid, Some(size))).collect::<Vec<_>>().into_iter());
        }
        let file = self.place(target.partial, pin).await?;
        blocks.moved(target.number, file.path.clone());
        Ok(file)
    }

    /// Writes the next bytes of a file, and has a raw block found there again if it is to be kept.
    async fn append(
        &self,
        blocks: &mut Blocks<'_>,
        target: &mut Target,
        (cid, keep): (&Cid, bool),
        data: &Bytes,
        meter: &Meter<'_>,
    ) -> Result<(), FetchError> {
        let offset = target.partial.len();
        target.partial.write(data).await.map_err(|e| put_error(self.name, e))?;
        if !meter.add(data.len() as u64) {
            return Err(self.too_large());
        }
        if keep {
            blocks.wrote(cid, target.number, offset, data.len());
        }
        Ok(())
    }

    fn not_a_file(&self, cid: &Cid, root: bool) -> FetchError {
        if root {
            return self.bad("it names a folder, but a file is needed");
        }
        self.bad_block(cid, "a part of a file is a folder")
    }

    fn bad_part(&self, cid: &Cid) -> FetchError {
        self.bad_block(cid, "a part of a folder is a file")
    }

    fn bad_block(&self, cid: &Cid, reason: &str) -> FetchError {
        self.bad_manifest(ContentError::BadBlock { cid: cid.to_string(), reason: reason.to_owned() })
    }
}
