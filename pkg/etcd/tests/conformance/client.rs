//! Any etcd server as a `Store`, by the etcd-client crate: what the suite runs on.

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client as etcd;
use etcd_client::Client;
use isopod_store::*;
use std::sync::Arc;
use tokio::sync::mpsc;

pub struct GrpcStore {
    client: Client,
    url: String,
}

impl GrpcStore {
    pub async fn connect(url: &str) -> Self {
        GrpcStore { client: Client::connect([url], None).await.unwrap(), url: url.to_owned() }
    }
}

fn failed(e: etcd::Error) -> StoreError {
    let text = e.to_string();
    let table = [
        ("has been compacted", StoreError::Compacted { requested: 0, compacted: 0 }),
        ("is a future revision", StoreError::FutureRevision { requested: 0, newest: 0 }),
        ("duplicate key given", StoreError::DuplicateKey),
        ("key not found", StoreError::KeyNotFound),
        ("lease not found", StoreError::LeaseNotFound(0)),
        ("lease already exists", StoreError::LeaseExists(7001)),
        ("server stopped", StoreError::Closed),
    ];
    let known = table.into_iter().find(|(part, _)| text.contains(part));
    known.map_or_else(|| StoreError::Backend { context: "etcd answered".into(), source: Arc::new(e) }, |(_, e)| e)
}

fn key_value(kv: &etcd::KeyValue) -> KeyValue {
    KeyValue {
        key: Bytes::copy_from_slice(kv.key()),
        value: Bytes::copy_from_slice(kv.value()),
        create_revision: kv.create_revision(),
        mod_revision: kv.mod_revision(),
        version: kv.version(),
        lease: kv.lease(),
    }
}

/// The end of a range as etcd spells it; `None`: a single key.
fn end(range: &KeyRange) -> Option<Vec<u8>> {
    (!range.is_single()).then(|| range.end.to_vec())
}

fn get_options(r: &RangeRequest) -> etcd::GetOptions {
    let mut o = etcd::GetOptions::new()
        .with_limit(r.limit as i64)
        .with_revision(r.revision)
        .with_min_mod_revision(r.mod_revisions.min)
        .with_max_mod_revision(r.mod_revisions.max)
        .with_min_create_revision(r.create_revisions.min)
        .with_max_create_revision(r.create_revisions.max);
    if let Some(end) = end(&r.range) {
        o = o.with_range(end);
    }
    if r.keys_only {
        o = o.with_keys_only();
    }
    if r.count_only {
        o = o.with_count_only();
    }
    let target = match r.sort_by {
        SortTarget::Key => etcd::SortTarget::Key,
        SortTarget::Version => etcd::SortTarget::Version,
        SortTarget::CreateRevision => etcd::SortTarget::Create,
        SortTarget::ModRevision => etcd::SortTarget::Mod,
        SortTarget::Value => etcd::SortTarget::Value,
    };
    let order = match r.order {
        Order::None => etcd::SortOrder::None,
        Order::Ascend => etcd::SortOrder::Ascend,
        Order::Descend => etcd::SortOrder::Descend,
    };
    o.with_sort(target, order)
}

fn compare(c: &Compare) -> etcd::Compare {
    let op = match c.op {
        CompareOp::Equal => etcd::CompareOp::Equal,
        CompareOp::NotEqual => etcd::CompareOp::NotEqual,
        CompareOp::Greater => etcd::CompareOp::Greater,
        CompareOp::Less => etcd::CompareOp::Less,
    };
    let key = c.range.start.to_vec();
    let compare = match &c.target {
        CompareTarget::CreateRevision(n) => etcd::Compare::create_revision(key, op, *n),
        CompareTarget::ModRevision(n) => etcd::Compare::mod_revision(key, op, *n),
        CompareTarget::Version(n) => etcd::Compare::version(key, op, *n),
        CompareTarget::Lease(n) => etcd::Compare::lease(key, op, *n),
        CompareTarget::Value(v) => etcd::Compare::value(key, op, v.to_vec()),
    };
    match end(&c.range) {
        Some(end) => compare.with_range(end),
        None => compare,
    }
}

