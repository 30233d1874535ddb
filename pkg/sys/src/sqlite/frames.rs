//! The write-ahead log and its index, as SQLite's file format has them (<https://sqlite.org/walformat.html>).
//!
//! Each frame's checksum goes on from the one before, so that a frame is proved by the header of its predecessor, and SQLite
//! ends its recovery at the first frame that does not fit.

use super::PAGE;

pub const LOG_HEADER: usize = 32;
pub const FRAME_HEADER: usize = 24;
/// A frame: its header and one page.
pub const FRAME: usize = FRAME_HEADER + PAGE;

type Sum = [u32; 2];

fn big(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn native(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Goes on from `seed` over `bytes`, a multiple of 8 of them, read as words of one byte order.
fn sum(seed: Sum, bytes: &[u8], big_endian: bool) -> Sum {
    let [mut a, mut b] = seed;
    for pair in bytes.chunks_exact(8) {
        let (first, second) = if big_endian {
            (big(pair, 0), big(pair, 4))
        } else {
            (
                u32::from_le_bytes([pair[0], pair[1], pair[2], pair[3]]),
                u32::from_le_bytes([pair[4], pair[5], pair[6], pair[7]]),
            )
        };
        a = a.wrapping_add(first).wrapping_add(b);
        b = b.wrapping_add(second).wrapping_add(a);
    }
    [a, b]
}

/// The header of a write-ahead log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogHeader {
    big_endian: bool,
    pub page_size: u32,
    /// Stand in every frame of this round of the log; frames of earlier rounds have others.
    pub salts: [u8; 8],
    pub sum: Sum,
}

impl LogHeader {
    /// `None`: these bytes are no whole header.
    pub fn parse(bytes: &[u8; LOG_HEADER]) -> Option<Self> {
        let magic = big(bytes, 0);
        if magic & !1 != 0x377f_0682 {
            return None;
        }
        let mut salts = [0; 8];
        salts.copy_from_slice(&bytes[16..24]);
        let header = LogHeader {
            big_endian: magic & 1 == 1,
            page_size: big(bytes, 8),
            salts,
            sum: [big(bytes, 24), big(bytes, 28)],
        };
        (sum([0, 0], &bytes[..24], header.big_endian) == header.sum).then_some(header)
    }

    /// Where the header is damaged: what frames are compared with that follow one another and have these salts.
    pub fn assumed(salts: [u8; 8]) -> Self {
        LogHeader { big_endian: cfg!(target_endian = "big"), page_size: PAGE as u32, salts, sum: [0, 0] }
    }

    /// Does a frame fit to what comes before it, `before` being the checksum there?
    pub fn proves(&self, before: Sum, header: &FrameHeader, page: &[u8]) -> bool {
        header.salts == self.salts && header.page != 0 && header.fits(before, page, self.big_endian)
    }
}

#[derive(Clone, Copy, Debug)]
pub struct FrameHeader {
    start: [u8; 8],
    pub page: u32,
    /// Pages of the database after this frame, which ends a transaction; 0: it does not.
    pub commit: u32,
    pub salts: [u8; 8],
    pub sum: Sum,
}

impl FrameHeader {
    pub fn parse(bytes: &[u8; FRAME_HEADER]) -> Self {
        let (mut start, mut salts) = ([0; 8], [0; 8]);
        start.copy_from_slice(&bytes[..8]);
        salts.copy_from_slice(&bytes[8..16]);
        FrameHeader { start, page: big(bytes, 0), commit: big(bytes, 4), salts, sum: [big(bytes, 16), big(bytes, 20)] }
    }

    fn fits(&self, before: Sum, page: &[u8], big_endian: bool) -> bool {
        sum(sum(before, &self.start, big_endian), page, big_endian) == self.sum
    }

    /// As [`LogHeader::proves`], for a reader of one page that has not seen the log's header.
    pub(super) fn fits_either(&self, before: Sum, page: &[u8]) -> bool {
        let native = cfg!(target_endian = "big");
        self.fits(before, page, native) || self.fits(before, page, !native)
    }
}

/// What the index beside the log (`-shm`) last said: the salts of the log's round and how many frames were committed. It is
/// written after the frames are on the disk. `None`: it is not whole.
pub fn index_of_log(bytes: &[u8]) -> Option<([u8; 8], u32)> {
    const HEADER: usize = 48;
    // Two copies; a process that died between them leaves them different, and either may be the older.
    let header = bytes.get(..HEADER)?;
    let whole = sum([0, 0], &header[..40], cfg!(target_endian = "big")) == [native(header, 40), native(header, 44)];
    if !whole || header[12] == 0 {
        return None;
    }
    let mut salts = [0; 8];
    salts.copy_from_slice(&header[32..40]);
    Some((salts, native(header, 16)))
}
