//! The cases. Each uses keys under a prefix of its own and revisions relative to where it begins: on etcd they share a server.

use bytes::Bytes;
use futures::future::BoxFuture;
use isopod_base::clock::Clock;
use isopod_store::*;
use std::sync::Arc;
use std::time::Duration;

/// What a case runs on.
pub struct Subject {
    pub store: Arc<dyn Store>,
    /// `None`: real time.
    pub clock: Option<Clock>,
    pub buffer: usize,
    /// Behind gRPC, where nobody is ended for being slow.
    pub remote: bool,
}

impl Subject {
    pub async fn advance(&self, by: Duration) {
        match &self.clock {
            Some(clock) => clock.advance(by),
            None => tokio::time::sleep(by).await,
        }
    }

    pub fn is_etcd(&self) -> bool {
        self.remote && self.clock.is_none()
    }
}

type Case = fn(Subject) -> BoxFuture<'static, ()>;

pub fn cases() -> Vec<(&'static str, Case)> {
    macro_rules! table {
        ($($name:ident),* $(,)?) => { vec![$((stringify!($name), (|s| Box::pin($name(s))) as Case)),*] };
    }
    table![
        revisions_and_versions,
        ranges,
        orders,
        bounds_on_revisions,
        parts_need_no_count,
        reads_at_old_revisions,
        compares,
        a_transaction_sees_its_writes,
        nested_transactions_decide_first,
        a_key_is_written_once,
        ignore_flags,
        delete_ranges,
        nothing_done_takes_no_revision,
        watches_get_whole_transactions,
        watches_start_in_the_past_without_a_gap,
        watches_start_in_the_future,
        watches_pick_their_range,
        compaction,
        physical_compaction,
        hashes,
        exports,
        alarms,
        settings,
        leases,
        leases_end,
        increments_are_not_lost,
        progress_follows_events,
        a_slow_watcher_is_ended,
    ]
}

async fn write(s: &Subject, success: Vec<Op>) -> TxnResponse {
    s.store.txn(Txn { success, ..Default::default() }).await.unwrap()
}

async fn put(s: &Subject, key: &str, value: &str) -> Revision {
    write(s, vec![Op::put(key.to_owned(), value.to_owned())]).await.revision
}

async fn delete(s: &Subject, key: &str) -> Revision {
    write(s, vec![Op::delete(key.to_owned())]).await.revision
}

async fn get(s: &Subject, key: &str) -> Option<KeyValue> {
    let req = RangeRequest::new(KeyRange::key(key.to_owned()));
    s.store.range(req).await.unwrap().kvs.pop()
}

async fn newest(s: &Subject) -> Revision {
    s.store.revisions().await.unwrap().0
}

fn texts(kvs: &[KeyValue]) -> Vec<String> {
    kvs.iter().map(|kv| format!("{}={}", text(&kv.key), text(&kv.value))).collect()
}

fn text(b: &Bytes) -> String {
    String::from_utf8_lossy(b).into_owned()
}

fn prefix(p: &str) -> KeyRange {
    KeyRange::prefix(p.to_owned())
}

pub async fn next(watch: &mut Watch) -> Result<WatchMessage> {
    let message = tokio::time::timeout(Duration::from_secs(20), watch.receiver.recv()).await;
    message.expect("no message in 20 s").expect("the watch ended without an error")
}

/// `12: +a=1(0) -b(2)`: revision, then puts with their previous value's revision, then deletes.
pub fn show(base: Revision, message: WatchMessage) -> String {
    match message {
        WatchMessage::Progress(rev) => format!("progress {}", rev - base),
        WatchMessage::Events(rev, events) => {
            let mut out = format!("{}:", rev - base);
            for e in events.iter() {
                assert_eq!(e.kv.mod_revision, rev);
                let prev = e.prev.as_ref().map_or("new".to_owned(), |p| (p.mod_revision - base).to_string());
                out += &match e.kind {
                    EventKind::Put => format!(" +{}={}({prev})", text(&e.kv.key), text(&e.kv.value)),
                    EventKind::Delete => format!(" -{}({prev})", text(&e.kv.key)),
                };
            }
            out
        }
    }
}

async fn watch(s: &Subject, range: KeyRange, start: Revision) -> Watch {
    s.store.watch(WatchRequest { range, start }).await.unwrap()
}

/// The error of a watch, whether it comes at once or as the first message.
async fn watch_error(s: &Subject, range: KeyRange, start: Revision) -> StoreError {
    match s.store.watch(WatchRequest { range, start }).await {
        Err(e) => e,
        Ok(mut w) => next(&mut w).await.expect_err("the watch works"),
    }
}

async fn revisions_and_versions(s: Subject) {
    let base = newest(&s).await;
    assert_eq!(put(&s, "rv/a", "1").await, base + 1);
    assert_eq!(put(&s, "rv/a", "2").await, base + 2);
    let kv = get(&s, "rv/a").await.unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version, kv.lease), (base + 1, base + 2, 2, 0));
    assert_eq!(delete(&s, "rv/a").await, base + 3);
    assert_eq!(get(&s, "rv/a").await, None);
    put(&s, "rv/a", "3").await;
    let kv = get(&s, "rv/a").await.unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (base + 4, base + 4, 1));
    // Empty values and bytes that are no text are values too.
    let raw = Bytes::from_static(&[0, 255, 0]);
    write(&s, vec![Op::put(Bytes::from_static(b"rv/\xff\x00"), raw.clone()), Op::put("rv/empty", "")]).await;
    let all = s.store.range(RangeRequest::new(prefix("rv/"))).await.unwrap();
    assert_eq!(all.kvs.len(), 3);
    assert_eq!(all.kvs[2].value, raw);
    assert_eq!(all.revision, base + 5);
    assert_eq!(all.kvs[1].mod_revision, all.kvs[2].mod_revision);
}

