//! The store's trait and its requests, in etcd's terms.

use async_trait::async_trait;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A revision of the whole store. 0 means "none" or "the newest", as in etcd. The first write of an empty store is at 2.
pub type Revision = i64;
/// A lease's id; 0 is no lease.
pub type LeaseId = i64;

/// One key at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    pub key: Bytes,
    pub value: Bytes,
    pub create_revision: Revision,
    pub mod_revision: Revision,
    /// How often it was written since it was created; 1 is the creation.
    pub version: i64,
    pub lease: LeaseId,
}

/// Keys in `[start, end)`. An empty `end` means the single key `start`; `end == b"\0"` means everything from `start` on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyRange {
    pub start: Bytes,
    pub end: Bytes,
}

impl KeyRange {
    pub fn key(key: impl Into<Bytes>) -> Self {
        KeyRange { start: key.into(), end: Bytes::new() }
    }

    /// Every key that starts with `prefix`.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let start: Bytes = prefix.into();
        let mut end = start.to_vec();
        while let Some(last) = end.last_mut() {
            if *last < 0xff {
                *last += 1;
                return KeyRange { start, end: end.into() };
            }
            end.pop();
        }
        KeyRange { start, end: Bytes::from_static(b"\0") }
    }

    pub fn is_single(&self) -> bool {
        self.end.is_empty()
    }

    /// The first key after the range; `None`: the range has no end.
    pub fn end_bound(&self) -> Option<Bytes> {
        if self.end.is_empty() {
            let mut next = self.start.to_vec();
            next.push(0);
            Some(next.into())
        } else if &self.end[..] == b"\0" {
            None
        } else {
            Some(self.end.clone())
        }
    }

    /// Is there a key that both could contain?
    pub fn overlaps(&self, other: &KeyRange) -> bool {
        let before = |end: Option<Bytes>, start: &Bytes| end.is_some_and(|end| end <= *start);
        !before(self.end_bound(), &other.start) && !before(other.end_bound(), &self.start)
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        if self.end.is_empty() {
            key == &self.start[..]
        } else {
            key >= &self.start[..] && (&self.end[..] == b"\0" || key < &self.end[..])
        }
    }
}

/// etcd's `Range`, by default ascending by key.
#[derive(Clone, Debug)]
pub struct RangeRequest {
    pub range: KeyRange,
    /// 0: the newest.
    pub revision: Revision,
    /// 0: no limit.
    pub limit: usize,
    pub keys_only: bool,
    pub count_only: bool,
    /// Only what is returned has to be counted: who reads a range in parts needs no count of the rest each time.
    pub uncounted: bool,
    pub order: Order,
    pub sort_by: SortTarget,
    /// Keys outside are left out, but counted.
    pub mod_revisions: RevisionBounds,
    pub create_revisions: RevisionBounds,
}

impl RangeRequest {
    pub fn new(range: KeyRange) -> Self {
        RangeRequest {
            range,
            revision: 0,
            limit: 0,
            keys_only: false,
            count_only: false,
            uncounted: false,
            order: Order::default(),
            sort_by: SortTarget::default(),
            mod_revisions: RevisionBounds::default(),
            create_revisions: RevisionBounds::default(),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Ascending, but unlike [`Order::Ascend`] only the first keys are looked at and sorted, one more than the limit, as in
    /// etcd.
    #[default]
    None,
    Ascend,
    Descend,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SortTarget {
    #[default]
    Key,
    Version,
    CreateRevision,
    ModRevision,
    Value,
}

/// Both ends included; 0 is no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RevisionBounds {
    pub min: Revision,
    pub max: Revision,
}

impl RevisionBounds {
    pub fn contains(&self, rev: Revision) -> bool {
        rev >= self.min && (self.max == 0 || rev <= self.max)
    }
}

#[derive(Clone, Debug, Default)]
pub struct RangeResponse {
    /// The store's revision when the answer was made.
    pub revision: Revision,
    pub kvs: Vec<KeyValue>,
    /// How many keys are in the range, whatever the limit; nothing to rely on where [`RangeRequest::uncounted`].
    pub count: u64,
    pub more: bool,
}

/// What a compare looks at. A key that is not there has revision, version and lease 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CompareTarget {
    CreateRevision(Revision),
    ModRevision(Revision),
    Version(i64),
    Value(Bytes),
    Lease(LeaseId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompareOp {
    Equal,
    NotEqual,
    Greater,
    Less,
}

/// A condition of a transaction. Over a range it must hold for every key of the range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    pub range: KeyRange,
    pub op: CompareOp,
    pub target: CompareTarget,
}

impl Compare {
    /// The key's newest revision is `rev`; 0: it does not exist.
    pub fn mod_revision(key: impl Into<Bytes>, rev: Revision) -> Self {
        Compare { range: KeyRange::key(key), op: CompareOp::Equal, target: CompareTarget::ModRevision(rev) }
    }
}

#[derive(Clone, Debug)]
pub enum Op {
    Range(RangeRequest),
    Put { key: Bytes, value: Bytes, lease: LeaseId, prev_kv: bool, ignore_value: bool, ignore_lease: bool },
    Delete { range: KeyRange, prev_kv: bool },
    Txn(Box<Txn>),
}

impl Op {
    pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Op::Put {
            key: key.into(),
            value: value.into(),
            lease: 0,
            prev_kv: false,
            ignore_value: false,
            ignore_lease: false,
        }
    }
    pub fn delete(key: impl Into<Bytes>) -> Self {
        Op::Delete { range: KeyRange::key(key), prev_kv: false }
    }
    pub fn get(key: impl Into<Bytes>) -> Self {
        Op::Range(RangeRequest::new(KeyRange::key(key)))
    }
}

/// What survives a crash. The default is [`Durability::Durable`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Answered after the commit reached the disk.
    #[default]
    Durable,
    /// Kept in memory and flushed lazily: a crash may lose it. Heartbeats and Events, which would wear out an SD card.
    /// A key written this way must live under a prefix given to the store when it was opened; after a crash the revision
    /// sequence jumps to a new epoch, and a watch on such a prefix from before it is told [`StoreError::Compacted`].
    Ephemeral,
}

