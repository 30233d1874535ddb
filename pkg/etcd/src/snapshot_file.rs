//! Files of etcd's as a store's content: snapshots (`etcdctl snapshot save`), and the database of a member that has ended
//! (`member/snap/db`).
//!
//! Invariant: a snapshot whose SHA-256 does not agree is refused before anything of it is used.

use crate::bolt_reader::BoltReader;
use crate::pb::mvccpb;
use crate::snapshot::Lease;
use bytes::Bytes;
use isopod_store::archive::{Content, Depth, State};
use isopod_store::{Export, HistoryEntry, KeyValue, Result, Revision, StoreError};
use prost::Message as _;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::Path;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Entries handed on at a time.
const PART: usize = 256;
const SUM: u64 = 32;

fn cannot(path: &Path, source: io::Error) -> StoreError {
    StoreError::Backend { context: format!("cannot read {}", path.display()), source: Arc::new(source) }
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what.to_owned())
}

/// What the file holds. Users and roles are not in it.
pub fn content(path: &Path, depth: Depth) -> Result<Content> {
    let read = || -> io::Result<(BoltReader, Head)> {
        let file = File::open(path)?;
        verify(&file)?;
        let bolt = BoltReader::open(file)?;
        let head = head(&bolt)?;
        Ok((bolt, head))
    };
    let (bolt, head) = read().map_err(|e| cannot(path, e))?;
    let Head { revision, compacted, leases, newest } = head;
    let keys = newest.values().filter(|place| !place.deleted).count() as u64;
    let (sender, entries) = mpsc::channel(2);
    let place = path.to_owned();
    let work = move || {
        if let Err(e) = send(&bolt, depth, &newest, &sender) {
            let _ = sender.blocking_send(Err(cannot(&place, e)));
        }
    };
    std::thread::Builder::new().name("etcd-snapshot".into()).spawn(work).map_err(|e| cannot(path, e))?;
    let compacted = if depth == Depth::Newest { revision } else { compacted };
    let state = State { leases, ..State::default() };
    Ok(Content { state, reserved: 0, keys, export: Export { revision, compacted, entries } })
}

/// A snapshot ends in the SHA-256 of what stands before; a database is made of whole pages.
fn verify(file: &File) -> io::Result<()> {
    let length = file.metadata()?.len();
    if length % 512 != SUM {
        return Ok(());
    }
    let mut input = io::BufReader::new(file);
    let mut hash = Sha256::new();
    io::copy(&mut input.by_ref().take(length - SUM), &mut hash)?;
    let mut sum = [0; SUM as usize];
    input.read_exact(&mut sum)?;
    if hash.finalize()[..] == sum { Ok(()) } else { Err(wrong("its SHA-256 does not agree: it is damaged")) }
}

/// Where a key's last entry stands.
#[derive(Clone, Copy)]
struct Place {
    revision: Revision,
    sub: u32,
    deleted: bool,
}

struct Head {
    revision: Revision,
    compacted: Revision,
    leases: std::collections::BTreeMap<i64, i64>,
    newest: HashMap<Bytes, Place>,
}

fn head(bolt: &BoltReader) -> io::Result<Head> {
    let mut compacted = 0;
    bolt.bucket("meta", &mut |key, value| {
        // What is scheduled is refused to readers already, finished or not.
        if key == b"scheduledCompactRev" || key == b"finishedCompactRev" {
            compacted = compacted.max(place(value)?.revision);
        }
        Ok(true)
    })?;
    let mut head = Head { revision: compacted.max(1), compacted, leases: Default::default(), newest: HashMap::new() };
    bolt.bucket("lease", &mut |_, value| {
        let lease = Lease::decode(value).map_err(|_| wrong("a lease cannot be read"))?;
        head.leases.insert(lease.id, lease.ttl);
        Ok(true)
    })?;
    bolt.bucket("key", &mut |at, value| {
        let (place, kv) = (place(at)?, key_value(value)?);
        head.revision = head.revision.max(place.revision);
        head.newest.insert(kv.key, place);
        Ok(true)
    })?;
    Ok(head)
}

/// `revision _ sub`, and a `t` where the key was deleted.
fn place(bytes: &[u8]) -> io::Result<Place> {
    let number = |at: usize| bytes.get(at..at + 8)?.try_into().ok().map(i64::from_be_bytes);
    let read = || {
        Some(Place {
            revision: number(0)?,
            sub: u32::try_from(number(9)?).ok()?,
            deleted: bytes.get(17) == Some(&b't'),
        })
    };
    read().ok_or_else(|| wrong("a revision cannot be read"))
}

fn key_value(value: &[u8]) -> io::Result<mvccpb::KeyValue> {
    mvccpb::KeyValue::decode(value).map_err(|_| wrong("a key's value cannot be read"))
}

fn send(
    bolt: &BoltReader,
    depth: Depth,
    newest: &HashMap<Bytes, Place>,
    out: &mpsc::Sender<Result<Vec<HistoryEntry>>>,
) -> io::Result<()> {
    let mut part = Vec::new();
    bolt.bucket("key", &mut |at, value| {
        let (at, kv) = (place(at)?, key_value(value)?);
        let is_newest = newest.get(&kv.key).is_some_and(|n| (n.revision, n.sub) == (at.revision, at.sub));
        if depth == Depth::History || (is_newest && !at.deleted) {
            part.push(entry(at, kv));
        }
        Ok(part.len() < PART || out.blocking_send(Ok(std::mem::take(&mut part))).is_ok())
    })?;
    let _ = out.blocking_send(Ok(part));
    Ok(())
}

fn entry(at: Place, kv: mvccpb::KeyValue) -> HistoryEntry {
    let Place { revision, sub, deleted } = at;
    let mvccpb::KeyValue { key, value, create_revision, version, lease, .. } = kv;
    let kv = KeyValue { key: key.clone(), value, create_revision, mod_revision: revision, version, lease };
    HistoryEntry { revision, sub, key, kv: (!deleted).then_some(kv) }
}