async fn ranges(s: Subject) {
    for k in ["b", "a", "d", "c", "ca"] {
        put(&s, &format!("ra/{k}"), k).await;
    }
    put(&s, "rb/x", "x").await;
    let ask = |range, limit, keys_only, count_only| {
        let store = Arc::clone(&s.store);
        async move {
            let req = RangeRequest { limit, keys_only, count_only, ..RangeRequest::new(range) };
            let r = store.range(req).await.unwrap();
            (texts(&r.kvs).join(" "), r.count, r.more)
        }
    };
    let half = KeyRange { start: "ra/b".into(), end: "ra/d".into() };
    let from = KeyRange { start: "ra/ca".into(), end: Bytes::from_static(b"ra0") };
    let none = KeyRange { start: "ra/z".into(), end: "ra/b".into() };
    assert_eq!(ask(prefix("ra/"), 0, false, false).await.0, "ra/a=a ra/b=b ra/c=c ra/ca=ca ra/d=d");
    assert_eq!(ask(half.clone(), 0, false, false).await, ("ra/b=b ra/c=c ra/ca=ca".into(), 3, false));
    assert_eq!(ask(half.clone(), 2, false, false).await, ("ra/b=b ra/c=c".into(), 3, true));
    assert_eq!(ask(half.clone(), 3, false, false).await, ("ra/b=b ra/c=c ra/ca=ca".into(), 3, false));
    assert_eq!(ask(half.clone(), 0, true, false).await, ("ra/b= ra/c= ra/ca=".into(), 3, false));
    let (kvs, count, _) = ask(half, 0, false, true).await;
    assert_eq!((kvs.as_str(), count), ("", 3));
    assert_eq!(ask(from, 0, false, false).await, ("ra/ca=ca ra/d=d".into(), 2, false));
    assert_eq!(ask(none, 0, false, false).await, (String::new(), 0, false));
    assert_eq!(ask(KeyRange::key("ra/c"), 0, false, false).await, ("ra/c=c".into(), 1, false));
    let open = KeyRange { start: "ra/d".into(), end: Bytes::from_static(b"\0") };
    assert!(ask(open, 0, false, false).await.0.starts_with("ra/d=d rb/x=x"));
}

async fn orders(s: Subject) {
    // Created in the order a c b; b is the newest; c was written most often; the values are ordered b a c.
    for (k, v) in [("a", "2"), ("c", "1"), ("b", "9"), ("c", "5"), ("c", "3"), ("a", "2"), ("b", "1")] {
        put(&s, &format!("ord/{k}"), v).await;
    }
    let ask = |sort_by, order, limit| {
        let store = Arc::clone(&s.store);
        async move {
            let req = RangeRequest { sort_by, order, limit, ..RangeRequest::new(prefix("ord/")) };
            let r = store.range(req).await.unwrap();
            assert_eq!(r.count, 3);
            let keys: String = r.kvs.iter().map(|kv| text(&kv.key)[4..].to_owned()).collect();
            (keys, r.more)
        }
    };
    use Order::*;
    let table = [
        (SortTarget::Key, Ascend, 0, "abc"),
        (SortTarget::Key, Descend, 0, "cba"),
        (SortTarget::Key, Descend, 2, "cb"),
        (SortTarget::CreateRevision, Ascend, 0, "acb"),
        (SortTarget::CreateRevision, Descend, 1, "b"),
        (SortTarget::ModRevision, Ascend, 0, "cab"),
        (SortTarget::ModRevision, Descend, 2, "ba"),
        (SortTarget::Value, Ascend, 0, "bac"),
        (SortTarget::Value, Descend, 1, "c"),
        (SortTarget::Version, Descend, 1, "c"),
        // Without an order only one more than the limit is looked at.
        (SortTarget::Value, None, 0, "bac"),
        (SortTarget::Value, None, 2, "ba"),
        (SortTarget::ModRevision, None, 2, "ca"),
        (SortTarget::ModRevision, None, 1, "a"),
    ];
    for (sort_by, order, limit, want) in table {
        let got = ask(sort_by, order, limit).await;
        assert_eq!(got, (want.to_owned(), limit != 0), "{sort_by:?} {order:?} {limit}");
    }
    let by_value = RangeRequest {
        sort_by: SortTarget::Value,
        order: Ascend,
        keys_only: true,
        ..RangeRequest::new(prefix("ord/"))
    };
    assert_eq!(texts(&s.store.range(by_value.clone()).await.unwrap().kvs), ["ord/b=", "ord/a=", "ord/c="]);
    // A transaction sorts what it has written itself.
    let answer = write(&s, vec![Op::put("ord/a", "0"), Op::Range(RangeRequest { keys_only: false, ..by_value })]).await;
    let OpResponse::Range(r) = &answer.responses[1] else { panic!() };
    assert_eq!(texts(&r.kvs), ["ord/a=0", "ord/b=1", "ord/c=3"]);
}

