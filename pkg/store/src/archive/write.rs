//! Writes an archive in one pass.

use super::block::{BlockWriter, Kind};
use super::{ArchiveError, ArchivedFile, Content, Header, codec};
use std::io::Write;

/// Bytes of entries in a block, about.
const BLOCK: usize = 256 << 10;

/// Writes all of `content`; `source` and `program` go into the header, which is returned. Runs on a thread that may wait. The writer comes back
/// unflushed.
pub fn write<W: Write>(
    out: W,
    mut content: Content,
    files: &[ArchivedFile],
    source: &str,
    program: &str,
) -> Result<(W, Header), ArchiveError> {
    let header = Header {
        revision: content.export.revision,
        compacted: content.export.compacted,
        reserved: content.reserved,
        keys: content.keys,
        created: jiff::Timestamp::now(),
        source: source.to_owned(),
        program: program.to_owned(),
    };
    let mut blocks = BlockWriter::new(out)?;
    blocks.block(Kind::Header, &codec::put_header(&header))?;
    blocks.block(Kind::State, &codec::put_state(&content.state))?;
    for file in files {
        blocks.block(Kind::File, &codec::put_file(file))?;
    }
    let mut count = 0;
    let mut buffer = Vec::with_capacity(BLOCK + BLOCK / 2);
    while let Some(part) = content.export.entries.blocking_recv() {
        for entry in part.map_err(ArchiveError::Source)? {
            codec::put_entry(&mut buffer, &entry);
            count += 1;
            if buffer.len() >= BLOCK {
                blocks.block(Kind::Entries, &buffer)?;
                buffer.clear();
            }
        }
    }
    if !buffer.is_empty() {
        blocks.block(Kind::Entries, &buffer)?;
    }
    let mut end = Vec::new();
    codec::number(&mut end, count);
    blocks.block(Kind::End, &end)?;
    Ok((blocks.into_inner(), header))
}
