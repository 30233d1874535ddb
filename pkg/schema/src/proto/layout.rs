//! The fields of an object in the order of protobuf, with the structs that JSON inlines as messages of their own; and what an
//! encoder wants at hand of them: where a JSON name belongs, and the bytes of a field that is absent.

use super::encode;
use crate::types::{Node, Object};

/// How an object is written and read, made once for each definition.
#[derive(Debug, Default)]
pub struct Layout {
    pub(super) message: Message,
    /// The types of the fields, by slot.
    pub(super) nodes: Box<[Node]>,
    pub(super) names: Names,
}

/// A message's entries, ascending by number.
#[derive(Debug, Default)]
pub(super) struct Message(pub(super) Vec<Entry>);

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) tag: u32,
    pub(super) what: What,
}

#[derive(Debug)]
pub(super) enum What {
    Field(Place),
    /// A message whose fields JSON shows in the parent.
    Inline(Message),
}

#[derive(Debug)]
pub(super) struct Place {
    /// Position in [`Object::fields`].
    pub(super) field: usize,
    /// Position among the fields that protobuf has.
    pub(super) slot: usize,
    /// What is written where JSON has nothing: Go writes every field that is no pointer.
    pub(super) zero: Box<[u8]>,
}

impl Layout {
    pub(super) fn of(object: &Object) -> &Layout {
        object.proto_layout.get_or_init(|| {
            let mut message = Message::default();
            let (mut nodes, mut names) = (Vec::new(), Vec::new());
            for (i, f) in object.fields.iter().enumerate().filter(|(_, f)| f.tag != 0) {
                let place = Place { field: i, slot: nodes.len(), zero: encode::absent(f) };
                message.under(&f.inline_tags).0.push(Entry { tag: f.tag, what: What::Field(place) });
                nodes.push(f.node.clone());
                names.push(f.name.as_str());
            }
            message.sort();
            Layout { message, nodes: nodes.into(), names: Names::of(&names) }
        })
    }
}

impl Message {
    /// The message that a path of tags leads to.
    fn under(&mut self, path: &[u32]) -> &mut Message {
        let Some((tag, rest)) = path.split_first() else { return self };
        let at = self.0.iter().position(|e| e.tag == *tag && matches!(e.what, What::Inline(_))).unwrap_or_else(|| {
            self.0.push(Entry { tag: *tag, what: What::Inline(Message::default()) });
            self.0.len() - 1
        });
        match &mut self.0[at].what {
            What::Inline(inner) => inner.under(rest),
            What::Field(_) => unreachable!("the position is that of an inlined message"),
        }
    }

    fn sort(&mut self) {
        self.0.sort_by_key(|e| e.tag);
        for e in &mut self.0 {
            if let What::Inline(inner) = &mut e.what {
                inner.sort();
            }
        }
    }

    pub(super) fn find(&self, tag: u64) -> Option<&What> {
        let tag = u32::try_from(tag).ok()?;
        self.0.binary_search_by_key(&tag, |e| e.tag).ok().map(|i| &self.0[i].what)
    }
}

/// Slots by JSON name: a hash table with open addressing, at most a quarter full.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// One more than the slot; 0 is free.
    table: Box<[u16]>,
    /// Where each slot's name ends in `text`; it begins where the one before it ends.
    ends: Box<[u32]>,
    text: Box<[u8]>,
}

impl Names {
    fn of(names: &[&str]) -> Self {
        let mut table = vec![0u16; (names.len() * 4).next_power_of_two()].into_boxed_slice();
        let mut ends = Vec::with_capacity(names.len());
        let mut text = Vec::new();
        for (slot, name) in names.iter().enumerate() {
            let mut at = hash(name.as_bytes()) as usize & (table.len() - 1);
            while table[at] != 0 {
                at = (at + 1) & (table.len() - 1);
            }
            table[at] = slot as u16 + 1;
            text.extend_from_slice(name.as_bytes());
            ends.push(text.len() as u32);
        }
        Names { table, ends: ends.into(), text: text.into() }
    }

    pub(super) fn slot(&self, name: &[u8]) -> Option<usize> {
        let mask = self.table.len().checked_sub(1)?;
        let mut at = hash(name) as usize & mask;
        loop {
            let slot = usize::from(*self.table.get(at)?).checked_sub(1)?;
            let start = if slot == 0 { 0 } else { self.ends[slot - 1] as usize };
            if self.text[start..self.ends[slot] as usize] == *name {
                return Some(slot);
            }
            at = (at + 1) & mask;
        }
    }
}

/// From the length, the first and the last eight bytes.
fn hash(name: &[u8]) -> u64 {
    let length = name.len();
    let (head, tail) = match (name.first_chunk::<8>(), name.last_chunk::<8>()) {
        (Some(head), Some(tail)) => (u64::from_le_bytes(*head), u64::from_le_bytes(*tail)),
        _ => match (name.first_chunk::<4>(), name.last_chunk::<4>()) {
            (Some(head), Some(tail)) => (u32::from_le_bytes(*head).into(), u32::from_le_bytes(*tail).into()),
            _ => {
                let at = |i: usize| u64::from(name.get(i).copied().unwrap_or(0));
                (at(0) | at(length / 2) << 8, at(length.saturating_sub(1)))
            }
        },
    };
    let mixed = (head ^ tail.rotate_left(29) ^ length as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed >> 40
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_found_and_no_other() {
        for (_, _, definition) in crate::facts::builtin().gvks() {
            let object = crate::facts::builtin().object(definition).unwrap();
            let layout = Layout::of(&object);
            let fields: Vec<_> = object.fields.iter().filter(|f| f.tag != 0).collect();
            assert_eq!(fields.len(), layout.nodes.len());
            for (slot, f) in fields.iter().enumerate() {
                assert_eq!(layout.names.slot(f.name.as_bytes()), Some(slot), "{definition} {}", f.name);
                assert_eq!(layout.names.slot(format!("{}x", f.name).as_bytes()), None);
            }
            assert_eq!(layout.names.slot(b""), None);
        }
        assert_eq!(Names::default().slot(b"name"), None);
    }
}