fn txn_op(op: &Op) -> etcd::TxnOp {
    match op {
        Op::Range(r) => etcd::TxnOp::get(r.range.start.to_vec(), Some(get_options(r))),
        Op::Put { key, value, lease, prev_kv, ignore_value, ignore_lease } => {
            let mut o = etcd::PutOptions::new().with_lease(*lease);
            if *prev_kv {
                o = o.with_prev_key();
            }
            if *ignore_value {
                o = o.with_ignore_value();
            }
            if *ignore_lease {
                o = o.with_ignore_lease();
            }
            etcd::TxnOp::put(key.to_vec(), value.to_vec(), Some(o))
        }
        Op::Delete { range, prev_kv } => {
            let mut o = etcd::DeleteOptions::new();
            if let Some(end) = end(range) {
                o = o.with_range(end);
            }
            if *prev_kv {
                o = o.with_prev_key();
            }
            etcd::TxnOp::delete(range.start.to_vec(), Some(o))
        }
        Op::Txn(t) => etcd::TxnOp::txn(txn(t)),
    }
}

fn txn(t: &Txn) -> etcd::Txn {
    let mut out = etcd::Txn::new();
    // The crate panics on parts that are given empty after others.
    if !t.compare.is_empty() {
        out = out.when(t.compare.iter().map(compare).collect::<Vec<_>>());
    }
    if !t.success.is_empty() {
        out = out.and_then(t.success.iter().map(txn_op).collect::<Vec<_>>());
    }
    if !t.failure.is_empty() {
        out = out.or_else(t.failure.iter().map(txn_op).collect::<Vec<_>>());
    }
    out
}

fn range_response(r: &etcd::GetResponse) -> RangeResponse {
    RangeResponse {
        revision: r.header().map_or(0, |h| h.revision()),
        kvs: r.kvs().iter().map(key_value).collect(),
        count: r.count() as u64,
        more: r.more(),
    }
}

fn txn_response(r: &etcd::TxnResponse) -> TxnResponse {
    let op = |op: etcd::TxnOpResponse| match op {
        etcd::TxnOpResponse::Get(r) => OpResponse::Range(range_response(&r)),
        etcd::TxnOpResponse::Put(r) => OpResponse::Put { prev: r.prev_key().map(key_value) },
        etcd::TxnOpResponse::Delete(r) => {
            OpResponse::Delete { deleted: r.deleted() as u64, prev: r.prev_kvs().iter().map(key_value).collect() }
        }
        etcd::TxnOpResponse::Txn(t) => OpResponse::Txn(txn_response(&t)),
    };
    TxnResponse {
        revision: r.header().map_or(0, |h| h.revision()),
        succeeded: r.succeeded(),
        responses: r.op_responses().into_iter().map(op).collect(),
    }
}

fn event(e: &etcd::Event) -> Event {
    let kind = match e.event_type() {
        etcd::EventType::Put => EventKind::Put,
        etcd::EventType::Delete => EventKind::Delete,
    };
    Event { kind, kv: key_value(e.kv().unwrap()), prev: e.prev_kv().map(key_value) }
}

type Messages = mpsc::Sender<Result<WatchMessage>>;

/// An answer as the store's messages: split again at its transactions. False: the watch has ended.
async fn forward(answer: &etcd::WatchResponse, out: &Messages) -> bool {
    if answer.canceled() {
        let _ = out.send(Err(StoreError::Compacted { requested: 0, compacted: answer.compact_revision() })).await;
        return false;
    }
    let events: Vec<Event> = answer.events().iter().map(event).collect();
    if events.is_empty() && !answer.created() {
        let rev = answer.header().map_or(0, |h| h.revision());
        return out.send(Ok(WatchMessage::Progress(rev))).await.is_ok();
    }
    for transaction in events.chunk_by(|a, b| a.kv.mod_revision == b.kv.mod_revision) {
        let message = WatchMessage::Events(transaction[0].kv.mod_revision, transaction.into());
        if out.send(Ok(message)).await.is_err() {
            return false;
        }
    }
    true
}

