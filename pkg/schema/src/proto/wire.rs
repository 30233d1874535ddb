//! Protobuf's wire format: varints, tags, lengths.
//!
//! Invariant: a [`Reader`] never reads outside its bytes and never panics.

use super::ProtoError;

pub const VARINT: u8 = 0;
pub const FIXED64: u8 = 1;
pub const BYTES: u8 = 2;
const START_GROUP: u8 = 3;
const END_GROUP: u8 = 4;
const FIXED32: u8 = 5;

/// A varint.
pub fn put_varint(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push(v as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

pub fn put_tag(out: &mut Vec<u8>, tag: u32, wire_type: u8) {
    put_varint(out, u64::from(tag) << 3 | u64::from(wire_type));
}

pub fn put_int(out: &mut Vec<u8>, tag: u32, v: i64) {
    put_tag(out, tag, VARINT);
    put_varint(out, v as u64);
}

pub fn put_bytes(out: &mut Vec<u8>, tag: u32, bytes: &[u8]) {
    put_tag(out, tag, BYTES);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// How long a varint is.
pub fn varint_length(v: u64) -> usize {
    (63 - (v | 1).leading_zeros() as usize) / 7 + 1
}

/// How long a length-delimited field is with its tag and its length.
pub fn field_length(tag: u32, content: usize) -> usize {
    varint_length(u64::from(tag) << 3) + varint_length(content as u64) + content
}

/// Writes a message whose length is known only after its content.
pub fn put_message(out: &mut Vec<u8>, tag: u32, content: impl FnOnce(&mut Vec<u8>)) {
    put_tag(out, tag, BYTES);
    let start = out.len();
    out.push(0);
    content(out);
    let mut length = Vec::with_capacity(4);
    put_varint(&mut length, (out.len() - start - 1) as u64);
    out.splice(start..=start, length);
}

pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Reader(bytes)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn varint(&mut self) -> Result<u64, ProtoError> {
        let mut v = 0u64;
        for (i, b) in self.0.iter().enumerate() {
            if i >= 10 {
                return Err(ProtoError::IntegerOverflow);
            }
            v |= u64::from(b & 0x7f) << (7 * i as u32).min(63);
            if *b < 0x80 {
                self.0 = &self.0[i + 1..];
                return Ok(v);
            }
        }
        Err(if self.0.len() >= 10 { ProtoError::IntegerOverflow } else { ProtoError::UnexpectedEof })
    }

    /// Field number and wire type.
    pub fn tag(&mut self) -> Result<(u64, u8), ProtoError> {
        let v = self.varint()?;
        let (tag, wire_type) = (v >> 3, (v & 7) as u8);
        match wire_type {
            END_GROUP => Err(ProtoError::UnexpectedEndOfGroup),
            _ if tag == 0 || tag > i32::MAX as u64 => Err(ProtoError::IllegalTag { tag, wire_type }),
            _ => Ok((tag, wire_type)),
        }
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], ProtoError> {
        let (head, tail) = self.0.split_at_checked(n).ok_or(ProtoError::UnexpectedEof)?;
        self.0 = tail;
        Ok(head)
    }

    /// A length and that many bytes.
    pub fn bytes(&mut self) -> Result<&'a [u8], ProtoError> {
        let n = self.varint()?;
        self.take(usize::try_from(n).map_err(|_| ProtoError::UnexpectedEof)?)
    }

    pub fn fixed64(&mut self) -> Result<u64, ProtoError> {
        let bytes = self.take(8)?;
        Ok(bytes.iter().rev().fold(0, |v, b| v << 8 | u64::from(*b)))
    }

    /// Drops the value of an unknown field.
    pub fn skip(&mut self, wire_type: u8) -> Result<(), ProtoError> {
        let mut groups = 0u32;
        let mut wire_type = wire_type;
        loop {
            match wire_type {
                VARINT => drop(self.varint()?),
                FIXED64 => drop(self.take(8)?),
                BYTES => drop(self.bytes()?),
                FIXED32 => drop(self.take(4)?),
                START_GROUP => groups += 1,
                END_GROUP => groups = groups.checked_sub(1).ok_or(ProtoError::UnexpectedEndOfGroup)?,
                other => return Err(ProtoError::IllegalWireType(other)),
            }
            if groups == 0 {
                return Ok(());
            }
            wire_type = (self.varint()? & 7) as u8;
        }
    }
}
