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
    /// A packet's priority, a number in the machine's order; `nft` shows two halves.
    ClassId = 23,
    /// What `numgen` makes, a number in the machine's order. `nft` has a type for it by example only: it cannot list a set
    /// that has one in its key, unless the set comes with [`example`]s.
    Index = 4,
}

impl Type {
    fn padded(self) -> usize {
        4
    }

    fn len(self) -> usize {
        match self {
            Type::Ipv4 | Type::Number | Type::ClassId | Type::Index => 4,
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

/// One attribute of what `nft` keeps with a set for its own use (`NFTNL_UDATA_*`): the kernel stores it unread.
fn note(kind: u8, value: &[u8]) -> Vec<u8> {
    [&[kind, value.len() as u8], value].concat()
}

/// An expression that makes values of this type, as `nft` notes it: the kind of expression and what that kind needs.
fn example_of(field: Type) -> Vec<u8> {
    let (kind, numbers): (u32, &[u32]) = match field {
        // `ip daddr` and `th dport` are payload expressions: the protocol and the number of its field.
        Type::Ipv4 => (7, &[12, 12]),
        Type::Port => (7, &[11, 2]),
        // `meta l4proto`, `meta mark`, `meta priority`.
        Type::Protocol => (9, &[16]),
        Type::Number => (9, &[3]),
        Type::ClassId => (9, &[2]),
        // `numgen random mod 2`
        Type::Index => (23, &[1, 2, 0]),
    };
    let data: Vec<u8> = (0..).zip(numbers).flat_map(|(i, n): (u8, _)| note(i, &n.to_ne_bytes())).collect();
    [note(0, &kind.to_ne_bytes()), note(1, &data)].concat()
}

/// An example of all fields: what `nft` shows as `typeof`.
fn example(fields: &[Type]) -> Vec<u8> {
    const CONCATENATION: u32 = 13;
    match fields {
        [one] => example_of(*one),
        many => {
            let parts: Vec<u8> = (0..).zip(many).flat_map(|(i, t): (u8, _)| note(i, &example_of(*t))).collect();
            [note(0, &CONCATENATION.to_ne_bytes()), note(1, &parts)].concat()
        }
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
        if let Some(notes) = self.notes() {
            w.attr(13, &notes);
        }
    }

    /// What `nft` needs to know to list this set, besides the numbers of its types.
    fn notes(&self) -> Option<Vec<u8>> {
        if !self.key.contains(&Type::Index) {
            return None;
        }
        let key = note(3, &example(&self.key));
        let value = match &self.kind {
            SetKind::Map(value) => note(4, &example(value)),
            SetKind::Set | SetKind::VerdictMap => Vec::new(),
        };
        Some([key, value].concat())
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
