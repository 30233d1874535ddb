//! Bytes that are written from the end to the front, as Go's generated code writes messages: when a length is due, what it
//! counts is there already.

use super::wire::{BYTES, VARINT, varint_length};

/// See the module. One can be used again and again.
#[derive(Debug, Default)]
pub(super) struct Backward {
    room: Vec<u8>,
    /// What is written begins here.
    start: usize,
}

impl Backward {
    /// Begins anew, with room for so many bytes.
    pub(super) fn clear(&mut self, room: usize) {
        if self.room.len() < room {
            self.room = vec![0; room];
        }
        self.start = self.room.len();
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.room[self.start..]
    }

    pub(super) fn len(&self) -> usize {
        self.room.len() - self.start
    }

    /// The next `n` bytes in front of what is there.
    fn front(&mut self, n: usize) -> &mut [u8] {
        if n > self.start {
            self.grow(n);
        }
        let end = self.start;
        self.start -= n;
        &mut self.room[self.start..end]
    }

    #[cold]
    fn grow(&mut self, n: usize) {
        let written = self.len();
        let mut room = vec![0; (2 * self.room.len()).max(written + n).max(1024)];
        let start = room.len() - written;
        room[start..].copy_from_slice(&self.room[self.start..]);
        (self.room, self.start) = (room, start);
    }

    pub(super) fn put(&mut self, bytes: &[u8]) {
        self.front(bytes.len()).copy_from_slice(bytes);
    }

    pub(super) fn varint(&mut self, mut v: u64) {
        if v < 0x80 {
            self.front(1)[0] = v as u8;
            return;
        }
        let length = varint_length(v);
        let room = self.front(length);
        for byte in &mut room[..length - 1] {
            *byte = v as u8 | 0x80;
            v >>= 7;
        }
        room[length - 1] = v as u8;
    }

    pub(super) fn tag(&mut self, tag: u32, wire_type: u8) {
        self.varint(u64::from(tag) << 3 | u64::from(wire_type));
    }

    pub(super) fn int(&mut self, tag: u32, v: i64) {
        self.varint(v as u64);
        self.tag(tag, VARINT);
    }

    pub(super) fn text(&mut self, tag: u32, bytes: &[u8]) {
        self.put(bytes);
        self.varint(bytes.len() as u64);
        self.tag(tag, BYTES);
    }

    /// Makes a message of what was written since the length was `before`.
    pub(super) fn message(&mut self, tag: u32, before: usize) {
        self.varint((self.len() - before) as u64);
        self.tag(tag, BYTES);
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::{put_int, put_varint};
    use super::*;

    #[test]
    fn as_written_forward() {
        let numbers = (0..64).flat_map(|bit| [1u64 << bit, (1 << bit) - 1, u64::MAX >> bit]).chain([0]);
        let mut backward = Backward::default();
        for n in numbers {
            let mut forward = Vec::new();
            put_varint(&mut forward, n);
            put_int(&mut forward, 300, n as i64);
            backward.clear(0);
            backward.int(300, n as i64);
            backward.varint(n);
            assert_eq!(backward.bytes(), forward, "{n}");
        }
    }
}
