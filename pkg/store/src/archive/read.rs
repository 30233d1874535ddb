//! Reads an archive in one pass.

use super::block::{BlockReader, Kind};
use super::codec::{self, Cursor};
use super::{ArchiveError, ArchivedFile, Content, Header, State};
use crate::{Export, HistoryEntry, Result, StoreError};
use std::io::Read;
use tokio::sync::mpsc;

/// An archive whose entries are yet to be read.
pub struct Archive<R> {
    pub header: Header,
    pub state: State,
    pub files: Vec<ArchivedFile>,
    blocks: BlockReader<R>,
    /// The block after the files.
    next: Option<(Kind, Vec<u8>)>,
    count: i64,
}

impl<R: Read> Archive<R> {
    pub fn open(input: R) -> Result<Self, ArchiveError> {
        let mut blocks = BlockReader::new(input)?;
        let header = expect(&mut blocks, Kind::Header, codec::header)?;
        let state = expect(&mut blocks, Kind::State, codec::state)?;
        let mut files = Vec::new();
        let next = loop {
            match blocks.block()? {
                (Kind::File, content) => {
                    files.push(codec::file(&content).ok_or(ArchiveError::Damaged { block: blocks.last() })?);
                }
                other => break other,
            }
        };
        Ok(Archive { header, state, files, blocks, next: Some(next), count: 0 })
    }

    /// The next entries; `None`: these were all, and the archive is whole.
    pub fn entries(&mut self) -> Result<Option<Vec<HistoryEntry>>, ArchiveError> {
        let (kind, content) = match self.next.take() {
            Some(block) => block,
            None => self.blocks.block()?,
        };
        let damaged = ArchiveError::Damaged { block: self.blocks.last() };
        match kind {
            Kind::Entries => {
                let entries = codec::entries(&content).ok_or(damaged)?;
                self.count += entries.len() as i64;
                Ok(Some(entries))
            }
            Kind::End if Cursor(&content).number() == Some(self.count) => self.blocks.end().map(|()| None),
            _ => Err(damaged),
        }
    }
}

impl<R: Read + Send + 'static> Archive<R> {
    /// The content, for a new store. An archive that turns out not to be whole ends it with an error.
    pub fn into_content(mut self) -> Result<Content> {
        let (sender, entries) = mpsc::channel(2);
        let Header { revision, compacted, reserved, keys, .. } = self.header;
        let state = std::mem::take(&mut self.state);
        let read = move || {
            loop {
                let part = match self.entries() {
                    Ok(Some(part)) => Ok(part),
                    Ok(None) => return,
                    Err(e) => Err(StoreError::from(e)),
                };
                let ends = part.is_err();
                // Nobody takes them any more, or nothing more can be read.
                if sender.blocking_send(part).is_err() || ends {
                    return;
                }
            }
        };
        super::start_thread("archive-reader", read)?;
        Ok(Content { state, reserved, keys, export: Export { revision, compacted, entries } })
    }
}

fn expect<R: Read, T>(
    blocks: &mut BlockReader<R>,
    kind: Kind,
    decode: impl FnOnce(&[u8]) -> Option<T>,
) -> Result<T, ArchiveError> {
    let (found, content) = blocks.block()?;
    let decoded = if found == kind { decode(&content) } else { None };
    decoded.ok_or(ArchiveError::Damaged { block: blocks.last() })
}