async fn pump(mut stream: etcd::WatchStream, out: Messages, mut wishes: mpsc::UnboundedReceiver<()>) {
    loop {
        tokio::select! {
            answer = stream.message() => match answer {
                Ok(Some(answer)) => {
                    if !forward(&answer, &out).await {
                        return;
                    }
                }
                Ok(None) => return,
                Err(e) => {
                    let _ = out.send(Err(failed(e))).await;
                    return;
                }
            },
            Some(()) = wishes.recv() => {
                if stream.request_progress().await.is_err() {
                    return;
                }
            }
            () = out.closed() => return,
        }
    }
}

impl GrpcStore {
    async fn alarm(&self, action: etcd::AlarmAction, kind: etcd::AlarmType) -> Result<Vec<Alarm>> {
        let answer = self.client.clone().alarm(action, kind, None).await.map_err(failed)?;
        let known = |a: &etcd::AlarmMember| match a.alarm() {
            etcd::AlarmType::Nospace => Some(Alarm::NoSpace),
            etcd::AlarmType::Corrupt => Some(Alarm::Corrupt),
            etcd::AlarmType::None => None,
        };
        Ok(answer.alarms().iter().filter_map(known).collect())
    }

    async fn compact_with(&self, rev: Revision, physical: bool) -> Result<()> {
        let options = physical.then(|| etcd::CompactionOptions::new().with_physical());
        self.client.clone().compact(rev, options).await.map_err(failed).map(|_| ())
    }
}

