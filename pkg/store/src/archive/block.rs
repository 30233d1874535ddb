//! Blocks: a kind, two lengths, the content (zstd, but for the header, which people may read) and a checksum.
//!
//! The checksum is SHA-256 over the checksum before it and all of this block, cut to 16 bytes: a block that was changed,
//! left out or moved does not follow from the ones before it.

use super::ArchiveError;
use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use std::sync::Arc;

/// The first line of every archive; the number is the format's.
const MAGIC: &str = "ISOPOD BACKUP ";
const FORMAT: &str = "1";
const HEAD: usize = 9;
const SUM: usize = 16;
/// A quick level: a backup must not take the machine from what runs on it.
const LEVEL: i32 = 3;
/// No content is longer; a length beyond it is not even tried.
const LONGEST: u32 = 1 << 30;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Header = 1,
    State = 2,
    File = 3,
    Entries = 4,
    End = 5,
}

impl Kind {
    fn of(byte: u8) -> Option<Kind> {
        [Kind::Header, Kind::State, Kind::File, Kind::Entries, Kind::End].into_iter().find(|k| *k as u8 == byte)
    }
}

fn chain(before: &[u8; SUM], head: &[u8], content: &[u8]) -> [u8; SUM] {
    let whole = Sha256::new().chain_update(before).chain_update(head).chain_update(content).finalize();
    let mut sum = [0; SUM];
    sum.copy_from_slice(&whole[..SUM]);
    sum
}

fn cannot(doing: &'static str) -> impl FnOnce(std::io::Error) -> ArchiveError {
    move |e| ArchiveError::Io { doing, source: Arc::new(e) }
}

pub(crate) struct BlockWriter<W> {
    out: W,
    sum: [u8; SUM],
}

impl<W: Write> BlockWriter<W> {
    pub fn new(mut out: W) -> Result<Self, ArchiveError> {
        let line = format!("{MAGIC}{FORMAT}\n");
        out.write_all(line.as_bytes()).map_err(cannot("write"))?;
        Ok(BlockWriter { out, sum: chain(&[0; SUM], line.as_bytes(), &[]) })
    }

    pub fn block(&mut self, kind: Kind, content: &[u8]) -> Result<(), ArchiveError> {
        let packed = match kind {
            Kind::Header => None,
            _ => Some(zstd::bulk::compress(content, LEVEL).map_err(cannot("compress"))?),
        };
        let stored = packed.as_deref().unwrap_or(content);
        let mut head = vec![kind as u8];
        for length in [stored.len(), content.len()] {
            let length = u32::try_from(length).ok().filter(|n| *n <= LONGEST);
            let length = length.ok_or_else(|| std::io::Error::other("a key or value of more than a gigabyte"));
            head.extend(length.map_err(cannot("write"))?.to_le_bytes());
        }
        self.sum = chain(&self.sum, &head, stored);
        [&head[..], stored, &self.sum]
            .into_iter()
            .try_for_each(|part| self.out.write_all(part))
            .map_err(cannot("write"))
    }

    pub fn into_inner(self) -> W {
        self.out
    }
}

pub(crate) struct BlockReader<R> {
    input: R,
    sum: [u8; SUM],
    /// Of the next block, from 1 on.
    number: u64,
}

impl<R: Read> BlockReader<R> {
    pub fn new(mut input: R) -> Result<Self, ArchiveError> {
        let mut line = Vec::new();
        // Byte by byte: what follows is not to be read ahead of its checksum.
        while line.last() != Some(&b'\n') && line.len() < MAGIC.len() + 8 {
            let mut byte = [0];
            match input.read(&mut byte) {
                Ok(0) => break,
                Ok(_) => line.push(byte[0]),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(cannot("read")(e)),
            }
        }
        let text = String::from_utf8_lossy(&line);
        let format = match text.strip_prefix(MAGIC) {
            Some(format) => format,
            None if !text.is_empty() && MAGIC.starts_with(&*text) => return Err(ArchiveError::Truncated { block: 0 }),
            None => return Err(ArchiveError::Foreign),
        };
        let Some(format) = format.strip_suffix('\n') else { return Err(ArchiveError::Truncated { block: 0 }) };
        if format != FORMAT {
            return Err(ArchiveError::Format(format.to_owned()));
        }
        Ok(BlockReader { input, sum: chain(&[0; SUM], &line, &[]), number: 1 })
    }

    /// The next block, verified.
    pub fn block(&mut self) -> Result<(Kind, Vec<u8>), ArchiveError> {
        let block = self.number;
        let damaged = || ArchiveError::Damaged { block };
        let head = self.exactly(HEAD as u64)?;
        let length = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (stored, length) = (length(1), length(5));
        if stored > LONGEST || length > LONGEST {
            return Err(damaged());
        }
        let content = self.exactly(u64::from(stored))?;
        let sum = self.exactly(SUM as u64)?;
        let expected = chain(&self.sum, &head, &content);
        if sum != expected {
            return Err(damaged());
        }
        self.sum = expected;
        self.number += 1;
        let kind = Kind::of(head[0]).ok_or_else(damaged)?;
        let content = match kind {
            Kind::Header => content,
            _ => zstd::bulk::decompress(&content, length as usize).map_err(|_| damaged())?,
        };
        if content.len() != length as usize { Err(damaged()) } else { Ok((kind, content)) }
    }

    /// The number of the block that was read last.
    pub fn last(&self) -> u64 {
        self.number - 1
    }

    /// Nothing may follow the last block.
    pub fn end(&mut self) -> Result<(), ArchiveError> {
        let mut more = Vec::new();
        self.input.by_ref().take(1).read_to_end(&mut more).map_err(cannot("read"))?;
        if more.is_empty() { Ok(()) } else { Err(ArchiveError::Trailing) }
    }

    /// Grows with what is really there: a wrong length costs no memory.
    fn exactly(&mut self, length: u64) -> Result<Vec<u8>, ArchiveError> {
        let mut bytes = Vec::new();
        self.input.by_ref().take(length).read_to_end(&mut bytes).map_err(cannot("read"))?;
        if bytes.len() as u64 == length { Ok(bytes) } else { Err(ArchiveError::Truncated { block: self.number }) }
    }
}