/// etcd's `Txn`: if every compare holds, `success`, else `failure`, all at one revision.
#[derive(Clone, Debug, Default)]
pub struct Txn {
    pub compare: Vec<Compare>,
    pub success: Vec<Op>,
    pub failure: Vec<Op>,
    pub durability: Durability,
}

#[derive(Clone, Debug)]
pub enum OpResponse {
    Range(RangeResponse),
    Put { prev: Option<KeyValue> },
    Delete { deleted: u64, prev: Vec<KeyValue> },
    Txn(TxnResponse),
}

#[derive(Clone, Debug)]
pub struct TxnResponse {
    /// The revision of this transaction if it wrote, else the store's revision.
    pub revision: Revision,
    pub succeeded: bool,
    pub responses: Vec<OpResponse>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    Put,
    Delete,
}

/// One change of one key. Of a deletion, `kv` has the key and `mod_revision` only.
#[derive(Clone, Debug)]
pub struct Event {
    pub kind: EventKind,
    pub kv: KeyValue,
    /// What stood there before; always given when the history still has it.
    pub prev: Option<KeyValue>,
}

#[derive(Clone, Debug)]
pub struct WatchRequest {
    pub range: KeyRange,
    /// The first revision wanted; 0: from now on.
    pub start: Revision,
}

/// What a watch delivers. All events of one transaction come in one `Events`.
#[derive(Clone, Debug)]
pub enum WatchMessage {
    /// `Arc`: shared by every watcher of the range.
    Events(Revision, Arc<[Event]>),
    /// Every event up to and with this revision has been delivered.
    Progress(Revision),
}

/// A running watch. Dropping it ends it. A watcher that is too slow is ended with [`StoreError::WatchOverrun`].
pub struct Watch {
    pub receiver: tokio::sync::mpsc::Receiver<Result<WatchMessage, StoreError>>,
    /// Asks for a `Progress` message at the newest revision.
    pub request_progress: Arc<dyn Fn() + Send + Sync>,
}

/// A lease and how many seconds it has left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseStatus {
    pub id: LeaseId,
    pub granted_ttl: i64,
    pub ttl: i64,
    pub keys: Vec<Bytes>,
}

/// A checksum of the history, the same on every member that has the same one: etcd's `HashKV`, bit for bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryHash {
    pub hash: u32,
    /// Everything up to and with this revision is in it.
    pub hash_revision: Revision,
    pub compact_revision: Revision,
    /// The store's revision.
    pub revision: Revision,
}

/// One entry of the history. `kv` is `None` where the key was deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryEntry {
    pub revision: Revision,
    /// Orders the entries of a revision.
    pub sub: u32,
    pub key: Bytes,
    pub kv: Option<KeyValue>,
}

impl HistoryEntry {
    /// The event that made it, without what stood there before.
    pub(crate) fn into_event(self) -> Event {
        match self.kv {
            Some(kv) => Event { kind: EventKind::Put, kv, prev: None },
            None => {
                let (key, value, mod_revision) = (self.key, Bytes::new(), self.revision);
                let kv = KeyValue { key, value, create_revision: 0, mod_revision, version: 0, lease: 0 };
                Event { kind: EventKind::Delete, kv, prev: None }
            }
        }
    }
}

/// The whole history as it was at one revision.
pub struct Export {
    pub revision: Revision,
    pub compacted: Revision,
    /// Ascending by (revision, sub). What compaction has yet to drop may be among them.
    pub entries: tokio::sync::mpsc::Receiver<Result<Vec<HistoryEntry>>>,
}

/// Bytes on disk or in memory, and how many of them hold data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub size: u64,
    pub in_use: u64,
}

