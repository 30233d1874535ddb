//! A batch: changes of tables, chains, sets and rules that happen together or not at all.

use super::{Element, Rule, Set, SetRef};
use crate::netlink::{Ack, Attributes, NetlinkError, Protocol, Socket, Writer, acks};
use std::io;

const NEWTABLE: u16 = 0;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const DELCHAIN: u16 = 5;
const NEWRULE: u16 = 6;
const DELRULE: u16 = 8;
const NEWSET: u16 = 9;
const DELSET: u16 = 11;
const NEWSETELEM: u16 = 12;
const DELSETELEM: u16 = 14;
const BATCH_BEGIN: u16 = libc::NFNL_MSG_BATCH_BEGIN as u16;
const BATCH_END: u16 = libc::NFNL_MSG_BATCH_END as u16;
const SUBSYSTEM: u16 = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8;

const REQUEST: u16 = libc::NLM_F_REQUEST as u16;
const ACK: u16 = libc::NLM_F_ACK as u16;
const CREATE: u16 = libc::NLM_F_CREATE as u16;
const APPEND: u16 = libc::NLM_F_APPEND as u16;

/// An attribute's length has sixteen bits.
const MAX_ELEMENTS_LEN: usize = 60 << 10;

#[derive(Debug, thiserror::Error)]
pub enum NftError {
    #[error("cannot change nftables")]
    Netlink(#[from] NetlinkError),
    #[error("cannot talk to nftables")]
    Transport(#[source] io::Error),
    /// The whole batch was refused; this is its first message that the kernel could not do.
    #[error("nftables refused to {action}{}", detail.as_deref().map(|d| format!(" ({d})")).unwrap_or_default())]
    Refused {
        action: String,
        detail: Option<String>,
        #[source]
        source: io::Error,
    },
}

impl NftError {
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Netlink(e) => e.errno(),
            Self::Transport(source) | Self::Refused { source, .. } => source.raw_os_error(),
        }
    }
}

/// A table of the IPv4 family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table(pub String);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainKind {
    Filter,
    Nat,
    /// Like filter, but a changed packet is routed again.
    Route,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    Prerouting = 0,
    Input = 1,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    pub name: String,
    /// Base chains hang at a hook of the kernel, with a priority; the others are jumped to.
    pub base: Option<(ChainKind, Hook, i32)>,
}

impl Chain {
    pub fn regular(name: &str) -> Self {
        Chain { name: name.to_owned(), base: None }
    }

    pub fn base(name: &str, kind: ChainKind, hook: Hook, priority: i32) -> Self {
        Chain { name: name.to_owned(), base: Some((kind, hook, priority)) }
    }
}

