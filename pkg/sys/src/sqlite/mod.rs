//! SQLite with checksums: a VFS that keeps one in each page of a database and proves every page that is read, and what is
//! needed of the formats of SQLite's files to do so.

mod frames;
mod vfs;

pub use frames::{FRAME, FRAME_HEADER, FrameHeader, LOG_HEADER, LogHeader, index_of_log};
pub use vfs::{Damage, checked_vfs, reserve_checksums, take_damage};

/// The size of every page. SQLite's default, and the VFS knows pages by it.
pub const PAGE: usize = 4096;
/// Bytes at the end of each page that SQLite leaves to the checksum.
pub const RESERVED: usize = 4;

/// The checksum of a page: its number is in it, so that a page that was written to a wrong place is found too.
fn page_sum(number: u32, page: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&number.to_le_bytes());
    crc.update(page);
    crc.finalize()
}

/// Does page `number`, the first is 1, carry its checksum?
pub fn has_page_sum(number: u32, page: &[u8]) -> bool {
    let (content, sum) = page.split_at(page.len().saturating_sub(RESERVED));
    sum == page_sum(number, content).to_le_bytes()
}

/// May page `number` be used? One that was never written is nothing but zeros: SQLite leaves such holes where it used a page and
/// freed it before it got to the disk. Where zeros stand for content, they make neither a page of a tree nor a row.
pub fn is_whole(number: u32, page: &[u8]) -> bool {
    has_page_sum(number, page) || page.iter().all(|b| *b == 0)
}
