//! Reads content archives (CAR, version 1) as they arrive: <https://ipld.io/specs/transport/car/carv1/>.
//!
//! It is written here because each block is bounded and cut out of the arriving bytes without a copy, which is all that is needed
//! of the format: the archive's own list of roots is not trusted and so not read.

use bytes::{Bytes, BytesMut};
use cid::Cid;

/// The most bytes that an archive's header may have; it lists a root or two.
const MAX_HEADER_BYTES: u64 = 64 * 1024;
/// The most bytes that a CID may have in front of its block.
const MAX_CID_BYTES: u64 = 128;
/// `"version": 1` in DAG-CBOR, which the header of a version 1 archive holds.
const VERSION_1: &[u8] = b"gversion\x01";

/// Cuts arriving bytes into blocks.
pub(crate) struct CarParser {
    buffer: BytesMut,
    header_read: bool,
    max_block_bytes: u64,
}

/// Why bytes are not an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CarFault {
    #[error("it sent something that is no CAR of version 1")]
    Malformed,
    #[error("it sent a block larger than permitted")]
    BlockTooLarge,
}

impl CarParser {
    pub(crate) fn new(max_block_bytes: u64) -> Self {
        Self { buffer: BytesMut::new(), header_read: false, max_block_bytes }
    }

    /// Takes the next bytes.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next block with the CID that the archive claims for it; `None` until more bytes come.
    pub(crate) fn next(&mut self) -> Result<Option<(Cid, Bytes)>, CarFault> {
        if !self.header_read {
            let Some(header) = self.section(MAX_HEADER_BYTES, CarFault::Malformed)? else { return Ok(None) };
            if !header.windows(VERSION_1.len()).any(|part| part == VERSION_1) {
                return Err(CarFault::Malformed);
            }
            self.header_read = true;
        }
        let longest = self.max_block_bytes + MAX_CID_BYTES;
        let Some(mut section) = self.section(longest, CarFault::BlockTooLarge)? else { return Ok(None) };
        let mut rest = &section[..];
        let cid = Cid::read_bytes(&mut rest).map_err(|_| CarFault::Malformed)?;
        let block = section.split_off(section.len() - rest.len());
        if block.len() as u64 > self.max_block_bytes {
            return Err(CarFault::BlockTooLarge);
        }
        Ok(Some((cid, block)))
    }

    /// Whether the bytes so far end where a block ends.
    pub(crate) fn is_whole(&self) -> bool {
        self.header_read && self.buffer.is_empty()
    }

    /// The next piece with its length in front, once it is here.
    fn section(&mut self, longest: u64, too_long: CarFault) -> Result<Option<Bytes>, CarFault> {
        let Some((len, prefix)) = varint(&self.buffer)? else { return Ok(None) };
        if len == 0 {
            return Err(CarFault::Malformed);
        }
        if len > longest {
            return Err(too_long);
        }
        let end = prefix + usize::try_from(len).map_err(|_| too_long)?;
        if self.buffer.len() < end {
            self.buffer.reserve(end - self.buffer.len());
            return Ok(None);
        }
        Ok(Some(self.buffer.split_to(end).freeze().split_off(prefix)))
    }
}

/// An unsigned LEB128 number of at most 9 bytes and the bytes it takes; `None` if it is not all here.
fn varint(bytes: &[u8]) -> Result<Option<(u64, usize)>, CarFault> {
    let mut value = 0;
    for (index, byte) in bytes.iter().take(9).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Ok(Some((value, index + 1)));
        }
    }
    if bytes.len() < 9 { Ok(None) } else { Err(CarFault::Malformed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TREE: &[u8] = include_bytes!("../../tests/data/tree.car");

    fn parse(bytes: &[u8], step: usize) -> Result<(Vec<(Cid, Bytes)>, bool), CarFault> {
        let mut parser = CarParser::new(1 << 20);
        let mut blocks = Vec::new();
        for piece in bytes.chunks(step) {
            parser.push(piece);
            while let Some(block) = parser.next()? {
                blocks.push(block);
            }
        }
        Ok((blocks, parser.is_whole()))
    }

    #[test]
    fn an_archive_reads_alike_in_pieces_of_any_size() {
        let (blocks, whole) = parse(TREE, TREE.len()).unwrap();
        assert_eq!((blocks.len(), whole), (5, true));
        for step in [1, 2, 7, 100, 4096] {
            assert_eq!(parse(TREE, step).unwrap(), (blocks.clone(), true), "{step}");
        }
        assert!(!parse(&TREE[..TREE.len() - 1], 100).unwrap().1);
    }

    #[test]
    fn other_things_are_refused() {
        let version_2 = b"\x0a\xa1gversion\x02";
        for bytes in [&version_2[..], b"\x00", b"<html>", &[0x80; 9], &[0xff, 0xff, 0xff, 0x7f]] {
            assert_eq!(
                parse(bytes, 1).map(|(blocks, whole)| (blocks.len(), whole)),
                match bytes {
                    // `<` is a length, and the page ends before it.
                    b"<html>" => Ok((0, false)),
                    _ => Err(CarFault::Malformed),
                }
            );
        }
        let mut parser = CarParser::new(8999);
        parser.push(TREE);
        let mut next = parser.next();
        while let Ok(Some(_)) = next {
            next = parser.next();
        }
        assert_eq!(next, Err(CarFault::BlockTooLarge));
    }

    proptest::proptest! {
        #[test]
        fn damaged_archives_never_panic(at in 0..TREE.len(), byte: u8, step in 1_usize..3000) {
            let mut bytes = TREE.to_vec();
            bytes[at] = byte;
            let _ = parse(&bytes, step);
        }
    }
}
