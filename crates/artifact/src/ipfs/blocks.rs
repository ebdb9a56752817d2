//! The blocks of one fetch: from where they were kept, from the archive that is arriving, or from the next gateway. A block that
//! came once is not asked for again.

use std::collections::HashMap;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use bytes::Bytes;
use cid::Cid;

use super::gateways::{Asker, Car, Gateway, Miss};
use super::unixfs::{DAG_PB, RAW, check_supported, inline, is_block};
use crate::blobs::{Partial, blocking};
use crate::digest::Digest;
use crate::error::{ContentError, FetchError, Unreached};
use crate::fetch::Call;
use crate::http::{jittered, put_error};

/// What a tree's archive may have beside the files' bytes: one part in this many, and at least [`SPARE_BYTES`].
const SPARE_PART: u64 = 8;
const SPARE_BYTES: u64 = 16 << 20;
/// How many blocks in a row may come of an archive, in bytes, before the one whose turn it is: archives need not be in order, but
/// no gateway may fill this machine's disk.
const MAX_STRAY_BYTES: u64 = 256 << 20;
/// How many requests for single blocks follow an archive with a gap, before trees are asked for again.
const SINGLE_BLOCKS: usize = 8;
/// The file of [`Blocks`] that keeps what is not part of a file that is being written.
const SCRATCH: usize = 0;

/// How much is needed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Want<'a> {
    /// This block; those that are given will be wanted soon.
    Block(&'a [Cid]),
    /// This block and all below it; those that are given will be wanted soon.
    Tree(&'a [Cid]),
}

/// The blocks of one fetch.
pub(crate) struct Blocks<'a> {
    call: &'a Call<'a>,
    asker: Asker<'a>,
    gateways: Vec<Gateway<'a>>,
    /// The gateway that is asked first.
    current: usize,
    car: Option<Car>,
    /// How many blocks of the arriving tree are known and not read yet.
    open: usize,
    /// How many more blocks are asked for one by one, after an archive that came whole lacked one: most of the others are here.
    singly: usize,
    /// Where checked blocks are kept.
    kept: HashMap<Digest, Place>,
    scratch: Partial,
    /// The files that [`Place`] counts.
    files: Vec<PathBuf>,
    /// How many more blocks may be read.
    left: u64,
    /// How many are known that will be read, whichever way they come.
    pending: u64,
}

/// What came of an arriving archive.
enum Arrived {
    Block(Bytes),
    /// There is none.
    Nothing,
    /// The gateway of this number did not serve the block in it.
    Miss(usize, Miss),
}

/// Where a block lies.
#[derive(Clone, Copy)]
struct Place {
    file: usize,
    offset: u64,
    len: usize,
}

impl<'a> Blocks<'a> {
    /// # Errors
    /// `unsupported_scheme` where no gateway is configured, `io` if nothing can be written.
    pub(crate) async fn new(call: &'a Call<'a>) -> Result<Self, FetchError> {
        let policy = &*call.fetcher.policy;
        if policy.ipfs_gateways.is_empty() {
            let reason = "is turned off here; use https://, artifact:// or a node with IPFS gateways";
            return Err(FetchError::UnsupportedScheme {
                reference: call.name.to_owned(),
                scheme: "ipfs",
                reason,
            });
        }
        let scratch = call
            .fetcher
            .store
            .partial(spared(policy.max_bytes))
            .await
            .map_err(|e| put_error(call.name, e))?;
        let files = vec![scratch.path().to_owned()];
        Ok(Self {
            call,
            asker: Asker { web: &call.fetcher.web, policy, name: call.name },
            gateways: policy.ipfs_gateways.iter().map(Gateway::new).collect(),
            current: 0,
            car: None,
            open: 0,
            singly: 0,
            kept: HashMap::new(),
            scratch,
            files,
            left: policy.max_blocks,
            pending: 0,
        })
    }

    /// A block, checked. The flag tells whether it is new: a raw one that is new is kept only if the caller writes it to a
    /// file and says so by [`Blocks::wrote`].
    pub(crate) async fn get(&mut self, cid: &Cid, want: Want<'_>) -> Result<(Bytes, bool), FetchError> {
        check_supported(cid).map_err(|e| self.call.bad_manifest(e))?;
        self.open = self.open.saturating_sub(1);
        self.pending = self.pending.saturating_sub(1);
        self.left = self.left.checked_sub(1).ok_or_else(|| self.too_many(cid))?;
        if let Some(block) = inline(cid) {
            return Ok((block, false));
        }
        if let Some(block) = self.read_kept(cid).await? {
            return Ok((block, false));
        }
        match self.next_in_archive(cid).await? {
            Arrived::Block(block) => return Ok((block, true)),
            Arrived::Nothing => {}
            Arrived::Miss(gateway, miss) => {
                self.gateways[gateway].missed(&miss);
                self.current = (gateway + 1) % self.gateways.len();
            }
        }
        self.ask_in_turn(cid, want).await
    }

