//! What the blocks hold, as bytes: numbers as varints (LEB128), everything else with its length before it.

use super::{ArchivedFile, Header, State};
use crate::{Alarm, HistoryEntry, KeyValue};
use bytes::Bytes;
use std::collections::BTreeMap;

pub(crate) fn number(out: &mut Vec<u8>, n: i64) {
    let mut n = n as u64;
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn bytes(out: &mut Vec<u8>, content: &[u8]) {
    number(out, content.len() as i64);
    out.extend(content);
}

/// Reads what the functions above wrote; `None`: it is something else.
pub(crate) struct Cursor<'a>(pub &'a [u8]);

impl<'a> Cursor<'a> {
    pub fn number(&mut self) -> Option<i64> {
        let mut n = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            n |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(n as i64);
            }
        }
        None
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.number()?).ok()?;
        let (content, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(content)
    }

    fn text(&mut self) -> Option<String> {
        String::from_utf8(self.bytes()?.to_vec()).ok()
    }

    /// `None` unless all of it was read.
    fn end<T>(self, value: T) -> Option<T> {
        self.0.is_empty().then_some(value)
    }
}

/// Lines of names and values: who looks into a backup with `head` learns what it is. Unknown names are passed over.
pub(crate) fn put_header(header: &Header) -> Vec<u8> {
    let Header { revision, compacted, reserved, keys, created, source, program } = header;
    let numbers = format!("revision: {revision}\ncompacted: {compacted}\nreserved: {reserved}\nkeys: {keys}\n");
    let line = |text: &str| text.replace(['\n', '\r'], " ");
    format!("{numbers}created: {created}\nsource: {}\nprogram: {}\n", line(source), line(program)).into_bytes()
}

pub(crate) fn header(content: &[u8]) -> Option<Header> {
    let text = std::str::from_utf8(content).ok()?;
    let all: BTreeMap<&str, &str> = text.lines().filter_map(|l| l.split_once(": ")).collect();
    let number = |name: &str| all.get(name)?.parse().ok();
    Some(Header {
        revision: number("revision")?,
        compacted: number("compacted")?,
        reserved: number("reserved")?,
        keys: all.get("keys")?.parse().ok()?,
        created: all.get("created")?.parse().ok()?,
        source: all.get("source").copied().unwrap_or_default().to_owned(),
        program: all.get("program").copied().unwrap_or_default().to_owned(),
    })
}

const ALARMS: [(Alarm, u8); 2] = [(Alarm::NoSpace, 1), (Alarm::Corrupt, 2)];

pub(crate) fn put_state(state: &State) -> Vec<u8> {
    let mut out = Vec::new();
    number(&mut out, state.leases.len() as i64);
    for (id, ttl) in &state.leases {
        number(&mut out, *id);
        number(&mut out, *ttl);
    }
    number(&mut out, state.settings.len() as i64);
    for (name, value) in &state.settings {
        bytes(&mut out, name.as_bytes());
        bytes(&mut out, value);
    }
    let raised: Vec<u8> = ALARMS.iter().filter(|(a, _)| state.alarms.contains(a)).map(|(_, n)| *n).collect();
    bytes(&mut out, &raised);
    out
}

pub(crate) fn state(content: &[u8]) -> Option<State> {
    let mut from = Cursor(content);
    let mut state = State::default();
    for _ in 0..from.number()? {
        state.leases.insert(from.number()?, from.number()?);
    }
    for _ in 0..from.number()? {
        state.settings.insert(from.text()?, Bytes::copy_from_slice(from.bytes()?));
    }
    for raised in from.bytes()? {
        state.alarms.insert(ALARMS.iter().find(|(_, n)| n == raised)?.0);
    }
    from.end(state)
}

pub(crate) fn put_file(file: &ArchivedFile) -> Vec<u8> {
    let mut out = Vec::new();
    bytes(&mut out, file.name.as_bytes());
    number(&mut out, i64::from(file.mode));
    bytes(&mut out, &file.content);
    out
}

pub(crate) fn file(content: &[u8]) -> Option<ArchivedFile> {
    let mut from = Cursor(content);
    let (name, mode) = (from.text()?, u32::try_from(from.number()?).ok()?);
    let content = Bytes::copy_from_slice(from.bytes()?);
    from.end(ArchivedFile { name, mode, content })
}

const DELETED: u8 = 0;
const PUT: u8 = 1;

pub(crate) fn put_entry(out: &mut Vec<u8>, entry: &HistoryEntry) {
    out.push(if entry.kv.is_some() { PUT } else { DELETED });
    number(out, entry.revision);
    number(out, i64::from(entry.sub));
    bytes(out, &entry.key);
    if let Some(kv) = &entry.kv {
        number(out, kv.create_revision);
        number(out, kv.version);
        number(out, kv.lease);
        bytes(out, &kv.value);
    }
}

pub(crate) fn entries(content: &[u8]) -> Option<Vec<HistoryEntry>> {
    let mut from = Cursor(content);
    let mut out = Vec::new();
    while let Some((tag, rest)) = from.0.split_first() {
        from.0 = rest;
        let (revision, sub) = (from.number()?, u32::try_from(from.number()?).ok()?);
        let key = Bytes::copy_from_slice(from.bytes()?);
        let kv = match *tag {
            PUT => Some(KeyValue {
                key: key.clone(),
                create_revision: from.number()?,
                mod_revision: revision,
                version: from.number()?,
                lease: from.number()?,
                value: Bytes::copy_from_slice(from.bytes()?),
            }),
            DELETED => None,
            _ => return None,
        };
        out.push(HistoryEntry { revision, sub, key, kv });
    }
    Some(out)
}