async fn parts_need_no_count(s: Subject) {
    if s.remote {
        return; // The API has no such request; its streams of parts rest on it.
    }
    for i in 0..9 {
        put(&s, &format!("part/{i}"), "v").await;
    }
    let old = newest(&s).await;
    put(&s, "part/0", "w").await;
    for revision in [0, old] {
        for (limit, want, more) in [(0, 9, false), (4, 4, true), (8, 8, true), (9, 9, false), (20, 9, false)] {
            let req = RangeRequest { uncounted: true, revision, limit, ..RangeRequest::new(prefix("part/")) };
            let r = s.store.range(req).await.unwrap();
            assert_eq!((r.kvs.len(), r.more), (want, more), "{limit} at {revision}");
        }
    }
}

async fn bounds_on_revisions(s: Subject) {
    let base = newest(&s).await;
    for k in ["a", "b", "c", "a"] {
        put(&s, &format!("bnd/{k}"), k).await;
    }
    let at = |min: Revision, max: Revision| RevisionBounds {
        min: if min == 0 { 0 } else { base + min },
        max: if max == 0 { 0 } else { base + max },
    };
    let ask = |mod_revisions, create_revisions, limit| {
        let store = Arc::clone(&s.store);
        async move {
            let req = RangeRequest { mod_revisions, create_revisions, limit, ..RangeRequest::new(prefix("bnd/")) };
            let r = store.range(req).await.unwrap();
            assert_eq!(r.count, 3, "what is left out is counted");
            (r.kvs.iter().map(|kv| text(&kv.value)).collect::<String>(), r.more)
        }
    };
    let none = RevisionBounds::default();
    assert_eq!(ask(at(3, 0), none, 0).await, ("ac".into(), false));
    assert_eq!(ask(at(0, 3), none, 0).await, ("bc".into(), false));
    assert_eq!(ask(at(2, 3), none, 1).await, ("b".into(), true));
    assert_eq!(ask(none, at(0, 1), 0).await, ("a".into(), false));
    assert_eq!(ask(none, at(2, 2), 0).await, ("b".into(), false));
    assert_eq!(ask(at(4, 4), at(1, 1), 0).await, ("a".into(), false));
    assert_eq!(ask(at(9, 0), none, 0).await, (String::new(), false));
}

async fn reads_at_old_revisions(s: Subject) {
    let base = newest(&s).await;
    put(&s, "old/a", "1").await;
    put(&s, "old/b", "1").await;
    put(&s, "old/a", "2").await;
    delete(&s, "old/b").await;
    put(&s, "old/b", "3").await;
    let at = |rev: Revision| {
        let store = Arc::clone(&s.store);
        async move {
            let req = RangeRequest { revision: base + rev, ..RangeRequest::new(prefix("old/")) };
            let r = store.range(req).await.unwrap();
            assert_eq!(r.revision, base + 5, "the header tells the store's revision");
            assert_eq!(r.count as usize, r.kvs.len());
            texts(&r.kvs).join(" ")
        }
    };
    assert_eq!(at(1).await, "old/a=1");
    assert_eq!(at(2).await, "old/a=1 old/b=1");
    assert_eq!(at(3).await, "old/a=2 old/b=1");
    assert_eq!(at(4).await, "old/a=2");
    assert_eq!(at(5).await, "old/a=2 old/b=3");
    let future = RangeRequest { revision: base + 6, ..RangeRequest::new(prefix("old/")) };
    assert!(matches!(s.store.range(future).await, Err(StoreError::FutureRevision { .. })));
    let page = RangeRequest { revision: base + 2, limit: 1, ..RangeRequest::new(prefix("old/")) };
    let page = s.store.range(page).await.unwrap();
    assert_eq!((texts(&page.kvs), page.count, page.more), (vec!["old/a=1".to_owned()], 2, true));
}

async fn compares(s: Subject) {
    use CompareOp::*;
    use CompareTarget::*;
    put(&s, "cmp/a", "m").await;
    let created = put(&s, "cmp/b", "m").await;
    let modified = put(&s, "cmp/b", "n").await;
    let table = [
        ("cmp/b", Equal, CreateRevision(created), true),
        ("cmp/b", Less, CreateRevision(created), false),
        ("cmp/b", Equal, ModRevision(modified), true),
        ("cmp/b", NotEqual, ModRevision(modified), false),
        ("cmp/b", Greater, ModRevision(modified - 1), true),
        ("cmp/b", Less, ModRevision(modified + 1), true),
        ("cmp/b", Equal, Version(2), true),
        ("cmp/b", Equal, Value("n".into()), true),
        ("cmp/b", Greater, Value("m".into()), true),
        ("cmp/b", Less, Value("m".into()), false),
        ("cmp/b", Equal, Lease(0), true),
        ("cmp/none", Equal, CreateRevision(0), true),
        ("cmp/none", Equal, ModRevision(0), true),
        ("cmp/none", Greater, Version(0), false),
        ("cmp/none", Equal, Lease(0), true),
        ("cmp/none", Equal, Value("".into()), false),
        ("cmp/none", NotEqual, Value("x".into()), false),
    ];
    for (key, op, target, want) in table {
        let compare = vec![Compare { range: KeyRange::key(key), op, target: target.clone() }];
        let got = s.store.txn(Txn { compare, ..Default::default() }).await.unwrap().succeeded;
        assert_eq!(got, want, "{key} {op:?} {target:?}");
    }
    let all = |op, target| {
        let store = Arc::clone(&s.store);
        async move {
            let compare = vec![Compare { range: prefix("cmp/"), op, target }];
            store.txn(Txn { compare, ..Default::default() }).await.unwrap().succeeded
        }
    };
    assert!(all(Greater, Value("l".into())).await);
    assert!(!all(Equal, Value("m".into())).await);
    // Both conditions must hold.
    let compare = vec![Compare::mod_revision("cmp/b", modified), Compare::mod_revision("cmp/a", 1)];
    let txn =
        Txn { compare, success: vec![Op::put("cmp/x", "1")], failure: vec![Op::get("cmp/b")], ..Default::default() };
    let answer = s.store.txn(txn).await.unwrap();
    assert!(!answer.succeeded);
    assert_eq!(answer.revision, modified);
    let OpResponse::Range(r) = &answer.responses[0] else { panic!("{answer:?}") };
    assert_eq!(texts(&r.kvs), ["cmp/b=n"]);
}