/// Changes in order. Build it, then [`NftSocket::commit`] it.
pub struct Batch {
    w: Writer,
    seq: u32,
    set_id: u32,
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl Batch {
    pub fn new() -> Self {
        let mut batch = Batch { w: Writer::new(), seq: 1, set_id: 0 };
        batch.frame(BATCH_BEGIN);
        batch
    }

    /// No change was added.
    pub fn is_empty(&self) -> bool {
        self.seq == 2
    }

    /// Bytes on the wire.
    pub fn len(&self) -> usize {
        self.w.len()
    }

    fn frame(&mut self, kind: u16) {
        self.w.begin(kind, REQUEST, self.seq);
        // `struct nfgenmsg`: family, version, the subsystem in network order.
        self.w.fixed(&[0, 0, 0, libc::NFNL_SUBSYS_NFTABLES as u8]);
        self.w.end();
        self.seq += 1;
    }

    fn message(&mut self, kind: u16, flags: u16, fill: impl FnOnce(&mut Writer)) {
        self.w.begin(SUBSYSTEM | kind, REQUEST | flags, self.seq);
        self.w.fixed(&[libc::NFPROTO_IPV4 as u8, 0, 0, 0]);
        fill(&mut self.w);
        self.w.end();
        self.seq += 1;
    }

    /// Adds the table unless it exists.
    pub fn add_table(&mut self, table: &Table) {
        self.message(NEWTABLE, CREATE, |w| w.str(1, &table.0));
    }

    /// Deletes the table and everything in it; it must exist.
    pub fn delete_table(&mut self, table: &Table) {
        self.message(DELTABLE, 0, |w| w.str(1, &table.0));
    }

    /// Makes sure that the table does not exist.
    pub fn remove_table(&mut self, table: &Table) {
        self.add_table(table);
        self.delete_table(table);
    }

    /// Begins the table anew, empty, whether it existed or not.
    pub fn replace_table(&mut self, table: &Table) {
        self.remove_table(table);
        self.add_table(table);
    }

    pub fn add_chain(&mut self, table: &Table, chain: &Chain) {
        self.message(NEWCHAIN, CREATE, |w| {
            w.str(1, &table.0);
            w.str(3, &chain.name);
            if let Some((kind, hook, priority)) = chain.base {
                w.nest(4, |w| {
                    w.be32(1, hook as u32);
                    w.be32(2, priority as u32);
                });
                w.str(
                    7,
                    match kind {
                        ChainKind::Filter => "filter",
                        ChainKind::Nat => "nat",
                        ChainKind::Route => "route",
                    },
                );
            }
        });
    }

    /// Deletes a chain that nothing refers to any more.
    pub fn delete_chain(&mut self, table: &Table, chain: &str) {
        self.flush_chain(table, chain);
        self.message(DELCHAIN, 0, |w| {
            w.str(1, &table.0);
            w.str(3, chain);
        });
    }

    /// Deletes the chain's rules.
    pub fn flush_chain(&mut self, table: &Table, chain: &str) {
        self.message(DELRULE, 0, |w| {
            w.str(1, &table.0);
            w.str(2, chain);
        });
    }

    /// Appends a rule.
    pub fn add_rule(&mut self, table: &Table, chain: &str, rule: &Rule) {
        self.message(NEWRULE, CREATE | APPEND, |w| {
            w.str(1, &table.0);
            w.str(2, chain);
            w.nest(4, |w| rule.0.iter().for_each(|e| e.write(w)));
        });
    }

    pub fn add_set(&mut self, table: &Table, set: &Set) {
        self.set_id += 1;
        let id = self.set_id;
        self.message(NEWSET, CREATE, |w| {
            w.str(1, &table.0);
            w.str(2, &set.name);
            set.write(w, id, 0);
        });
    }

    pub fn delete_set(&mut self, table: &Table, set: &str) {
        self.message(DELSET, 0, |w| {
            w.str(1, &table.0);
            w.str(2, set);
        });
    }

    /// Adds elements; one that is there with another value is an error.
    pub fn add_elements(&mut self, table: &Table, set: &str, elements: impl IntoIterator<Item = Element>) {
        self.elements(NEWSETELEM, CREATE, table, set, elements);
    }

    /// Deletes elements by key; one that is not there is an error.
    pub fn delete_elements(&mut self, table: &Table, set: &str, elements: impl IntoIterator<Item = Element>) {
        self.elements(DELSETELEM, 0, table, set, elements);
    }

    fn elements(
        &mut self,
        kind: u16,
        flags: u16,
        table: &Table,
        set: &str,
        elements: impl IntoIterator<Item = Element>,
    ) {
        let mut rest = elements.into_iter().peekable();
        while rest.peek().is_some() {
            self.message(kind, flags, |w| {
                w.str(1, &table.0);
                w.str(2, set);
                w.nest(3, |w| {
                    while let Some(e) = rest.next_if(|e| w.open_len() + e.bound() < MAX_ELEMENTS_LEN) {
                        e.write(w);
                    }
                });
            });
        }
    }

    /// Adds a set that belongs to the rules of this batch which name it, and goes with them. Answers how rules name it.
    pub fn add_anonymous_set(
        &mut self,
        table: &Table,
        set: &Set,
        elements: impl IntoIterator<Item = Element>,
    ) -> SetRef {
        self.set_id += 1;
        let id = self.set_id;
        // The kernel gives the real name when the batch begins; later messages name the template and the id.
        let template = if set.flags() & 0x8 != 0 { "__map%d" } else { "__set%d" };
        self.message(NEWSET, CREATE, |w| {
            w.str(1, &table.0);
            w.str(2, template);
            // Anonymous and constant.
            set.write(w, id, 0x1 | 0x2);
        });
        self.message(NEWSETELEM, CREATE, |w| {
            w.str(1, &table.0);
            w.str(2, template);
            w.be32(4, id);
            w.nest(3, |w| elements.into_iter().for_each(|e| e.write(w)));
        });
        SetRef { name: template.to_owned(), id: Some(id) }
    }

    fn finish(&mut self) {
        self.frame(BATCH_END);
    }

    /// Says in words what the message with this number asks.
    fn describe(&self, seq: u32) -> String {
        let Some((kind, attrs)) = find(self.w.bytes(), seq) else { return "begin a batch".into() };
        let text = |kind| attrs.find(kind).map(|v| String::from_utf8_lossy(v).trim_end_matches('\0').to_owned());
        let table = text(1).unwrap_or_default();
        let second = text(2).unwrap_or_default();
        match kind & 0xff {
            NEWTABLE => format!("add table {table}"),
            DELTABLE => format!("delete table {table}"),
            NEWCHAIN => format!("add chain {} to table {table}", text(3).unwrap_or_default()),
            DELCHAIN => format!("delete chain {} of table {table}", text(3).unwrap_or_default()),
            NEWRULE => format!("add a rule to chain {second} of table {table}"),
            DELRULE => format!("flush chain {second} of table {table}"),
            NEWSET => format!("add set {second} to table {table}"),
            DELSET => format!("delete set {second} of table {table}"),
            NEWSETELEM => format!("add elements to set {second} of table {table}"),
            DELSETELEM => format!("delete elements from set {second} of table {table}"),
            other => format!("do message {other} on table {table}"),
        }
    }
}

/// The type and attributes of the message `seq`.
fn find(data: &[u8], seq: u32) -> Option<(u16, Attributes<'_>)> {
    let mut at = 0;
    while let Some(header) = data.get(at..at + 16) {
        let len = u32::from_ne_bytes(header[..4].try_into().ok()?) as usize;
        if u32::from_ne_bytes(header[8..12].try_into().ok()?) == seq {
            let kind = u16::from_ne_bytes(header[4..6].try_into().ok()?);
            return Some((kind, Attributes(data.get(at + 20..at + len)?)));
        }
        at += len.next_multiple_of(4);
    }
    None
}

/// A netfilter socket for batches; of the namespace in which it was opened.
pub struct NftSocket(Socket);

impl NftSocket {
    pub fn open() -> Result<Self, NftError> {
        Ok(NftSocket(Socket::open(Protocol::Netfilter)?))
    }

