//! Sets and maps, and their elements.

use super::Verdict;
use crate::netlink::Writer;
use std::time::Duration;

/// The type of one field of a key or value. It fixes the length; the rest is for `nft list`, which shows by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    Ipv4 = 7,
    Protocol = 12,
    Port = 13,
    /// A number in the machine's order.
    Number = 19,
}

impl Type {
    fn padded(self) -> usize {
        4
    }

    fn len(self) -> usize {
        match self {
            Type::Ipv4 | Type::Number => 4,
            Type::Protocol => 1,
            Type::Port => 2,
        }
    }
}

/// `nft`'s number of a concatenation: six bits a field.
fn type_number(fields: &[Type]) -> u32 {
    fields.iter().fold(0, |n, t| n << 6 | *t as u32)
}

fn type_len(fields: &[Type]) -> usize {
    match fields {
        [one] => one.len(),
        many => many.iter().map(|t| t.padded()).sum(),
    }
}

/// How a rule names a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetRef {
    pub(super) name: String,
    /// Given to an anonymous set within its batch.
    pub(super) id: Option<u32>,
}

impl From<&str> for SetRef {
    fn from(name: &str) -> Self {
        SetRef { name: name.to_owned(), id: None }
    }
}

/// What a set holds for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SetKind {
    /// Nothing: it is a plain set.
    Set,
    Map(Vec<Type>),
    VerdictMap,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    pub name: String,
    pub key: Vec<Type>,
    pub kind: SetKind,
    /// Rules add elements, which expire: the default timeout and the most elements.
    pub dynamic: Option<(Duration, u32)>,
}

impl Set {
    pub fn new(name: &str, key: &[Type]) -> Self {
        Set { name: name.to_owned(), key: key.to_vec(), kind: SetKind::Set, dynamic: None }
    }

    pub fn map(name: &str, key: &[Type], value: &[Type]) -> Self {
        Set { kind: SetKind::Map(value.to_vec()), ..Self::new(name, key) }
    }

    pub fn verdicts(name: &str, key: &[Type]) -> Self {
        Set { kind: SetKind::VerdictMap, ..Self::new(name, key) }
    }

    pub(super) fn flags(&self) -> u32 {
        let map = if self.kind == SetKind::Set { 0 } else { 0x8 };
        // Timeout and "a rule evaluates into it".
        let dynamic = if self.dynamic.is_some() { 0x10 | 0x20 } else { 0 };
        map | dynamic
    }

    /// The attributes of `NEWSET` after table and name.
    pub(super) fn write(&self, w: &mut Writer, id: u32, extra_flags: u32) {
        w.be32(3, self.flags() | extra_flags);
        w.be32(4, type_number(&self.key));
        w.be32(5, type_len(&self.key) as u32);
        match &self.kind {
            SetKind::Set => {}
            SetKind::Map(value) => {
                w.be32(6, type_number(value));
                w.be32(7, type_len(value) as u32);
            }
            SetKind::VerdictMap => w.be32(6, 0xffff_ff00),
        }
        w.be32(10, id);
        if let Some((timeout, size)) = self.dynamic {
            w.nest(9, |w| w.be32(1, size));
            w.be64(11, timeout.as_millis() as u64);
        }
    }
}

/// The value of a map's element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    None,
    Bytes(Vec<u8>),
    Verdict(Verdict),
}

/// Key and value are fields in order, each padded to four bytes when there are several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    pub key: Vec<u8>,
    pub data: Data,
}

impl Element {
    pub fn key(key: Vec<u8>) -> Self {
        Element { key, data: Data::None }
    }

    /// Writes one `NFTA_LIST_ELEM`.
    pub(super) fn write(&self, w: &mut Writer) {
        w.nest(1, |w| {
            w.nest(1, |w| w.attr(1, &self.key));
            match &self.data {
                Data::None => {}
                Data::Bytes(bytes) => w.nest(2, |w| w.attr(1, bytes)),
                Data::Verdict(verdict) => w.nest(2, |w| verdict.write(w)),
            }
        });
    }

    /// At least as long as what [`Element::write`] writes.
    pub(super) fn bound(&self) -> usize {
        let data = match &self.data {
            Data::None => 0,
            Data::Bytes(b) => b.len() + 12,
            Data::Verdict(Verdict::Jump(c) | Verdict::Goto(c)) => c.len() + 32,
            Data::Verdict(_) => 24,
        };
        self.key.len() + 20 + data
    }
}
