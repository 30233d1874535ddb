//! etcd's `HashKV`: CRC-32C over the name of its bucket, then over each entry of the history as etcd's files have it.
//!
//! Invariant: two stores with the same history have the same hash, also when one of them has dropped more of what was
//! compacted. So [`is_hashed`] decides what counts, not what is there.

use crate::{KeyValue, Revision};

const TABLE: [u32; 256] = table();

/// The reflected polynomial of CRC-32C (RFC 3720, appendix B.4).
const fn table() -> [u32; 256] {
    let mut table = [0u32; 256];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
}

pub(crate) struct HistoryHasher {
    crc: u32,
    buffer: Vec<u8>,
}

impl HistoryHasher {
    pub fn new() -> Self {
        let mut hasher = HistoryHasher { crc: !0, buffer: Vec::new() };
        hasher.write(b"key");
        hasher
    }

    fn write(&mut self, bytes: &[u8]) {
        self.crc = bytes.iter().fold(self.crc, |crc, b| TABLE[usize::from(crc as u8 ^ b)] ^ (crc >> 8));
    }

    /// The next entry, ascending by (revision, sub). `None`: `key` was deleted.
    pub fn add(&mut self, rev: Revision, sub: u32, key: &[u8], kv: Option<&KeyValue>) {
        let mut bytes = std::mem::take(&mut self.buffer);
        bytes.clear();
        bytes.extend(rev.to_be_bytes());
        bytes.push(b'_');
        bytes.extend(i64::from(sub).to_be_bytes());
        if kv.is_none() {
            bytes.push(b't');
        }
        field_bytes(&mut bytes, 1, key);
        if let Some(kv) = kv {
            field_number(&mut bytes, 2, kv.create_revision);
            field_number(&mut bytes, 3, kv.mod_revision);
            field_number(&mut bytes, 4, kv.version);
            field_bytes(&mut bytes, 5, &kv.value);
            field_number(&mut bytes, 6, kv.lease);
        }
        self.write(&bytes);
        self.buffer = bytes;
    }

    pub fn finish(self) -> u32 {
        !self.crc
    }
}

/// Does an entry count? Up to the compacted revision only what a read at `hash_revision` would still see. `superseded`: a
/// later entry of the same key stands at or before `hash_revision`.
pub(crate) fn is_hashed(rev: Revision, compacted: Revision, deleted: bool, superseded: bool) -> bool {
    rev > compacted || (!deleted && !superseded)
}

fn varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// Protobuf leaves out what is empty or zero (proto3).
fn field_bytes(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    if !bytes.is_empty() {
        out.push(field << 3 | 2);
        varint(out, bytes.len() as u64);
        out.extend(bytes);
    }
}

fn field_number(out: &mut Vec<u8>, field: u8, n: i64) {
    if n != 0 {
        out.push(field << 3);
        varint(out, n as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_crc_32c() {
        let mut hasher = HistoryHasher { crc: !0, buffer: Vec::new() };
        hasher.write(b"123456789");
        assert_eq!(hasher.finish(), 0xe306_9283);
    }
}