async fn a_transaction_sees_its_writes(s: Subject) {
    let base = put(&s, "see/a", "0").await;
    let ops = vec![
        Op::get("see/a"),
        Op::Put {
            key: "see/a".into(),
            value: "1".into(),
            lease: 0,
            prev_kv: true,
            ignore_value: false,
            ignore_lease: false,
        },
        Op::get("see/a"),
        Op::put("see/b", "2"),
        Op::Range(RangeRequest { limit: 1, ..RangeRequest::new(prefix("see/")) }),
        Op::Delete { range: KeyRange::key("see/none"), prev_kv: false },
    ];
    let answer = write(&s, ops).await;
    assert_eq!(answer.revision, base + 1);
    let OpResponse::Range(r) = &answer.responses[0] else { panic!() };
    assert_eq!(texts(&r.kvs), ["see/a=0"]);
    let OpResponse::Put { prev: Some(prev) } = &answer.responses[1] else { panic!() };
    assert_eq!(prev.mod_revision, base);
    let OpResponse::Range(r) = &answer.responses[2] else { panic!() };
    assert_eq!((texts(&r.kvs), r.kvs[0].mod_revision), (vec!["see/a=1".to_owned()], base + 1));
    let OpResponse::Range(r) = &answer.responses[4] else { panic!() };
    assert_eq!((texts(&r.kvs), r.count, r.more), (vec!["see/a=1".to_owned()], 2, true));
    let OpResponse::Delete { deleted: 0, .. } = &answer.responses[5] else { panic!() };
}

async fn nested_transactions_decide_first(s: Subject) {
    put(&s, "nest/a", "0").await;
    let nested = |want: &'static str, key: &'static str| {
        Op::Txn(Box::new(Txn {
            compare: vec![Compare {
                range: KeyRange::key("nest/a"),
                op: CompareOp::Equal,
                target: CompareTarget::Value(want.into()),
            }],
            success: vec![Op::put(key, "then")],
            failure: vec![Op::put(key, "else")],
            ..Default::default()
        }))
    };
    let answer = write(&s, vec![Op::put("nest/a", "1"), nested("1", "nest/b"), nested("0", "nest/c")]).await;
    let OpResponse::Txn(b) = &answer.responses[1] else { panic!() };
    let OpResponse::Txn(c) = &answer.responses[2] else { panic!() };
    assert_eq!((b.succeeded, c.succeeded), (false, true), "compares look at the state before the transaction");
    let kvs = s.store.range(RangeRequest::new(prefix("nest/"))).await.unwrap().kvs;
    assert_eq!(texts(&kvs), ["nest/a=1", "nest/b=else", "nest/c=then"]);
    assert!(kvs.iter().all(|kv| kv.mod_revision == answer.revision));
}

async fn a_key_is_written_once(s: Subject) {
    let base = put(&s, "dup/a", "0").await;
    let nested = |ops| Op::Txn(Box::new(Txn { success: ops, ..Default::default() }));
    let all = || Op::Delete { range: prefix("dup/"), prev_kv: false };
    let bad = [
        vec![Op::put("dup/a", "1"), Op::put("dup/a", "2")],
        vec![Op::put("dup/a", "1"), Op::delete("dup/a")],
        vec![all(), Op::put("dup/a", "1")],
        vec![Op::put("dup/a", "1"), nested(vec![Op::put("dup/a", "2")])],
    ];
    for ops in bad {
        let shown = format!("{ops:?}");
        let answer = s.store.txn(Txn { success: ops, ..Default::default() }).await;
        assert!(matches!(answer, Err(StoreError::DuplicateKey)), "{shown}: {answer:?}");
    }
    assert_eq!(newest(&s).await, base);
    let either = Txn {
        compare: vec![Compare::mod_revision("dup/a", base)],
        success: vec![Op::put("dup/a", "1")],
        failure: vec![Op::put("dup/a", "2")],
        ..Default::default()
    };
    assert!(s.store.txn(either).await.unwrap().succeeded, "the branches exclude each other");
    assert_eq!(write(&s, vec![Op::delete("dup/a"), all()]).await.revision, base + 2);
}

