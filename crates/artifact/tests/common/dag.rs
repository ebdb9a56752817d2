//! A small writer of IPFS trees, independent of the code under test, and gateways that serve them badly.

use std::collections::HashMap;
use std::sync::Arc;

use artifact::Digest;
use cid::Cid;
use cid::multihash::Multihash;

use super::{Reply, Server, ok, status};

pub(crate) const RAW: u64 = 0x55;
pub(crate) const DAG_PB: u64 = 0x70;

/// Blocks and what they link to.
#[derive(Default)]
pub(crate) struct Dag {
    blocks: HashMap<Cid, (Vec<u8>, Vec<Cid>)>,
}

/// What a gateway does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mischief {
    None,
    /// One bit of the archive or block, at this part of it in 1/65536, is another.
    Flip(u16),
    /// The answer ends after this part of it in 1/65536.
    Truncate(u16),
    /// The archive lacks the block of this number.
    Omit(usize),
    /// The archive is in an order by this seed.
    Reorder(u64),
    /// The archive holds nothing.
    Empty,
    NotFound,
    ServerError,
    WebPage,
}

pub(crate) fn cid_of(codec: u64, block: &[u8]) -> Cid {
    Cid::new_v1(codec, Multihash::wrap(0x12, &Digest::of(block).0).unwrap())
}

#[allow(clippy::wildcard_enum_match_arm, reason = "each step of an answer knows its own mischief only")]
impl Dag {
    pub(crate) fn put(&mut self, codec: u64, block: Vec<u8>, links: Vec<Cid>) -> Cid {
        let cid = cid_of(codec, &block);
        self.blocks.insert(cid, (block, links));
        cid
    }

    /// A file in pieces of `chunk` bytes, of which at most `width` hang below one block.
    pub(crate) fn file(&mut self, bytes: &[u8], chunk: usize, width: usize, raw_leaves: bool) -> Cid {
        let mut level: Vec<(Cid, u64)> = Vec::new();
        for piece in bytes.chunks(chunk) {
            let cid = if raw_leaves {
                self.put(RAW, piece.to_vec(), Vec::new())
            } else {
                self.put(DAG_PB, node(&[], &unixfs(2, piece, &[], None)), Vec::new())
            };
            level.push((cid, piece.len() as u64));
        }
        if level.is_empty() {
            level.push((self.put(RAW, Vec::new(), Vec::new()), 0));
        }
        while level.len() > 1 {
            level = level.chunks(width).map(|parts| self.part(parts)).collect();
        }
        level[0].0
    }

    fn part(&mut self, parts: &[(Cid, u64)]) -> (Cid, u64) {
        let links: Vec<_> = parts.iter().map(|(cid, _)| (String::new(), *cid)).collect();
        let sizes: Vec<u64> = parts.iter().map(|(_, size)| *size).collect();
        let block = node(&links, &unixfs(2, &[], &sizes, None));
        (self.put(DAG_PB, block, parts.iter().map(|(cid, _)| *cid).collect()), sizes.iter().sum())
    }

    pub(crate) fn folder(&mut self, entries: &[(String, Cid)]) -> Cid {
        let links = entries.iter().map(|(_, cid)| *cid).collect();
        self.put(DAG_PB, node(entries, &unixfs(1, &[], &[], None)), links)
    }

    /// The blocks from `root` on, depth first, each once.
    pub(crate) fn order(&self, root: Cid) -> Vec<Cid> {
        let (mut order, mut open) = (Vec::new(), vec![root]);
        while let Some(cid) = open.pop() {
            if !order.contains(&cid) {
                order.push(cid);
                open.extend(self.blocks.get(&cid).iter().flat_map(|(_, links)| links.iter().rev()));
            }
        }
        order
    }

    pub(crate) fn car(&self, order: &[Cid]) -> Vec<u8> {
        let found = order.iter().filter_map(|cid| Some((*cid, self.blocks.get(cid)?.0.as_slice())));
        Self::car_of(&found.collect::<Vec<_>>())
    }

    pub(crate) fn car_of(blocks: &[(Cid, &[u8])]) -> Vec<u8> {
        let mut car = section(&[b"\xa2eroots\x80gversion\x01"]);
        for (cid, block) in blocks {
            car.extend(section(&[&cid.to_bytes(), block]));
        }
        car
    }

