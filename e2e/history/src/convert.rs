//! Between the etcd-client crate's types and those of a history.

use etcd_client as etcd;
use isopod_history::*;

pub fn revision(header: Option<&etcd::ResponseHeader>) -> Revision {
    header.map_or(0, |h| h.revision())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn kv(kv: &etcd::KeyValue) -> Kv {
    Kv {
        key: text(kv.key()),
        value: text(kv.value()),
        created: kv.create_revision(),
        modified: kv.mod_revision(),
        version: kv.version(),
        lease: kv.lease(),
    }
}

/// Key and end as etcd spells them; `None`: a single key.
pub fn range(keys: &Keys) -> (String, Option<String>) {
    match keys {
        Keys::One(key) => (key.clone(), None),
        Keys::Between(start, end) => (start.clone(), Some(end.clone())),
        Keys::From(start) => (start.clone(), Some("\0".to_owned())),
    }
}

pub fn get(get: &Get) -> (String, etcd::GetOptions) {
    let (key, end) = range(&get.keys);
    let mut options = etcd::GetOptions::new().with_limit(get.limit as i64).with_revision(get.revision);
    if let Some(end) = end {
        options = options.with_range(end);
    }
    if get.serializable {
        options = options.with_serializable();
    }
    if get.count_only {
        options = options.with_count_only();
    }
    (key, options)
}

fn found(answer: &etcd::GetResponse) -> Found {
    Found { kvs: answer.kvs().iter().map(kv).collect(), count: answer.count() as u64, more: answer.more() }
}

pub fn get_answer(answer: &etcd::GetResponse) -> Answer {
    Answer::Get { revision: revision(answer.header()), found: found(answer) }
}

fn compare(compare: &Compare) -> etcd::Compare {
    let op = match compare.relation {
        Relation::Equal => etcd::CompareOp::Equal,
        Relation::NotEqual => etcd::CompareOp::NotEqual,
        Relation::Greater => etcd::CompareOp::Greater,
        Relation::Less => etcd::CompareOp::Less,
    };
    let key = compare.key.clone();
    match &compare.target {
        Target::Created(n) => etcd::Compare::create_revision(key, op, *n),
        Target::Modified(n) => etcd::Compare::mod_revision(key, op, *n),
        Target::Version(n) => etcd::Compare::version(key, op, *n),
        Target::Lease(n) => etcd::Compare::lease(key, op, *n),
        Target::Value(v) => etcd::Compare::value(key, op, v.clone()),
    }
}

fn step(step: &Step) -> etcd::TxnOp {
    match step {
        Step::Put { key, value, lease, prev } => {
            let mut options = etcd::PutOptions::new().with_lease(*lease);
            if *prev {
                options = options.with_prev_key();
            }
            etcd::TxnOp::put(key.clone(), value.clone(), Some(options))
        }
        Step::Delete { keys, prev } => {
            let (key, end) = range(keys);
            let mut options = etcd::DeleteOptions::new();
            if let Some(end) = end {
                options = options.with_range(end);
            }
            if *prev {
                options = options.with_prev_key();
            }
            etcd::TxnOp::delete(key, Some(options))
        }
        Step::Get(g) => {
            let (key, options) = get(g);
            etcd::TxnOp::get(key, Some(options))
        }
    }
}

pub fn txn(txn: &Txn) -> etcd::Txn {
    let mut out = etcd::Txn::new();
    // The crate panics on parts that are given empty after others.
    if !txn.compares.is_empty() {
        out = out.when(txn.compares.iter().map(compare).collect::<Vec<_>>());
    }
    if !txn.success.is_empty() {
        out = out.and_then(txn.success.iter().map(step).collect::<Vec<_>>());
    }
    if !txn.failure.is_empty() {
        out = out.or_else(txn.failure.iter().map(step).collect::<Vec<_>>());
    }
    out
}

pub fn txn_answer(answer: &etcd::TxnResponse) -> Answer {
    let step = |op: etcd::TxnOpResponse| match op {
        etcd::TxnOpResponse::Get(r) => StepAnswer::Get(found(&r)),
        etcd::TxnOpResponse::Put(r) => StepAnswer::Put { prev: r.prev_key().map(kv) },
        etcd::TxnOpResponse::Delete(r) => {
            StepAnswer::Delete { deleted: r.deleted() as u64, prev: r.prev_kvs().iter().map(kv).collect() }
        }
        etcd::TxnOpResponse::Txn(_) => unreachable!("no client nests transactions"),
    };
    let steps = answer.op_responses().into_iter().map(step).collect();
    Answer::Txn { revision: revision(answer.header()), succeeded: answer.succeeded(), steps }
}

fn event(event: &etcd::Event) -> Option<Event> {
    let deleted = event.event_type() == etcd::EventType::Delete;
    Some(Event { kv: kv(event.kv()?), deleted, prev: event.prev_kv().map(kv) })
}

/// What one answer of a watch says: its transactions, apart.
pub fn notes(answer: &etcd::WatchResponse) -> Vec<Note> {
    let at = revision(answer.header());
    if answer.canceled() {
        let end = match answer.compact_revision() {
            0 => Note::Ended(answer.cancel_reason().to_owned()),
            compacted => Note::Compacted(compacted),
        };
        return vec![end];
    }
    if answer.created() {
        return vec![Note::Created(at)];
    }
    let events: Vec<Event> = answer.events().iter().filter_map(event).collect();
    if events.is_empty() {
        return vec![Note::Progress(at)];
    }
    let whole = events.chunk_by(|a, b| a.kv.modified == b.kv.modified);
    whole.map(|events| Note::Events(events[0].kv.modified, events.to_vec())).collect()
}