async fn ignore_flags(s: Subject) {
    let put_with = |key: &'static str, ignore_value, ignore_lease, lease| {
        let value = if ignore_value { Bytes::new() } else { "new".into() };
        vec![Op::Put { key: key.into(), value, lease, prev_kv: false, ignore_value, ignore_lease }]
    };
    let lease = s.store.lease_grant(0, 600).await.unwrap().id;
    write(&s, put_with("ig/a", false, false, lease)).await;
    for (value, held) in [(true, false), (false, true)] {
        let txn = Txn { success: put_with("ig/none", value, held, 0), ..Default::default() };
        assert!(matches!(s.store.txn(txn).await, Err(StoreError::KeyNotFound)));
    }
    write(&s, put_with("ig/a", false, true, 0)).await;
    assert_eq!(get(&s, "ig/a").await.unwrap().lease, lease);
    write(&s, put_with("ig/a", true, false, 0)).await;
    let kv = get(&s, "ig/a").await.unwrap();
    assert_eq!((kv.lease, text(&kv.value), kv.version), (0, "new".to_owned(), 3));
    s.store.lease_revoke(lease).await.unwrap();
    assert!(get(&s, "ig/a").await.is_some(), "it left the lease");
}

async fn delete_ranges(s: Subject) {
    for k in ["a", "b", "c"] {
        put(&s, &format!("del/{k}"), k).await;
    }
    let range = KeyRange { start: "del/a".into(), end: "del/c".into() };
    let answer = write(&s, vec![Op::Delete { range, prev_kv: true }]).await;
    let OpResponse::Delete { deleted, prev } = &answer.responses[0] else { panic!() };
    assert_eq!((*deleted, texts(prev)), (2, vec!["del/a=a".to_owned(), "del/b=b".to_owned()]));
    let left = s.store.range(RangeRequest::new(prefix("del/"))).await.unwrap();
    assert_eq!(texts(&left.kvs), ["del/c=c"]);
}

async fn nothing_done_takes_no_revision(s: Subject) {
    let base = put(&s, "no/a", "1").await;
    assert_eq!(delete(&s, "no/none").await, base);
    assert_eq!(write(&s, vec![Op::get("no/a")]).await.revision, base);
    assert_eq!(write(&s, vec![]).await.revision, base);
    let unknown = Op::Put {
        key: "no/b".into(),
        value: "".into(),
        lease: 424_242,
        prev_kv: false,
        ignore_value: false,
        ignore_lease: false,
    };
    let answer = s.store.txn(Txn { success: vec![unknown], ..Default::default() }).await;
    assert!(matches!(answer, Err(StoreError::LeaseNotFound(_))), "{answer:?}");
    assert_eq!(newest(&s).await, base);
}

async fn watches_get_whole_transactions(s: Subject) {
    let base = put(&s, "w/a", "0").await;
    let mut w = watch(&s, prefix("w/"), 0).await;
    write(&s, vec![Op::put("w/a", "1"), Op::put("w/b", "1"), Op::put("elsewhere", "1")]).await;
    put(&s, "elsewhere", "2").await;
    write(&s, vec![Op::Delete { range: prefix("w/"), prev_kv: false }]).await;
    put(&s, "w/a", "2").await;
    assert_eq!(show(base, next(&mut w).await.unwrap()), "1: +w/a=1(0) +w/b=1(new)");
    assert_eq!(show(base, next(&mut w).await.unwrap()), "3: -w/a(1) -w/b(1)");
    assert_eq!(show(base, next(&mut w).await.unwrap()), "4: +w/a=2(new)");
}

async fn watches_start_in_the_past_without_a_gap(s: Subject) {
    let base = newest(&s).await;
    let n: Revision = if s.clock.is_none() { 300 } else { 1500 };
    let writer = async {
        for i in 1..=n {
            put(&s, &format!("past/{}", i % 7), &i.to_string()).await;
        }
    };
    let reader = async {
        let mut seen = 0;
        // Watches begin while the writer writes; each must see all from the start.
        while seen < 5 {
            let at = newest(&s).await;
            let mut w = watch(&s, prefix("past/"), base + 1).await;
            for i in 1..=(at - base) {
                let WatchMessage::Events(rev, events) = next(&mut w).await.unwrap() else { panic!() };
                assert_eq!(rev, base + i);
                assert_eq!(text(&events[0].kv.value), i.to_string());
                assert_eq!(events[0].prev.as_ref().map(|p| p.mod_revision), (i > 7).then(|| base + i - 7));
            }
            seen += 1;
        }
        watch(&s, prefix("past/"), base + 1).await
    };
    let ((), mut last) = tokio::join!(writer, reader);
    // A slow reader of its own past is not ended: it reads at its own pace until it has caught up.
    let mut got = 0;
    while got < n.min(s.buffer as Revision) {
        let WatchMessage::Events(rev, _) = next(&mut last).await.unwrap() else { panic!() };
        got += 1;
        assert_eq!(rev, base + got);
    }
}

async fn watches_start_in_the_future(s: Subject) {
    let base = newest(&s).await;
    let mut w = watch(&s, prefix("fut/"), base + 3).await;
    for i in 1..=4 {
        put(&s, "fut/a", &i.to_string()).await;
    }
    assert_eq!(show(base, next(&mut w).await.unwrap()), "3: +fut/a=3(2)");
    assert_eq!(show(base, next(&mut w).await.unwrap()), "4: +fut/a=4(3)");
}