    /// The block `cid`, just read, leads to so many more, which are read next, depth first. When none is left the archive is done.
    ///
    /// # Errors
    /// `bad_block` if those that are known are more than may be read: they are not gathered, which would take memory, first.
    pub(crate) fn expect(&mut self, cid: &Cid, blocks: usize) -> Result<(), FetchError> {
        self.pending = self.pending.saturating_add(blocks as u64);
        if self.pending > self.left {
            return Err(self.too_many(cid));
        }
        self.open += blocks;
        if self.open == 0 {
            self.car = None;
        }
        Ok(())
    }

    /// Whether the block lies in a file that was begun, which has to be flushed before the block is read.
    pub(crate) fn lies_in(&self, cid: &Cid, file: usize) -> bool {
        self.kept.get(&key(cid)).is_some_and(|place| place.file == file)
    }

    /// A file is being written at `path`; answers with its number.
    pub(crate) fn begin_file(&mut self, path: PathBuf) -> usize {
        self.files.push(path);
        self.files.len() - 1
    }

    /// The file `file` has gone to `path`.
    pub(crate) fn moved(&mut self, file: usize, path: PathBuf) {
        self.files[file] = path;
    }

    /// The bytes of a raw block were written to a file.
    pub(crate) fn wrote(&mut self, cid: &Cid, file: usize, offset: u64, len: usize) {
        self.kept.insert(key(cid), Place { file, offset, len });
    }

    async fn read_kept(&mut self, cid: &Cid) -> Result<Option<Bytes>, FetchError> {
        let Some(place) = self.kept.get(&key(cid)).copied() else { return Ok(None) };
        if place.file == SCRATCH {
            self.scratch.flush().await.map_err(|e| put_error(self.call.name, e))?;
        }
        let path = self.files[place.file].clone();
        let read = blocking(move || {
            let mut block = vec![0; place.len];
            std::fs::File::open(path)?.read_exact_at(&mut block, place.offset)?;
            Ok(block)
        });
        match read.await.map(Bytes::from) {
            Ok(block) if is_block(cid, &block) => Ok(Some(block)),
            // The file was trimmed away meanwhile, or the disk is bad: then the block has to come once more.
            Ok(_) | Err(_) => {
                self.kept.remove(&key(cid));
                Ok(None)
            }
        }
    }

    /// Reads the arriving archive up to the block and keeps what comes before it.
    async fn next_in_archive(&mut self, wanted: &Cid) -> Result<Arrived, FetchError> {
        let Some(mut car) = self.car.take() else { return Ok(Arrived::Nothing) };
        let mut stray = 0;
        loop {
            match self.asker.next(&mut car).await {
                Ok(Some((cid, block))) => {
                    // A block has one hash, whatever the codec and version of the CID.
                    let found = cid.hash() == wanted.hash();
                    if !found || wanted.codec() == DAG_PB {
                        self.keep(&cid, &block).await?;
                    }
                    if found {
                        self.gateways[car.gateway].served();
                        self.car = Some(car);
                        return Ok(Arrived::Block(block));
                    }
                    stray += block.len() as u64;
                    if stray > MAX_STRAY_BYTES {
                        let miss = Miss::Lied("it sends blocks that nobody asked for".to_owned());
                        return Ok(Arrived::Miss(car.gateway, miss));
                    }
                }
                Ok(None) if car.blocks > 0 => {
                    self.singly = SINGLE_BLOCKS;
                    let miss = Miss::Absent(format!("its archive lacks {wanted}"));
                    return Ok(Arrived::Miss(car.gateway, miss));
                }
                Ok(None) => {
                    let miss = Miss::Failed("its archive is empty".to_owned());
                    return Ok(Arrived::Miss(car.gateway, miss));
                }
                Err(miss) => return Ok(Arrived::Miss(car.gateway, miss)),
            }
        }
    }