    /// Does everything in the batch at once, or nothing.
    pub fn commit(&mut self, mut batch: Batch) -> Result<(), NftError> {
        if batch.is_empty() {
            return Ok(());
        }
        let last = batch.seq - 1;
        batch.finish();
        let mut data = std::mem::take(&mut batch.w);
        // Only the last change asks for an answer though it succeeds; those that fail are answered anyway.
        data.set_flag(last, ACK);
        // Every message that fails is answered; hold the answers of a batch of which all fail.
        self.0.reserve_answers((data.len() * 4).clamp(256 << 10, 16 << 20));
        let mut first: Option<Ack> = None;
        let io = self.0.send(data.bytes()).and_then(|()| {
            self.0.receive(|m| {
                let Some(ack) = acks(&m) else { return false };
                // The batch's own frame is answered when the commit, or the batch as a whole, is refused.
                let ends = ack.seq == last || ack.seq <= 1;
                if ack.errno != 0 && first.is_none() {
                    first = Some(ack);
                }
                ends
            })
        });
        batch.w = data;
        io.map_err(NftError::Transport)?;
        match first {
            None => Ok(()),
            Some(ack) => Err(NftError::Refused {
                action: batch.describe(ack.seq),
                detail: ack.detail,
                source: io::Error::from_raw_os_error(ack.errno),
            }),
        }
    }
}