async fn watches_pick_their_range(s: Subject) {
    let base = newest(&s).await;
    let ranges = [
        (KeyRange::key("pick/b"), "1: +pick/b=2(new)"),
        (KeyRange { start: "pick/b".into(), end: "pick/d".into() }, "1: +pick/b=2(new) +pick/c=3(new)"),
        (prefix("pick/"), "1: +pick/a=1(new) +pick/b=2(new) +pick/c=3(new)"),
    ];
    let mut live = Vec::new();
    for (range, want) in &ranges {
        live.push((watch(&s, range.clone(), 0).await, want));
    }
    write(&s, vec![Op::put("pick/a", "1"), Op::put("pick/b", "2"), Op::put("pick/c", "3")]).await;
    for (w, want) in &mut live {
        assert_eq!(show(base, next(w).await.unwrap()), **want);
    }
    for (range, want) in ranges {
        let mut replayed = watch(&s, range, base + 1).await;
        assert_eq!(show(base, next(&mut replayed).await.unwrap()), want);
    }
}

async fn compaction(s: Subject) {
    let base = newest(&s).await;
    put(&s, "comp/a", "1").await;
    put(&s, "comp/b", "1").await;
    put(&s, "comp/a", "2").await;
    delete(&s, "comp/b").await;
    put(&s, "comp/c", "1").await;
    put(&s, "comp/a", "3").await;
    s.store.compact(base + 5).await.unwrap();
    let at = |rev| RangeRequest { revision: base + rev, ..RangeRequest::new(prefix("comp/")) };
    assert!(matches!(s.store.range(at(4)).await, Err(StoreError::Compacted { .. })));
    assert_eq!(texts(&s.store.range(at(5)).await.unwrap().kvs), ["comp/a=2", "comp/c=1"]);
    let now = RangeRequest::new(prefix("comp/"));
    assert_eq!(texts(&s.store.range(now).await.unwrap().kvs), ["comp/a=3", "comp/c=1"]);
    assert!(matches!(watch_error(&s, prefix("comp/"), base + 4).await, StoreError::Compacted { .. }));
    let mut w = watch(&s, prefix("comp/"), base + 5).await;
    assert_eq!(show(base, next(&mut w).await.unwrap()), "5: +comp/c=1(new)");
    assert_eq!(show(base, next(&mut w).await.unwrap()), "6: +comp/a=3(3)");
    assert!(matches!(s.store.compact(base + 5).await, Err(StoreError::Compacted { .. })));
    assert!(matches!(s.store.compact(base + 100).await, Err(StoreError::FutureRevision { .. })));
    put(&s, "comp/b", "2").await;
    let b = get(&s, "comp/b").await.unwrap();
    assert_eq!((b.version, b.create_revision), (1, base + 7));
    s.store.compact(base + 7).await.unwrap();
    assert_eq!(texts(&s.store.range(at(7)).await.unwrap().kvs), ["comp/a=3", "comp/b=2", "comp/c=1"]);
}

async fn physical_compaction(s: Subject) {
    for i in 0..600 {
        put(&s, &format!("phys/{}", i % 3), &i.to_string()).await;
    }
    let now = newest(&s).await;
    s.store.compact_physically(now).await.unwrap();
    assert!(matches!(s.store.compact_physically(now).await, Err(StoreError::Compacted { .. })));
    assert!(matches!(s.store.compact_physically(now + 9).await, Err(StoreError::FutureRevision { .. })));
    let left = s.store.range(RangeRequest::new(prefix("phys/"))).await.unwrap();
    assert_eq!(texts(&left.kvs), ["phys/0=597", "phys/1=598", "phys/2=599"]);
    let before = s.store.usage().await.unwrap();
    s.store.defragment().await.unwrap();
    let after = s.store.usage().await.unwrap();
    assert!(after.size <= before.size && after.in_use <= after.size, "{before:?} {after:?}");
    assert_eq!(texts(&s.store.range(RangeRequest::new(prefix("phys/"))).await.unwrap().kvs), texts(&left.kvs));
    put(&s, "phys/0", "more").await;
    assert_eq!(get(&s, "phys/0").await.unwrap().version, 201);
}

async fn hashes(s: Subject) {
    put(&s, "hash/a", "1").await;
    put(&s, "hash/b", "1").await;
    let old = newest(&s).await;
    let before = s.store.hash(0).await.unwrap();
    assert_eq!((before.hash_revision, before.revision), (old, old));
    put(&s, "hash/a", "2").await;
    delete(&s, "hash/b").await;
    put(&s, "hash/c", "1").await;
    let now = newest(&s).await;
    let later = s.store.hash(0).await.unwrap();
    assert_ne!(later.hash, before.hash);
    assert_eq!(s.store.hash(old).await.unwrap().hash, before.hash, "the past does not change");
    assert_eq!(s.store.hash(now).await.unwrap().hash, later.hash);
    assert!(matches!(s.store.hash(now + 1).await, Err(StoreError::FutureRevision { .. })));
    s.store.compact_physically(now).await.unwrap();
    let compacted = s.store.hash(0).await.unwrap();
    assert_eq!((compacted.compact_revision, compacted.hash_revision), (now, now));
    assert_ne!(compacted.hash, later.hash, "what was dropped is not in it");
    assert!(matches!(s.store.hash(old).await, Err(StoreError::Compacted { .. })));
    put(&s, "hash/d", "1").await;
    assert_ne!(s.store.hash(0).await.unwrap().hash, compacted.hash);
}