#[async_trait]
impl Store for GrpcStore {
    async fn range(&self, req: RangeRequest) -> Result<RangeResponse> {
        let answer = self.client.clone().get(req.range.start.to_vec(), Some(get_options(&req))).await;
        Ok(range_response(&answer.map_err(failed)?))
    }
    async fn txn(&self, req: Txn) -> Result<TxnResponse> {
        Ok(txn_response(&self.client.clone().txn(txn(&req)).await.map_err(failed)?))
    }
    async fn watch(&self, req: WatchRequest) -> Result<Watch> {
        let mut options = etcd::WatchOptions::new().with_start_revision(req.start).with_prev_key();
        if let Some(end) = end(&req.range) {
            options = options.with_range(end);
        }
        // A connection of its own: a slow reader's full window must hold up nobody else.
        let mut client = Client::connect([&self.url], None).await.map_err(failed)?;
        let mut stream = client.watch(req.range.start.to_vec(), Some(options)).await.map_err(failed)?;
        let created = stream.message().await.map_err(failed)?.expect("the stream ended");
        assert!(created.created());
        let (sender, receiver) = mpsc::channel(16);
        let (wish, wishes) = mpsc::unbounded_channel();
        tokio::spawn(pump(stream, sender, wishes));
        let request_progress = Arc::new(move || {
            let _ = wish.send(());
        });
        Ok(Watch { receiver, request_progress })
    }
    async fn compact(&self, rev: Revision) -> Result<()> {
        self.compact_with(rev, false).await
    }
    async fn compact_physically(&self, rev: Revision) -> Result<()> {
        self.compact_with(rev, true).await
    }
    async fn hash(&self, rev: Revision) -> Result<HistoryHash> {
        let answer = self.client.clone().hash_kv(rev).await.map_err(failed)?;
        let revision = answer.header().map_or(0, |h| h.revision());
        // Before 3.6 an answer does not say what it is about.
        let asked = if rev > 0 { rev } else { revision };
        let hash_revision = if answer.hash_revision() > 0 { answer.hash_revision() } else { asked };
        Ok(HistoryHash { hash: answer.hash(), hash_revision, compact_revision: answer.compact_version(), revision })
    }
    async fn export(&self) -> Result<Export> {
        panic!("etcd's API has snapshots instead")
    }
    async fn revisions(&self) -> Result<(Revision, Revision)> {
        let options = etcd::GetOptions::new().with_count_only();
        let answer = self.client.clone().get("x", Some(options)).await.map_err(failed)?;
        Ok((answer.header().map_or(0, |h| h.revision()), 1))
    }
    async fn lease_grant(&self, id: LeaseId, ttl_seconds: i64) -> Result<LeaseStatus> {
        let options = etcd::LeaseGrantOptions::new().with_id(id);
        let l = self.client.clone().lease_grant(ttl_seconds, Some(options)).await.map_err(failed)?;
        Ok(LeaseStatus { id: l.id(), granted_ttl: l.ttl(), ttl: l.ttl(), keys: Vec::new() })
    }
    async fn lease_revoke(&self, id: LeaseId) -> Result<()> {
        self.client.clone().lease_revoke(id).await.map_err(failed).map(|_| ())
    }
    async fn lease_keep_alive(&self, id: LeaseId) -> Result<LeaseStatus> {
        // The crate keeps the first answer to itself and asks on.
        let (mut keeper, mut answers) = self.client.clone().lease_keep_alive(id).await.map_err(failed)?;
        keeper.keep_alive().await.map_err(failed)?;
        let l = answers.message().await.map_err(failed)?.expect("the stream ended");
        Ok(LeaseStatus { id, granted_ttl: l.ttl(), ttl: l.ttl(), keys: Vec::new() })
    }
    async fn lease_status(&self, id: LeaseId) -> Result<LeaseStatus> {
        let options = etcd::LeaseTimeToLiveOptions::new().with_keys();
        let l = self.client.clone().lease_time_to_live(id, Some(options)).await.map_err(failed)?;
        if l.ttl() < 0 {
            return Err(StoreError::LeaseNotFound(id));
        }
        let keys = l.keys().iter().map(|k| Bytes::copy_from_slice(k)).collect();
        Ok(LeaseStatus { id, granted_ttl: l.granted_ttl(), ttl: l.ttl(), keys })
    }
    async fn leases(&self) -> Result<Vec<LeaseId>> {
        let answer = self.client.clone().leases().await.map_err(failed)?;
        Ok(answer.leases().iter().map(|l| l.id()).collect())
    }
    async fn usage(&self) -> Result<Usage> {
        let s = self.client.clone().status().await.map_err(failed)?;
        Ok(Usage { size: s.db_size() as u64, in_use: s.raft_used_db_size() as u64 })
    }
    async fn defragment(&self) -> Result<()> {
        self.client.clone().defragment().await.map_err(failed).map(|_| ())
    }
    async fn alarms(&self) -> Result<Vec<Alarm>> {
        self.alarm(etcd::AlarmAction::Get, etcd::AlarmType::None).await
    }
    async fn set_alarm(&self, alarm: Alarm, raised: bool) -> Result<bool> {
        let action = if raised { etcd::AlarmAction::Activate } else { etcd::AlarmAction::Deactivate };
        let kind = match alarm {
            Alarm::NoSpace => etcd::AlarmType::Nospace,
            Alarm::Corrupt => etcd::AlarmType::Corrupt,
        };
        Ok(!self.alarm(action, kind).await?.is_empty())
    }
    async fn setting(&self, _: &str) -> Result<Option<Bytes>> {
        panic!("etcd's API has users and roles instead")
    }
    async fn set_setting(&self, _: &str, _: Option<Bytes>) -> Result<()> {
        panic!("etcd's API has users and roles instead")
    }
    async fn swap_setting(&self, _: &str, _: Option<Bytes>, _: Option<Bytes>) -> Result<bool> {
        panic!("etcd's API has users and roles instead")
    }
    async fn close(&self) -> Result<()> {
        Ok(())
    }
}