/// etcd's alarms: once raised, one stays until somebody takes it back. What follows from it is decided above the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Alarm {
    NoSpace,
    Corrupt,
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    #[error("the required revision {requested} has been compacted; the oldest one kept is {compacted}")]
    Compacted { requested: Revision, compacted: Revision },
    #[error("the required revision {requested} is in the future; the newest is {newest}")]
    FutureRevision { requested: Revision, newest: Revision },
    #[error("the key is not there")]
    KeyNotFound,
    #[error("lease {0} is not there")]
    LeaseNotFound(LeaseId),
    #[error("lease {0} is there already")]
    LeaseExists(LeaseId),
    #[error("the same key is written twice in one transaction")]
    DuplicateKey,
    #[error("the watcher fell too far behind")]
    WatchOverrun,
    #[error("the store is closed")]
    Closed,
    #[error(
        "the data directory {dir} is in use by process {holder}: stop that process, or choose another data directory"
    )]
    InUse { dir: String, holder: String },
    #[error(
        "the data directory {dir} has format {found} and this program reads format {supported}: use the version of the \
         program that wrote it, or choose another data directory"
    )]
    Format { dir: String, found: String, supported: u32 },
    #[error("a transaction writes {0} keys, more than the limit of {max}", max = crate::MAX_TXN_EVENTS)]
    TooManyWrites(usize),
    #[error("the store is out of space")]
    NoSpace,
    #[error("the data are corrupt: {0}")]
    Corrupt(String),
    /// The write may have happened or not: whoever asked has to look.
    #[error("the datastore does not answer: {context}")]
    Unavailable { context: String, source: Arc<dyn std::error::Error + Send + Sync> },
    /// The write has certainly not happened, and may be asked for again.
    #[error("the datastore does not answer, and nothing was written: {context}")]
    NotDone { context: String, source: Arc<dyn std::error::Error + Send + Sync> },
    #[error("{context}")]
    Backend { context: String, source: Arc<dyn std::error::Error + Send + Sync> },
}

impl StoreError {
    /// For who knows that a write cannot have happened.
    pub fn not_done(self) -> Self {
        match self {
            StoreError::Unavailable { context, source } => StoreError::NotDone { context, source },
            other => other,
        }
    }
}

pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// etcd's key-value API. Every backend passes the one conformance suite in `tests/`.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    async fn range(&self, req: RangeRequest) -> Result<RangeResponse>;
    async fn txn(&self, txn: Txn) -> Result<TxnResponse>;
    async fn watch(&self, req: WatchRequest) -> Result<Watch>;
    /// Drops history before `rev`; the newest value of each key at `rev` stays.
    async fn compact(&self, rev: Revision) -> Result<()>;
    /// As [`Store::compact`], and answers only when the history is really dropped.
    async fn compact_physically(&self, rev: Revision) -> Result<()>;
    /// Over everything up to and with `rev`; 0 means the newest.
    async fn hash(&self, rev: Revision) -> Result<HistoryHash>;
    /// Everything that is kept, of one moment, while writes go on.
    async fn export(&self) -> Result<Export>;
    /// The newest committed revision, and the oldest that is kept.
    async fn revisions(&self) -> Result<(Revision, Revision)>;
    /// With `id` 0 the store chooses one.
    async fn lease_grant(&self, id: LeaseId, ttl_seconds: i64) -> Result<LeaseStatus>;
    /// A lease that lives as keys of [`Durability::Ephemeral`] do: granting it writes nothing to the disk.
    async fn lease_grant_ephemeral(&self, id: LeaseId, ttl_seconds: i64) -> Result<LeaseStatus> {
        self.lease_grant(id, ttl_seconds).await
    }
    async fn lease_revoke(&self, id: LeaseId) -> Result<()>;
    async fn lease_keep_alive(&self, id: LeaseId) -> Result<LeaseStatus>;
    async fn lease_status(&self, id: LeaseId) -> Result<LeaseStatus>;
    async fn leases(&self) -> Result<Vec<LeaseId>>;
    async fn usage(&self) -> Result<Usage>;
    /// Gives space that holds no data back. Writes wait for it.
    async fn defragment(&self) -> Result<()>;
    /// The raised alarms. They survive a restart.
    async fn alarms(&self) -> Result<Vec<Alarm>>;
    /// True: it was not so before.
    async fn set_alarm(&self, alarm: Alarm, raised: bool) -> Result<bool>;
    /// A small named value beside the keys, without revision or history: what etcd keeps in buckets of its own, as users
    /// and roles. It survives a restart.
    async fn setting(&self, name: &str) -> Result<Option<Bytes>>;
    /// All of them. A backend that cannot tell says so: a backup without them would not be whole.
    async fn settings(&self) -> Result<BTreeMap<String, Bytes>> {
        let why = std::io::Error::from(std::io::ErrorKind::Unsupported);
        Err(StoreError::Backend { context: "cannot list the settings of this datastore".into(), source: Arc::new(why) })
    }
    /// `None` takes it away.
    async fn set_setting(&self, name: &str, value: Option<Bytes>) -> Result<()>;
    /// As [`Store::set_setting`], if it is what `expected` says. False: it is something else, perhaps because another server
    /// changed it, and nothing was done.
    async fn swap_setting(&self, name: &str, expected: Option<Bytes>, value: Option<Bytes>) -> Result<bool>;
    /// Flushes what is ephemeral and closes; later calls answer [`StoreError::Closed`].
    async fn close(&self) -> Result<()>;
}