async fn exports(s: Subject) {
    if s.remote {
        return; // There, snapshots take its place.
    }
    for i in 0..700 {
        put(&s, &format!("exp/{}", i % 100), &i.to_string()).await;
    }
    delete(&s, "exp/7").await;
    write(&s, vec![Op::put("exp/x", "1"), Op::put("exp/a", "1")]).await;
    let now = newest(&s).await;
    s.store.compact_physically(now - 2).await.unwrap();
    let mut export = s.store.export().await.unwrap();
    assert_eq!((export.revision, export.compacted), (now, now - 2));
    // What is written meanwhile is not in it.
    put(&s, "exp/later", "1").await;
    let mut entries = Vec::new();
    while let Some(part) = export.entries.recv().await {
        entries.extend(part.unwrap());
    }
    let places: Vec<_> = entries.iter().map(|e| (e.revision, e.sub)).collect();
    assert!(places.is_sorted() && places.last() == Some(&(now, 1)));
    assert_eq!(entries.len(), 100 + 1 + 2, "each key, a deletion after the compaction, and two");
    let gone = &entries[entries.len() - 3];
    assert_eq!((&gone.key[..], gone.kv.is_none(), gone.revision), (&b"exp/7"[..], true, now - 1));
    let first = entries[0].kv.clone().unwrap();
    assert_eq!((text(&first.value), first.version, first.mod_revision), ("600".into(), 7, entries[0].revision));
}

async fn alarms(s: Subject) {
    assert_eq!(s.store.alarms().await.unwrap(), []);
    assert!(s.store.set_alarm(Alarm::NoSpace, true).await.unwrap());
    assert_eq!(s.store.alarms().await.unwrap(), [Alarm::NoSpace]);
    assert!(s.store.set_alarm(Alarm::NoSpace, false).await.unwrap());
    assert_eq!(s.store.alarms().await.unwrap(), []);
    let base = newest(&s).await;
    assert_eq!(put(&s, "alarm/a", "1").await, base + 1, "an alarm is no change of the keys");
}

fn leased(key: &'static str, lease: LeaseId) -> Op {
    Op::Put { key: key.into(), value: "v".into(), lease, prev_kv: false, ignore_value: false, ignore_lease: false }
}

async fn leases(s: Subject) {
    let one = s.store.lease_grant(7001, 100).await.unwrap();
    assert_eq!((one.id, one.granted_ttl), (7001, 100));
    assert!(matches!(s.store.lease_grant(7001, 100).await, Err(StoreError::LeaseExists(7001))));
    let two = s.store.lease_grant(0, 100).await.unwrap().id;
    assert!(two != 0 && two != 7001);
    let ids = s.store.leases().await.unwrap();
    assert!(ids.contains(&7001) && ids.contains(&two));
    write(&s, vec![leased("lease/a", 7001), leased("lease/b", 7001), leased("lease/c", two)]).await;
    write(&s, vec![leased("lease/b", two)]).await;
    put(&s, "lease/d", "v").await;
    let status = s.store.lease_status(7001).await.unwrap();
    assert_eq!(status.keys, [Bytes::from("lease/a")]);
    assert!(status.ttl <= 100 && status.ttl > 90);
    assert_eq!(s.store.lease_keep_alive(7001).await.unwrap().ttl, 100);
    let base = newest(&s).await;
    let mut w = watch(&s, prefix("lease/"), 0).await;
    s.store.lease_revoke(two).await.unwrap();
    assert_eq!(show(base, next(&mut w).await.unwrap()), "1: -lease/b(-1) -lease/c(-2)");
    let left = s.store.range(RangeRequest::new(prefix("lease/"))).await.unwrap();
    assert_eq!(texts(&left.kvs), ["lease/a=v", "lease/d=v"]);
    for answer in [
        s.store.lease_revoke(two).await.map(|()| 0),
        s.store.lease_keep_alive(two).await.map(|l| l.ttl),
        s.store.lease_status(two).await.map(|l| l.ttl),
    ] {
        assert!(matches!(answer, Err(StoreError::LeaseNotFound(_))), "{answer:?}");
    }
    let base = newest(&s).await;
    delete(&s, "lease/a").await;
    s.store.lease_revoke(7001).await.unwrap();
    assert_eq!(newest(&s).await, base + 1, "the end of a lease without keys is no change");
}

async fn leases_end(s: Subject) {
    // etcd raises short leases to two seconds.
    let short = s.store.lease_grant(0, 2).await.unwrap();
    let long = s.store.lease_grant(0, 6000).await.unwrap().id;
    write(&s, vec![leased("end/a", short.id), leased("end/b", long)]).await;
    let base = newest(&s).await;
    let mut w = watch(&s, prefix("end/"), 0).await;
    s.advance(Duration::from_millis(1500)).await;
    s.store.lease_keep_alive(short.id).await.unwrap();
    s.advance(Duration::from_millis(1500)).await;
    assert!(get(&s, "end/a").await.is_some(), "it was kept alive");
    s.advance(Duration::from_millis(1500)).await;
    assert_eq!(show(base, next(&mut w).await.unwrap()), "1: -end/a(0)");
    assert!(get(&s, "end/b").await.is_some());
    assert!(!s.store.leases().await.unwrap().contains(&short.id));
}