    pub(crate) fn blocks(self) -> Vec<(Cid, Vec<u8>)> {
        self.blocks.into_iter().map(|(cid, (block, _))| (cid, block)).collect()
    }

    /// The blocks of an archive.
    pub(crate) fn read(car: &[u8]) -> Self {
        let mut dag = Self::default();
        let mut rest = car;
        let mut first = true;
        while !rest.is_empty() {
            let mut len = 0;
            for shift in 0.. {
                let byte = rest[0];
                rest = &rest[1..];
                len |= usize::from(byte & 0x7f) << (7 * shift);
                if byte & 0x80 == 0 {
                    break;
                }
            }
            let (mut section, after) = rest.split_at(len);
            rest = after;
            if !std::mem::take(&mut first) {
                let cid = Cid::read_bytes(&mut section).unwrap();
                dag.blocks.insert(cid, (section.to_vec(), Vec::new()));
            }
        }
        dag
    }

    pub(crate) fn answer(&self, request: &str, mischief: Mischief) -> Reply {
        let target = request.split(' ').nth(1).unwrap();
        let (path, query) = target.split_once('?').unwrap();
        let cid: Cid = path.strip_prefix("/ipfs/").unwrap().parse().unwrap();
        match mischief {
            Mischief::NotFound => return Reply::Close(status("404 Not Found", "", b"")),
            Mischief::ServerError => return Reply::Close(status("502 Bad Gateway", "", b"")),
            Mischief::WebPage => return Reply::Close(ok("", b"<!doctype html><p>Try our app")),
            _ => {}
        }
        let Some((block, _)) = self.blocks.get(&cid) else {
            return Reply::Close(status("404 Not Found", "", b""));
        };
        let body = if query == "format=raw" {
            block.clone()
        } else {
            assert_eq!(query, "format=car&dag-scope=all");
            let mut order = self.order(cid);
            match mischief {
                Mischief::Omit(number) => drop(order.remove(number % order.len())),
                Mischief::Reorder(seed) => {
                    order.sort_by_key(|cid| Digest::of(&[&cid.to_bytes(), &seed.to_le_bytes()[..]].concat()))
                }
                Mischief::Empty => order.clear(),
                _ => {}
            }
            self.car(&order)
        };
        let at = |part: u16| body.len() * usize::from(part) / 65_536;
        match mischief {
            Mischief::Flip(part) if !body.is_empty() => {
                let mut body = body.clone();
                body[at(part)] ^= 1 << (part % 8);
                Reply::Close(ok("", &body))
            }
            Mischief::Truncate(part) => {
                Reply::Close([&ok("", &body)[..ok("", &body).len() - body.len()], &body[..at(part)]].concat())
            }
            _ => Reply::Close(ok("", &body)),
        }
    }
}

/// Serves the tree, with mischief in the first `times` answers.
pub(crate) async fn gateway(dag: &Arc<Dag>, mischief: Mischief, times: usize) -> Server {
    let dag = dag.clone();
    Server::start(move |n, request| dag.answer(request, if n < times { mischief } else { Mischief::None }))
        .await
}

/// The UnixFS data of a node.
pub(crate) fn unixfs(kind: u64, data: &[u8], sizes: &[u64], fanout: Option<u64>) -> Vec<u8> {
    let mut out = [vec![0x08], varint(kind)].concat();
    if !data.is_empty() {
        out.extend(field(0x12, data));
    }
    if kind == 2 {
        out.push(0x18);
        out.extend(varint(sizes.iter().fold(data.len() as u64, |sum, size| sum.wrapping_add(*size))));
    }
    for size in sizes {
        out.push(0x20);
        out.extend(varint(*size));
    }
    if let Some(fanout) = fanout {
        out.extend([&[0x28, 0x22, 0x30][..], &varint(fanout)].concat());
    }
    out
}

/// A dag-pb block with named links.
pub(crate) fn node(links: &[(String, Cid)], data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, cid) in links {
        let link = [field(0x0a, &cid.to_bytes()), field(0x12, name.as_bytes()), vec![0x18, 0]].concat();
        out.extend(field(0x12, &link));
    }
    out.extend(field(0x0a, data));
    out
}

fn field(tag: u8, bytes: &[u8]) -> Vec<u8> {
    [vec![tag], varint(bytes.len() as u64), bytes.to_vec()].concat()
}

fn section(parts: &[&[u8]]) -> Vec<u8> {
    let bytes = parts.concat();
    [varint(bytes.len() as u64), bytes].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}
