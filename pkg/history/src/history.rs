//! What happened, as clients saw it: plain data.

use serde::{Deserialize, Serialize};

/// As etcd counts; 0 is "none" or "the newest".
pub type Revision = i64;
/// 0 is no lease.
pub type LeaseId = i64;
/// Nanoseconds since the history began, by one clock for all clients that never jumps.
pub type Time = u64;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kv {
    pub key: String,
    pub value: String,
    pub created: Revision,
    pub modified: Revision,
    pub version: i64,
    pub lease: LeaseId,
}

/// Which keys an operation or a watch is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Keys {
    One(String),
    /// The second one is outside.
    Between(String, String),
    From(String),
}

impl Keys {
    pub fn contains(&self, key: &str) -> bool {
        match self {
            Keys::One(one) => key == one,
            Keys::Between(start, end) => key >= start.as_str() && key < end.as_str(),
            Keys::From(start) => key >= start.as_str(),
        }
    }

    /// Every key that starts with `prefix`, a text that ends in a character below `~`.
    pub fn prefix(prefix: &str) -> Self {
        let mut end = prefix.to_owned();
        match end.pop().and_then(|last| char::from_u32(last as u32 + 1)) {
            Some(next) => {
                end.push(next);
                Keys::Between(prefix.to_owned(), end)
            }
            None => Keys::From(prefix.to_owned()),
        }
    }

    /// Could a key that starts with `prefix` be among them?
    pub(crate) fn meets(&self, prefix: &str) -> bool {
        match self {
            Keys::One(one) => one.starts_with(prefix),
            Keys::Between(start, end) => {
                end.as_str() > prefix && (start.as_str() <= prefix || start.starts_with(prefix))
            }
            Keys::From(start) => start.as_str() <= prefix || start.starts_with(prefix),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Get {
    pub keys: Keys,
    /// 0: the newest. Inside a transaction it is always 0.
    pub revision: Revision,
    /// Answered from what one server has, however old.
    pub serializable: bool,
    /// 0: no limit.
    pub limit: usize,
    pub count_only: bool,
}

impl Get {
    pub fn newest(keys: Keys) -> Self {
        Get { keys, revision: 0, serializable: false, limit: 0, count_only: false }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Relation {
    Equal,
    NotEqual,
    Greater,
    Less,
}

/// What a compare looks at. A key that is not there has 0 everywhere, and no value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    Created(Revision),
    Modified(Revision),
    Version(i64),
    Lease(LeaseId),
    Value(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compare {
    pub key: String,
    pub relation: Relation,
    pub target: Target,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    Put { key: String, value: String, lease: LeaseId, prev: bool },
    Delete { keys: Keys, prev: bool },
    Get(Get),
}

/// A put and a deletion are transactions of one step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Txn {
    pub compares: Vec<Compare>,
    pub success: Vec<Step>,
    pub failure: Vec<Step>,
    /// An acknowledged one survives a crash. Only [`Epoch::prefixes`] have others.
    pub durable: bool,
}

impl Txn {
    pub fn of(steps: Vec<Step>) -> Self {
        Txn { compares: Vec::new(), success: steps, failure: Vec::new(), durable: true }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    Get(Get),
    Txn(Txn),
    /// `ttl` in the history's unit of time. One that is not durable may be lost in a crash.
    Grant {
        lease: LeaseId,
        ttl: Time,
        durable: bool,
    },
    KeepAlive {
        lease: LeaseId,
    },
    Revoke {
        lease: LeaseId,
    },
    Compact {
        revision: Revision,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    pub kvs: Vec<Kv>,
    pub count: u64,
    pub more: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StepAnswer {
    Put { prev: Option<Kv> },
    Delete { deleted: u64, prev: Vec<Kv> },
    Get(Found),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// `revision` is the store's when the answer was made.
    Get { revision: Revision, found: Found },
    /// `revision` is the transaction's own if it wrote.
    Txn { revision: Revision, succeeded: bool, steps: Vec<StepAnswer> },
    /// Of leases and compactions. 0: the server did not say.
    Done { revision: Revision },
}

impl Answer {
    pub fn revision(&self) -> Revision {
        match self {
            Answer::Get { revision, .. } | Answer::Txn { revision, .. } | Answer::Done { revision } => *revision,
        }
    }

    /// Did it change a key?
    pub(crate) fn wrote(&self) -> bool {
        let Answer::Txn { steps, .. } = self else { return false };
        steps.iter().any(|s| match s {
            StepAnswer::Put { .. } => true,
            StepAnswer::Delete { deleted, .. } => *deleted > 0,
            StepAnswer::Get(_) => false,
        })
    }
}

/// Why a server did not do it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    Compacted,
    Future,
    LeaseNotFound,
    LeaseExists,
    /// Any other answer by which the server says that nothing was done.
    Other(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    Answered(Answer),
    Refused(Refusal),
    /// It may have happened or not, or happen later.
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    pub client: u32,
    pub invoked: Time,
    pub returned: Time,
    pub request: Request,
    pub outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Of a deletion: key and `modified`, the rest is empty.
    pub kv: Kv,
    pub deleted: bool,
    pub prev: Option<Kv>,
}

/// What a watch told its client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Note {
    /// The watch stands; the store was at this revision.
    Created(Revision),
    /// All that one transaction did in the range.
    Events(Revision, Vec<Event>),
    Progress(Revision),
    /// The end: history from here on was wanted and is gone. 0: the server did not say what it still has.
    Compacted(Revision),
    /// The end, for any other reason: the client watches again from where it was, as another watch.
    Ended(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchLog {
    pub client: u32,
    pub keys: Keys,
    /// 0: from when it was created.
    pub start: Revision,
    /// Events say what stood there before.
    pub prev: bool,
    pub invoked: Time,
    pub notes: Vec<(Time, Note)>,
    /// It takes part in telling what the log is. Together the witnesses see every key, from the baseline to the end.
    pub witness: bool,
}

impl WatchLog {
    pub(crate) fn events(&self) -> usize {
        let of = |(_, note): &(Time, Note)| if let Note::Events(_, events) = note { events.len() } else { 0 };
        self.notes.iter().map(of).sum()
    }
}

/// A start of the store after which the history of ephemeral keys is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epoch {
    pub at: Time,
    /// What is left of the ephemeral keys counts as written here. After a clean end: the last revision that there was.
    pub revision: Revision,
    /// After a clean end nothing may be missing.
    pub clean: bool,
    pub prefixes: Vec<String>,
    pub left: Vec<Kv>,
}

impl Epoch {
    pub(crate) fn covers(&self, key: &str) -> bool {
        self.prefixes.iter().any(|p| key.starts_with(p))
    }

    pub(crate) fn meets(&self, keys: &Keys) -> bool {
        self.prefixes.iter().any(|p| keys.meets(p))
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// What was there at `base`, before anything of this history happened.
    pub baseline: Vec<Kv>,
    pub base: Revision,
    /// Nobody else writes to the store: revisions have no gaps but at epochs.
    pub alone: bool,
    pub operations: Vec<Operation>,
    pub watches: Vec<WatchLog>,
    pub epochs: Vec<Epoch>,
}