async fn increments_are_not_lost(s: Subject) {
    put(&s, "inc", "0").await;
    let add = |store: Arc<dyn Store>| async move {
        for _ in 0..20 {
            loop {
                let kv = store.range(RangeRequest::new(KeyRange::key("inc"))).await.unwrap().kvs.remove(0);
                let n: u32 = text(&kv.value).parse().unwrap();
                let txn = Txn {
                    compare: vec![Compare::mod_revision("inc", kv.mod_revision)],
                    success: vec![Op::put("inc", (n + 1).to_string())],
                    ..Default::default()
                };
                if store.txn(txn).await.unwrap().succeeded {
                    break;
                }
            }
        }
    };
    let tasks: Vec<_> = (0..8).map(|_| tokio::spawn(add(Arc::clone(&s.store)))).collect();
    for task in tasks {
        task.await.unwrap();
    }
    let kv = get(&s, "inc").await.unwrap();
    assert_eq!((text(&kv.value), kv.version), ("160".to_owned(), 161));
}

async fn progress_follows_events(s: Subject) {
    if s.is_etcd() {
        return; // It forgets a wish for progress while a watch still reads history.
    }
    let base = newest(&s).await;
    put(&s, "prog/a", "1").await;
    put(&s, "prog/a", "2").await;
    for start in [base + 1, 0] {
        let mut w = watch(&s, prefix("prog/"), start).await;
        (w.request_progress)();
        put(&s, "prog/a", "3").await;
        let now = newest(&s).await;
        (w.request_progress)();
        let mut delivered = base;
        loop {
            match next(&mut w).await.unwrap() {
                WatchMessage::Events(rev, _) => delivered = rev,
                WatchMessage::Progress(rev) => {
                    assert!(start == 0 || delivered >= rev, "progress {rev} before its events, at {delivered}");
                    if rev == now {
                        break;
                    }
                }
            }
        }
    }
    // Progress passes over revisions of other keys.
    let mut w = watch(&s, prefix("prog/"), 0).await;
    let other = put(&s, "other", "1").await;
    (w.request_progress)();
    assert_eq!(show(0, next(&mut w).await.unwrap()), format!("progress {other}"));
}

async fn a_slow_watcher_is_ended(s: Subject) {
    if s.remote {
        return; // It falls back to history.
    }
    let mut w = watch(&s, prefix("slow/"), 0).await;
    let mut quick = watch(&s, prefix("slow/"), 0).await;
    let base = newest(&s).await;
    let n = s.buffer as Revision * 3;
    for i in 1..=n {
        put(&s, "slow/a", "x").await;
        let WatchMessage::Events(rev, _) = next(&mut quick).await.unwrap() else { panic!() };
        assert_eq!(rev, base + i, "a slow watcher does not hold up the others");
    }
    let mut rev = base;
    let end = loop {
        match next(&mut w).await {
            Ok(WatchMessage::Events(r, _)) => {
                rev += 1;
                assert_eq!(r, rev);
            }
            Ok(WatchMessage::Progress(_)) => panic!("progress"),
            Err(e) => break e,
        }
    };
    assert!(matches!(end, StoreError::WatchOverrun));
    assert!(rev >= base + s.buffer as Revision && rev < base + n);
    assert!(w.receiver.recv().await.is_none());
}

async fn settings(s: Subject) {
    if s.remote {
        // Beside the keys, so not to be had through etcd's API.
        return;
    }
    let base = s.store.revisions().await.unwrap().0;
    assert_eq!(s.store.setting("a").await.unwrap(), None);
    for (name, value) in [("a", &b"1"[..]), ("b", b""), ("a", b"2\0")] {
        s.store.set_setting(name, Some(Bytes::from_static(value))).await.unwrap();
        assert_eq!(s.store.setting(name).await.unwrap().as_deref(), Some(value), "{name}");
    }
    assert_eq!(s.store.settings().await.unwrap().into_keys().collect::<Vec<_>>(), ["a", "b"]);
    let [one, two] = [b"1", b"2"].map(|v| Some(Bytes::from_static(v)));
    for (expected, value, swapped) in [
        (None, one.clone(), true),
        (None, two.clone(), false),
        (two.clone(), one.clone(), false),
        (one.clone(), two.clone(), true),
        (two.clone(), None, true),
        (two.clone(), one.clone(), false),
    ] {
        assert_eq!(s.store.swap_setting("c", expected, value).await.unwrap(), swapped);
    }
    assert_eq!(s.store.setting("c").await.unwrap(), None);
    let all = (0..4).map(|_| tokio::spawn(count_up(Arc::clone(&s.store), "c", 10)));
    for task in all.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    assert_eq!(s.store.setting("c").await.unwrap().as_deref(), Some(&b"40"[..]), "no change was lost");
    s.store.set_setting("c", None).await.unwrap();
    s.store.set_setting("b", None).await.unwrap();
    assert_eq!(s.store.setting("b").await.unwrap(), None);
    assert_eq!(s.store.revisions().await.unwrap().0, base, "a setting is no change of the keys");
}

/// Adds one to the number in a setting, again and again, beside others who do the same.
pub async fn count_up(store: Arc<dyn Store>, name: &str, times: usize) {
    for _ in 0..times {
        loop {
            let before = store.setting(name).await.unwrap();
            let n: u32 = before.as_deref().map_or(0, |b| String::from_utf8_lossy(b).parse().unwrap());
            let after = Bytes::from((n + 1).to_string());
            if store.swap_setting(name, before, Some(after)).await.unwrap() {
                break;
            }
        }
    }
}
