//! The wire format: a header, a fixed part, and attributes (type, length, value, padded to four bytes; RFC 3549).
//!
//! Invariant: every message and attribute that [`Writer`] closes is aligned and carries its own length.

const HEADER: usize = 16;
/// Marks an attribute whose value is attributes.
const NESTED: u16 = 1 << 15;
const TYPE_MASK: u16 = 0x3fff;

/// Appends messages to one buffer.
#[derive(Default)]
pub struct Writer {
    buf: Vec<u8>,
    /// Where the open message starts.
    start: usize,
}

impl Writer {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn bytes(&self) -> &[u8] {
        &self.buf
    }

    pub fn len(&self) -> usize {
        self.buf.len()
    }

    pub fn is_empty(&self) -> bool {
        self.buf.is_empty()
    }

    /// Opens a message; close it with [`Writer::end`].
    pub fn begin(&mut self, kind: u16, flags: u16, seq: u32) {
        self.start = self.buf.len();
        self.buf.extend_from_slice(&0u32.to_ne_bytes());
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        self.buf.extend_from_slice(&flags.to_ne_bytes());
        self.buf.extend_from_slice(&seq.to_ne_bytes());
        self.buf.extend_from_slice(&0u32.to_ne_bytes());
    }

    pub fn end(&mut self) {
        let len = (self.buf.len() - self.start) as u32;
        self.buf[self.start..self.start + 4].copy_from_slice(&len.to_ne_bytes());
        self.pad();
    }

    /// Length of the message that is open.
    pub fn open_len(&self) -> usize {
        self.buf.len() - self.start
    }

    /// Sets a flag in the header of the message `seq`, which is closed.
    pub(crate) fn set_flag(&mut self, seq: u32, flag: u16) {
        let mut at = 0;
        while let (Some(len), Some(found)) = (u32_at(&self.buf, at), u32_at(&self.buf, at + 8)) {
            if found == seq {
                let flags = u16_at(&self.buf, at + 6).unwrap_or_default() | flag;
                self.buf[at + 6..at + 8].copy_from_slice(&flags.to_ne_bytes());
                return;
            }
            at += (len as usize).next_multiple_of(4);
        }
    }

    fn pad(&mut self) {
        self.buf.resize(self.buf.len().next_multiple_of(4), 0);
    }

    /// The fixed part after the header.
    pub fn fixed(&mut self, bytes: &[u8]) {
        self.buf.extend_from_slice(bytes);
        self.pad();
    }

    pub fn attr(&mut self, kind: u16, value: &[u8]) {
        self.buf.extend_from_slice(&((value.len() + 4) as u16).to_ne_bytes());
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        self.buf.extend_from_slice(value);
        self.pad();
    }

    /// A string with its closing NUL.
    pub fn str(&mut self, kind: u16, value: &str) {
        self.buf.extend_from_slice(&((value.len() + 5) as u16).to_ne_bytes());
        self.buf.extend_from_slice(&kind.to_ne_bytes());
        self.buf.extend_from_slice(value.as_bytes());
        self.buf.push(0);
        self.pad();
    }

    /// Netfilter's integers are in network order.
    pub fn be32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_be_bytes());
    }

    pub fn be64(&mut self, kind: u16, value: u64) {
        self.attr(kind, &value.to_be_bytes());
    }

    /// The routing family's integers are in the machine's order.
    pub fn ne32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_ne_bytes());
    }

    /// An attribute whose value `fill` writes.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let at = self.buf.len();
        self.buf.extend_from_slice(&[0; 4]);
        fill(self);
        let len = (self.buf.len() - at) as u16;
        self.buf[at..at + 2].copy_from_slice(&len.to_ne_bytes());
        self.buf[at + 2..at + 4].copy_from_slice(&(kind | NESTED).to_ne_bytes());
    }
}

/// One received message.
pub(crate) struct Received<'a> {
    pub kind: u16,
    pub flags: u16,
    pub seq: u32,
    pub body: &'a [u8],
}

/// The messages of a datagram.
pub(crate) fn messages(mut data: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let len = u32_at(data, 0)? as usize;
        if len < HEADER || len > data.len() {
            return None;
        }
        let message = Received {
            kind: u16_at(data, 4)?,
            flags: u16_at(data, 6)?,
            seq: u32_at(data, 8)?,
            body: &data[HEADER..len],
        };
        data = data.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// Reads attributes: (type without flags, value).
#[derive(Clone, Copy)]
pub struct Attributes<'a>(pub &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let len = u16_at(self.0, 0)? as usize;
        if len < 4 || len > self.0.len() {
            return None;
        }
        let item = (u16_at(self.0, 2)? & TYPE_MASK, &self.0[4..len]);
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(item)
    }
}

impl<'a> Attributes<'a> {
    pub fn find(self, kind: u16) -> Option<&'a [u8]> {
        let mut all = self;
        all.find_map(|(k, v)| (k == kind).then_some(v))
    }

    /// The attributes inside attribute `kind`; none when it is absent.
    pub fn inside(self, kind: u16) -> Attributes<'a> {
        Attributes(self.find(kind).unwrap_or_default())
    }
}

pub(crate) fn u16_at(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(data.get(at..at + 2)?.try_into().ok()?))
}

pub(crate) fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(data.get(at..at + 4)?.try_into().ok()?))
}

/// A string up to its NUL.
pub(crate) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|b| *b == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let mut w = Writer::new();
        w.begin(7, 1, 42);
        w.fixed(&[1, 2, 3, 4]);
        w.str(1, "abc");
        w.nest(2, |w| {
            w.be32(5, 9);
            w.attr(6, &[1]);
        });
        w.end();
        w.begin(8, 0, 43);
        w.end();
        let all: Vec<_> = messages(w.bytes()).collect();
        assert_eq!((all.len(), all[0].kind, all[0].seq, all[1].kind), (2, 7, 42, 8));
        let attrs = Attributes(&all[0].body[4..]);
        assert_eq!(text(attrs.find(1).unwrap()), "abc");
        assert_eq!(attrs.inside(2).find(5), Some(&9u32.to_be_bytes()[..]));
        assert_eq!(attrs.inside(2).find(6), Some(&[1u8][..]));
        assert_eq!(attrs.find(3), None);
    }

    #[test]
    fn a_truncated_datagram_ends_the_iteration() {
        let mut w = Writer::new();
        w.begin(7, 1, 42);
        w.str(1, "abc");
        w.end();
        for cut in 0..w.len() {
            assert_eq!(messages(&w.bytes()[..cut]).count(), 0);
        }
        assert_eq!(Attributes(&[9, 0, 1]).count(), 0);
        assert_eq!(Attributes(&[3, 0, 1, 0, 0]).count(), 0);
    }
}