    /// Asks one gateway after the other, and all of them anew after a pause.
    async fn ask_in_turn(&mut self, cid: &Cid, want: Want<'_>) -> Result<(Bytes, bool), FetchError> {
        let policy = self.asker.policy;
        let mut absent = vec![false; self.gateways.len()];
        let mut lacking = 0;
        let mut pause = policy.retry_pause;
        for round in 0..policy.max_tries.max(1) {
            if round > 0 {
                tokio::time::sleep(jittered(pause)).await;
                pause = pause.saturating_mul(2);
            }
            for step in 0..self.gateways.len() {
                let index = (self.current + step) % self.gateways.len();
                if absent[index] || !self.gateways[index].is_in(policy) {
                    continue;
                }
                match self.ask(index, cid, want).await? {
                    Ok(block) => {
                        self.current = index;
                        self.gateways[index].served();
                        return Ok(block);
                    }
                    Err(miss) => {
                        absent[index] = matches!(miss, Miss::Absent(_) | Miss::Lacks);
                        lacking += usize::from(matches!(miss, Miss::Lacks));
                        self.gateways[index].missed(&miss);
                    }
                }
            }
            let open = |(index, gateway): (usize, &Gateway<'_>)| !absent[index] && gateway.is_in(policy);
            if !self.gateways.iter().enumerate().any(open) {
                break;
            }
        }
        if lacking == self.gateways.len() {
            return Err(self.call.not_found(&cid.to_string()));
        }
        Err(self.not_served(cid))
    }

    /// Asks one gateway for the block.
    async fn ask(
        &mut self,
        index: usize,
        cid: &Cid,
        want: Want<'_>,
    ) -> Result<Result<(Bytes, bool), Miss>, FetchError> {
        let url = self.gateways[index].url();
        let (Want::Block(soon) | Want::Tree(soon)) = want;
        if matches!(want, Want::Tree(_)) && cid.codec() == DAG_PB && self.singly == 0 {
            let budget = spared(self.asker.policy.max_bytes);
            return match self.asker.tree((index, url), cid, budget).await {
                Ok(car) => {
                    (self.car, self.open) = (Some(car), 0);
                    Ok(match self.next_in_archive(cid).await? {
                        Arrived::Block(block) => Ok((block, true)),
                        Arrived::Miss(_, miss) => Err(miss),
                        Arrived::Nothing => Err(Miss::Failed("its archive is empty".to_owned())),
                    })
                }
                Err(miss) => Ok(Err(miss)),
            };
        }
        self.singly = self.singly.saturating_sub(1);
        let missing = |next: &&Cid| inline(next).is_none() && !self.kept.contains_key(&key(next));
        let same_kind = |next: &&Cid| next.codec() == cid.codec() && *next != cid;
        let more = soon.iter().filter(same_kind).filter(missing).filter(|next| check_supported(next).is_ok());
        let mut cids = vec![*cid];
        for next in more {
            if cids.len() >= self.asker.policy.max_parallel.max(1) {
                break;
            }
            if !cids.contains(next) {
                cids.push(*next);
            }
        }
        let mut answers = self.asker.blocks(url, &cids).await.into_iter();
        let first = answers.next().unwrap_or_else(|| Err(Miss::Failed("no answer".to_owned())));
        for (cid, block) in cids[1..].iter().zip(answers) {
            // What failed here is asked for, and its failure noted, when its turn comes.
            if let Ok(block) = block {
                self.keep(cid, &block).await?;
            }
        }
        match first {
            Ok(block) if cid.codec() != RAW => {
                self.keep(cid, &block).await?;
                Ok(Ok((block, true)))
            }
            answer => Ok(answer.map(|block| (block, true))),
        }
    }

    /// Keeps a checked block, while there is room. What is not kept is asked for again if it is needed.
    async fn keep(&mut self, cid: &Cid, block: &Bytes) -> Result<(), FetchError> {
        let offset = self.scratch.len();
        let room = spared(self.asker.policy.max_bytes).saturating_sub(offset) >= block.len() as u64;
        let few = (self.kept.len() as u64) < self.asker.policy.max_blocks;
        if !room || !few || self.kept.contains_key(&key(cid)) {
            return Ok(());
        }
        self.scratch.write(block).await.map_err(|e| put_error(self.call.name, e))?;
        self.kept.insert(key(cid), Place { file: SCRATCH, offset, len: block.len() });
        Ok(())
    }

    fn too_many(&self, cid: &Cid) -> FetchError {
        let reason = format!("a tree of more than {} blocks", self.asker.policy.max_blocks);
        self.call.bad_manifest(ContentError::BadBlock { cid: cid.to_string(), reason })
    }

    fn not_served(&self, cid: &Cid) -> FetchError {
        let told = |gateway: &Gateway<'_>| {
            format!("{}: {}", gateway.host(), gateway.note.as_deref().unwrap_or("not asked"))
        };
        let each: Vec<_> = self.gateways.iter().map(told).collect();
        let reason = format!("no IPFS gateway served {cid} ({})", each.join("; "));
        FetchError::Unreachable { reference: self.call.name.to_owned(), reason, how: Unreached::Gateways }
    }
}

/// What stands for a block: the SHA-256 in its CID, or that of its other hash.
fn key(cid: &Cid) -> Digest {
    match <[u8; 32]>::try_from(cid.hash().digest()) {
        Ok(digest) => Digest(digest),
        Err(_) => Digest::of(&cid.hash().to_bytes()),
    }
}

/// The bytes of an archive that holds `bytes` of files.
fn spared(bytes: u64) -> u64 {
    bytes.saturating_add((bytes / SPARE_PART).max(SPARE_BYTES))
}
