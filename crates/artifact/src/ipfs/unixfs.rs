//! Files and folders in IPFS blocks: <https://specs.ipfs.tech/unixfs/>.

use std::collections::HashSet;

use bytes::Bytes;
use cid::Cid;
use prost::Message;

use crate::digest::Digest;
use crate::error::ContentError;

/// The codec of blocks that are a file's bytes.
pub(crate) const RAW: u64 = 0x55;
/// The codec of blocks that link others.
pub(crate) const DAG_PB: u64 = 0x70;
const IDENTITY: u64 = 0x00;
const SHA2_256: u64 = 0x12;
const SHA2_512: u64 = 0x13;

/// The widest table of a sharded folder; more is what no writer makes.
const MAX_FANOUT: u64 = 1024;

/// What a block is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node {
    /// A file or a part of one: its own bytes, then those of the parts with their sizes.
    File { data: Bytes, parts: Vec<(Cid, u64)>, size: u64 },
    /// A folder, or a part of a sharded one.
    Folder(Vec<Entry>),
}

/// What a folder's block links to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) cid: Cid,
    /// Its name; `None` for a further part of the same folder.
    pub(crate) name: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct PbNode {
    #[prost(message, repeated, tag = "2")]
    links: Vec<PbLink>,
    #[prost(bytes = "bytes", optional, tag = "1")]
    data: Option<Bytes>,
}

#[derive(Clone, PartialEq, Message)]
struct PbLink {
    #[prost(bytes = "bytes", optional, tag = "1")]
    hash: Option<Bytes>,
    #[prost(string, optional, tag = "2")]
    name: Option<String>,
    #[prost(uint64, optional, tag = "3")]
    tsize: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct UnixFs {
    #[prost(int32, required, tag = "1")]
    kind: i32,
    #[prost(bytes = "bytes", optional, tag = "2")]
    data: Option<Bytes>,
    #[prost(uint64, optional, tag = "3")]
    filesize: Option<u64>,
    #[prost(uint64, repeated, packed = "false", tag = "4")]
    blocksizes: Vec<u64>,
    #[prost(uint64, optional, tag = "6")]
    fanout: Option<u64>,
}

/// Whether blocks with this CID can be checked and read.
pub(crate) fn check_supported(cid: &Cid) -> Result<(), ContentError> {
    if !knows_hash(cid) {
        return Err(ContentError::UnsupportedHash { cid: cid.to_string(), function: cid.hash().code() });
    }
    if !matches!(cid.codec(), RAW | DAG_PB) {
        return Err(ContentError::UnsupportedCodec { cid: cid.to_string(), codec: cid.codec() });
    }
    Ok(())
}

/// Whether blocks with this CID can be checked: by a hash in full length, since a shortened one could be met by others.
pub(crate) fn knows_hash(cid: &Cid) -> bool {
    matches!((cid.hash().code(), cid.hash().size()), (SHA2_256, 32) | (SHA2_512, 64) | (IDENTITY, _))
}

/// The block that the CID itself holds, if it holds one.
pub(crate) fn inline(cid: &Cid) -> Option<Bytes> {
    (cid.hash().code() == IDENTITY).then(|| Bytes::copy_from_slice(cid.hash().digest()))
}

/// Whether `block` is what `cid` names.
pub(crate) fn is_block(cid: &Cid, block: &[u8]) -> bool {
    use sha2::Digest as _;
    match cid.hash().code() {
        SHA2_256 => cid.hash().digest() == Digest::of(block).0,
        SHA2_512 => cid.hash().digest() == sha2::Sha512::digest(block).as_slice(),
        IDENTITY => cid.hash().digest() == block,
        _ => false,
    }
}

/// Reads a block that was checked.
pub(crate) fn parse(cid: &Cid, block: Bytes) -> Result<Node, ContentError> {
    if cid.codec() == RAW {
        let size = block.len() as u64;
        return Ok(Node::File { data: block, parts: Vec::new(), size });
    }
    let bad = |reason: &str| ContentError::BadBlock { cid: cid.to_string(), reason: reason.to_owned() };
    let node = PbNode::decode(block).map_err(|e| bad(&format!("not a dag-pb block: {e}")))?;
    let data = node.data.ok_or_else(|| bad("a dag-pb block without UnixFS data"))?;
    let unixfs = UnixFs::decode(data).map_err(|e| bad(&format!("not UnixFS: {e}")))?;
    let other = |what: &str| ContentError::UnsupportedNode { cid: cid.to_string(), what: what.to_owned() };
    let node = match unixfs.kind {
        0 | 2 => file(unixfs, node.links),
        1 => folder(node.links),
        3 => return Err(other("a metadata node")),
        4 => return Err(other("a symbolic link")),
        5 => shard(unixfs, node.links),
        _ => return Err(other("a node of unknown kind")),
    };
    node.map_err(bad)
}

fn file(unixfs: UnixFs, links: Vec<PbLink>) -> Result<Node, &'static str> {
    if links.len() != unixfs.blocksizes.len() {
        return Err("a file whose list of sizes does not fit its parts");
    }
    let data = unixfs.data.unwrap_or_default();
    let sum = |sum: u64, part: &u64| sum.checked_add(*part);
    let size = unixfs.blocksizes.iter().try_fold(data.len() as u64, sum);
    let size = size.ok_or("a file of an impossible size")?;
    if unixfs.filesize.is_some_and(|told| told != size) {
        return Err("a file whose size is not that of its parts");
    }
    let cids = links.into_iter().map(|link| cid_of(link.hash)).collect::<Result<Vec<_>, _>>()?;
    Ok(Node::File { data, parts: cids.into_iter().zip(unixfs.blocksizes).collect(), size })
}

fn folder(links: Vec<PbLink>) -> Result<Node, &'static str> {
    let mut names = HashSet::new();
    let mut entries = Vec::with_capacity(links.len());
    for link in links {
        let name = link.name.unwrap_or_default();
        if !names.insert(name.clone()) {
            return Err("a folder that has a name twice");
        }
        entries.push(Entry { cid: cid_of(link.hash)?, name: Some(name) });
    }
    Ok(Node::Folder(entries))
}

/// A part of a sharded folder: each name has its place in the table in front, in hex; a link without more is a further part.
fn shard(unixfs: UnixFs, links: Vec<PbLink>) -> Result<Node, &'static str> {
    let fanout = unixfs.fanout.unwrap_or_default();
    if !fanout.is_power_of_two() || !(2..=MAX_FANOUT).contains(&fanout) {
        return Err("a sharded folder of an impossible width");
    }
    let digits = format!("{:X}", fanout - 1).len();
    let mut entries = Vec::with_capacity(links.len());
    for link in links {
        let name = link.name.unwrap_or_default();
        let (place, rest) =
            name.split_at_checked(digits).ok_or("a sharded folder with a name without place")?;
        if u64::from_str_radix(place, 16).map_or(true, |place| place >= fanout) {
            return Err("a sharded folder with a name outside its table");
        }
        let name = (!rest.is_empty()).then(|| rest.to_owned());
        entries.push(Entry { cid: cid_of(link.hash)?, name });
    }
    Ok(Node::Folder(entries))
}

fn cid_of(hash: Option<Bytes>) -> Result<Cid, &'static str> {
    let bytes = hash.ok_or("a link without a CID")?;
    Cid::try_from(bytes.as_ref()).map_err(|_| "a link whose CID is malformed")
}
