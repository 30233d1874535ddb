//! What the API adds to the store: codes and messages, streams of many watches, keep-alives, alarms, what a server says of
//! itself. Each case has a server for itself and runs on every server.

use crate::target::Settings;
use etcd_client::*;
use futures::FutureExt;
use futures::future::BoxFuture;
use std::time::Duration;

type Case = fn(String) -> BoxFuture<'static, ()>;

pub fn cases() -> Vec<(&'static str, Settings, Case)> {
    macro_rules! table {
        ($($name:ident $settings:expr),* $(,)?) => {
            vec![$((stringify!($name), $settings, (|url| async move {
                $name(Client::connect([&url], None).await.unwrap()).await
            }.boxed()) as Case)),*]
        };
    }
    let plain = Settings::default();
    // Some older ones answer otherwise, or tell progress before the events that it covers.
    let newer = Settings { since: (3, 6), ..plain };
    table![
        errors plain,
        headers plain,
        many_watches_on_one_stream plain,
        watches_that_are_refused newer,
        watches_on_compacted_history newer,
        filters_and_previous_values newer,
        progress_of_a_whole_stream newer,
        progress_by_the_clock Settings { progress: Some(Duration::from_millis(200)), ..newer },
        large_answers_come_in_fragments newer,
        a_slow_stream_loses_nothing newer,
        leases newer,
        maintenance newer,
        the_quota Settings { quota: Some(8 << 20), ..newer },
        one_member newer,
    ]
}

/// The code and message of a refused request.
fn refusal<T>(answer: Result<T, Error>) -> (i32, String) {
    match answer {
        Err(Error::GRpcStatus(s)) => (s.code() as i32, s.message().to_owned()),
        Err(e) => panic!("{e}"),
        Ok(_) => panic!("it was accepted"),
    }
}

async fn revision(c: &mut Client) -> i64 {
    c.get("x", None).await.unwrap().header().unwrap().revision()
}

async fn put(c: &mut Client, key: &str, value: &str) -> i64 {
    c.put(key, value, None).await.unwrap().header().unwrap().revision()
}

async fn next(stream: &mut WatchStream) -> WatchResponse {
    let answer = tokio::time::timeout(Duration::from_secs(20), stream.message()).await;
    answer.expect("no answer in 20 s").unwrap().expect("the stream ended")
}

/// `+key=value` and `-key`.
fn show(answer: &WatchResponse) -> String {
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    let one = |e: &Event| match e.event_type() {
        EventType::Put => format!("+{}={}", text(e.kv().unwrap().key()), text(e.kv().unwrap().value())),
        EventType::Delete => format!("-{}", text(e.kv().unwrap().key())),
    };
    answer.events().iter().map(one).collect::<Vec<_>>().join(" ")
}

const UNKNOWN: i32 = 2;
const INVALID: i32 = 3;
const NOT_FOUND: i32 = 5;
const EXHAUSTED: i32 = 8;
const PRECONDITION: i32 = 9;
const OUT_OF_RANGE: i32 = 11;

async fn errors(mut c: Client) {
    let says = |code: i32, text: &str| (code, format!("etcdserver: {text}"));
    for i in 0..4 {
        put(&mut c, "e", &i.to_string()).await;
    }
    let now = revision(&mut c).await;
    c.compact(now - 1, None).await.unwrap();
    let at = |rev| Some(GetOptions::new().with_revision(rev));
    assert_eq!(refusal(c.get("", None).await), says(INVALID, "key is not provided"));
    assert_eq!(refusal(c.put("", "", None).await), says(INVALID, "key is not provided"));
    assert_eq!(refusal(c.delete("", None).await), says(INVALID, "key is not provided"));
    let compacted = says(OUT_OF_RANGE, "mvcc: required revision has been compacted");
    assert_eq!(refusal(c.get("e", at(now - 2)).await), compacted);
    assert_eq!(refusal(c.compact(now - 1, None).await), compacted);
    assert_eq!(refusal(c.hash_kv(now - 2).await), compacted);
    let future = says(OUT_OF_RANGE, "mvcc: required revision is a future revision");
    assert_eq!(refusal(c.get("e", at(now + 1)).await), future);
    assert_eq!(refusal(c.compact(now + 1, None).await), future);
    assert_eq!(refusal(c.hash_kv(now + 1).await), future);
    let get_at = |rev| Txn::new().and_then([TxnOp::put("e", "no", None), TxnOp::get("e", at(rev))]);
    assert_eq!(refusal(c.txn(get_at(now + 1)).await), future);
    assert_eq!(refusal(c.txn(get_at(now - 2)).await), compacted);

    let ignoring = |value: bool| {
        let o = PutOptions::new();
        Some(if value { o.with_ignore_value() } else { o.with_ignore_lease() })
    };
    assert_eq!(refusal(c.put("none", "", ignoring(true)).await), says(INVALID, "key not found"));
    assert_eq!(refusal(c.put("e", "v", ignoring(true)).await), says(INVALID, "value is provided"));
    let leased = PutOptions::new().with_lease(7).with_ignore_lease();
    assert_eq!(refusal(c.put("e", "v", Some(leased)).await), says(INVALID, "lease is provided"));
    let leased = PutOptions::new().with_lease(7);
    let no_lease = says(NOT_FOUND, "requested lease not found");
    assert_eq!(refusal(c.put("e", "v", Some(leased)).await), no_lease);
    assert_eq!(refusal(c.lease_revoke(7).await), no_lease);
    c.lease_grant(600, Some(LeaseGrantOptions::new().with_id(8))).await.unwrap();
    let again = c.lease_grant(600, Some(LeaseGrantOptions::new().with_id(8))).await;
    assert_eq!(refusal(again), says(PRECONDITION, "lease already exists"));
    assert_eq!(refusal(c.lease_grant(9_000_000_001, None).await), says(OUT_OF_RANGE, "too large lease TTL"));

    let puts = |n: usize| (0..n).map(|i| TxnOp::put(format!("t{i}"), "v", None)).collect::<Vec<_>>();
    let many = says(INVALID, "too many operations in txn request");
    assert_eq!(refusal(c.txn(Txn::new().and_then(puts(129))).await), many);
    let nested = [puts(100), vec![TxnOp::txn(Txn::new().or_else(puts(28)))]].concat();
    assert_eq!(refusal(c.txn(Txn::new().and_then(nested)).await), many);
    let twice = [TxnOp::put("t", "1", None), TxnOp::put("t", "2", None)];
    let duplicate = says(INVALID, "duplicate key given in txn request");
    assert_eq!(refusal(c.txn(Txn::new().or_else(twice)).await), duplicate);
    let no_key = [Compare::version("", CompareOp::Equal, 0)];
    assert_eq!(refusal(c.txn(Txn::new().when(no_key)).await), says(INVALID, "key is not provided"));

    assert_eq!(refusal(c.put("large", vec![b'x'; 1600 << 10], None).await), says(INVALID, "request is too large"));
    let (code, text) = refusal(c.put("large", vec![b'x'; 3 << 20], None).await);
    assert_eq!((code, text.starts_with("grpc: received message larger than max (")), (EXHAUSTED, true), "{text}");
    assert_eq!(revision(&mut c).await, now, "what is refused changes nothing");
    c.txn(Txn::new().and_then(puts(128))).await.unwrap();
}

async fn headers(mut c: Client) {
    let base = put(&mut c, "h/a", "1").await;
    let first = c.get("h/a", None).await.unwrap();
    let header = first.header().unwrap();
    assert!(header.member_id() != 0 && header.cluster_id() != 0 && header.raft_term() > 0);
    let ops = [
        TxnOp::get("h/a", None),
        TxnOp::delete("h/none", None),
        TxnOp::put("h/b", "1", None),
        TxnOp::get("h/b", None),
        TxnOp::txn(Txn::new().and_then([TxnOp::delete("h/none", None)])),
    ];
    let answer = c.txn(Txn::new().and_then(ops)).await.unwrap();
    assert_eq!(answer.header().unwrap().revision(), base + 1);
    let revisions: Vec<i64> = answer
        .op_responses()
        .iter()
        .map(|r| match r {
            TxnOpResponse::Get(r) => r.header().unwrap().revision(),
            TxnOpResponse::Put(r) => r.header().unwrap().revision(),
            TxnOpResponse::Delete(r) => r.header().unwrap().revision(),
            TxnOpResponse::Txn(r) => {
                let TxnOpResponse::Delete(d) = &r.op_responses()[0] else { panic!() };
                assert_eq!(d.header().unwrap().revision(), base + 1);
                r.header().unwrap().revision()
            }
        })
        .collect();
    assert_eq!(revisions, [base, base, base + 1, base + 1, 0], "each as it stood then");
}

async fn many_watches_on_one_stream(mut c: Client) {
    let base = revision(&mut c).await;
    let mut w = c.watch("m/", Some(WatchOptions::new().with_prefix())).await.unwrap();
    let created = next(&mut w).await;
    assert_eq!((created.created(), created.watch_id(), created.header().unwrap().revision()), (true, 0, base));
    w.watch("m/a", Some(WatchOptions::new().with_watch_id(42))).await.unwrap();
    assert_eq!(next(&mut w).await.watch_id(), 42);
    w.watch("m/b", None).await.unwrap();
    assert_eq!(next(&mut w).await.watch_id(), 1, "ids that were not chosen count up");
    put(&mut c, "m/a", "1").await;
    let mut got: Vec<(i64, String)> = Vec::new();
    for _ in 0..2 {
        let answer = next(&mut w).await;
        assert_eq!(answer.header().unwrap().revision(), base + 1);
        got.push((answer.watch_id(), show(&answer)));
    }
    got.sort();
    assert_eq!(got, [(0, "+m/a=1".to_owned()), (42, "+m/a=1".to_owned())]);
    w.cancel(42).await.unwrap();
    let ended = next(&mut w).await;
    assert_eq!((ended.canceled(), ended.watch_id(), ended.compact_revision()), (true, 42, 0));
    w.cancel(4711).await.unwrap();
    put(&mut c, "m/a", "2").await;
    let answer = next(&mut w).await;
    assert_eq!((answer.watch_id(), show(&answer)), (0, "+m/a=2".to_owned()), "an unknown id is no matter");
    // A free id can be chosen again.
    w.watch("m/c", Some(WatchOptions::new().with_watch_id(42))).await.unwrap();
    let created = next(&mut w).await;
    assert_eq!((created.created(), created.canceled(), created.watch_id()), (true, false, 42));
}

async fn watches_that_are_refused(mut c: Client) {
    let mut w = c.watch("r", Some(WatchOptions::new().with_watch_id(5))).await.unwrap();
    assert_eq!(next(&mut w).await.watch_id(), 5);
    let mut refused = async |key: &'static str, options: WatchOptions| {
        w.watch(key, Some(options)).await.unwrap();
        let answer = next(&mut w).await;
        assert!(answer.created() && answer.canceled() && answer.watch_id() == -1);
        answer.cancel_reason().to_owned()
    };
    let taken = refused("r", WatchOptions::new().with_watch_id(5)).await;
    assert_eq!(taken, "mvcc: duplicate watch ID provided on the WatchStream");
    assert_eq!(refused("r", WatchOptions::new().with_range("q")).await, "mvcc: watcher range is empty");
    let negative = refused("r", WatchOptions::new().with_start_revision(-1)).await;
    assert_eq!(negative, "etcdserver: mvcc: required revision has been compacted");
    put(&mut c, "r", "1").await;
    assert_eq!(show(&next(&mut w).await), "+r=1", "the others go on");
}

async fn watches_on_compacted_history(mut c: Client) {
    let base = revision(&mut c).await;
    for i in 1..=4 {
        put(&mut c, "c", &i.to_string()).await;
    }
    c.compact(base + 3, None).await.unwrap();
    let mut w = c.watch("c", Some(WatchOptions::new().with_start_revision(base + 1))).await.unwrap();
    let created = next(&mut w).await;
    assert!(created.created() && !created.canceled());
    let ended = next(&mut w).await;
    assert_eq!((ended.canceled(), ended.watch_id(), ended.compact_revision()), (true, 0, base + 3));
    w.watch("c", Some(WatchOptions::new().with_start_revision(base + 3))).await.unwrap();
    assert!(next(&mut w).await.created());
    let mut seen = String::new();
    while !seen.contains("+c=4") {
        seen += &show(&next(&mut w).await);
        seen += ";";
    }
    assert_eq!(seen.replace(';', " ").trim(), "+c=3 +c=4");
}

async fn filters_and_previous_values(mut c: Client) {
    let base = put(&mut c, "f", "1").await;
    let prev = WatchOptions::new().with_prev_key().with_start_revision(base);
    let mut all = c.watch("f", Some(prev)).await.unwrap();
    let mut puts = c.watch("f", Some(WatchOptions::new().with_filters([WatchFilterType::NoDelete]))).await.unwrap();
    let mut deletes = c.watch("f", Some(WatchOptions::new().with_filters([WatchFilterType::NoPut]))).await.unwrap();
    for w in [&mut all, &mut puts, &mut deletes] {
        assert!(next(w).await.created());
    }
    put(&mut c, "f", "2").await;
    c.delete("f", None).await.unwrap();
    put(&mut c, "f", "3").await;
    let mut previous = Vec::new();
    while previous.len() < 4 {
        let answer = next(&mut all).await;
        previous.extend(answer.events().iter().map(|e| e.prev_kv().map(|kv| kv.value().to_vec())));
    }
    assert_eq!(previous, [None, Some(b"1".to_vec()), Some(b"2".to_vec()), None]);
    let first = next(&mut puts).await;
    assert!(first.events()[0].prev_kv().is_none(), "it was not asked for");
    assert_eq!((show(&first), show(&next(&mut puts).await)), ("+f=2".to_owned(), "+f=3".to_owned()));
    let deleted = next(&mut deletes).await;
    assert_eq!((show(&deleted), deleted.header().unwrap().revision()), ("-f".to_owned(), base + 2));
    let kv = deleted.events()[0].kv().unwrap();
    assert_eq!((kv.mod_revision(), kv.create_revision(), kv.version()), (base + 2, 0, 0));
}

async fn progress_of_a_whole_stream(mut c: Client) {
    let mut w = c.watch("p/a", None).await.unwrap();
    assert!(next(&mut w).await.created());
    w.watch("p/b", None).await.unwrap();
    assert!(next(&mut w).await.created());
    put(&mut c, "p/a", "1").await;
    put(&mut c, "p/b", "1").await;
    let last = put(&mut c, "p/other", "1").await;
    w.request_progress().await.unwrap();
    let mut events = 0;
    loop {
        let answer = next(&mut w).await;
        if answer.events().is_empty() {
            let header = answer.header().unwrap();
            assert_eq!((answer.watch_id(), header.revision()), (-1, last));
            assert_eq!(events, 2, "progress is said after what it covers");
            return;
        }
        events += answer.events().len();
    }
}

async fn progress_by_the_clock(mut c: Client) {
    let mut w = c.watch("k", Some(WatchOptions::new().with_progress_notify())).await.unwrap();
    assert!(next(&mut w).await.created());
    let other = put(&mut c, "elsewhere", "1").await;
    loop {
        let answer = next(&mut w).await;
        assert!(answer.events().is_empty() && !answer.canceled());
        assert_eq!(answer.watch_id(), 0);
        if answer.header().unwrap().revision() == other {
            return;
        }
    }
}

async fn large_answers_come_in_fragments(mut c: Client) {
    let ops = |byte: u8| (0..4).map(|i| TxnOp::put(format!("l{i}"), vec![byte; 300 << 10], None)).collect::<Vec<_>>();
    let options = WatchOptions::new().with_prefix().with_fragment().with_prev_key();
    let mut w = c.watch("l", Some(options)).await.unwrap();
    assert!(next(&mut w).await.created());
    c.txn(Txn::new().and_then(ops(b'1'))).await.unwrap();
    let whole = next(&mut w).await;
    assert_eq!(whole.events().len(), 4, "1.2 MB fit");
    c.txn(Txn::new().and_then(ops(b'2'))).await.unwrap();
    // With the previous values it is twice as much, more than a request may be long.
    let mut keys = Vec::new();
    let mut parts = 0;
    while keys.len() < 4 {
        let part = next(&mut w).await;
        parts += 1;
        keys.extend(part.events().iter().map(|e| String::from_utf8_lossy(e.kv().unwrap().key()).into_owned()));
    }
    assert_eq!((parts, keys), (2, vec!["l0".into(), "l1".into(), "l2".into(), "l3".into()]));
}

async fn a_slow_stream_loses_nothing(mut c: Client) {
    // More than the queues between the store and the connection hold, and more than HTTP/2 lets through unread.
    let n = 300;
    let base = revision(&mut c).await;
    // etcd packs what a slow stream has missed into large answers.
    let mut w = c.watch_client().max_decoding_message_size(64 << 20).watch("s", None).await.unwrap();
    assert!(next(&mut w).await.created());
    let value = "v".repeat(64 << 10);
    for _ in 0..n {
        put(&mut c, "s", &value).await;
    }
    let mut seen = base;
    while seen < base + n {
        for e in next(&mut w).await.events() {
            assert_eq!(e.kv().unwrap().mod_revision(), seen + 1);
            seen += 1;
        }
    }
}

async fn leases(mut c: Client) {
    let id = c.lease_grant(600, None).await.unwrap().id();
    c.put("lease", "v", Some(PutOptions::new().with_lease(id))).await.unwrap();
    let bare = c.lease_time_to_live(id, None).await.unwrap();
    assert_eq!((bare.granted_ttl(), bare.keys().len()), (600, 0));
    assert!(bare.ttl() <= 600 && bare.ttl() > 500);
    let keys = c.lease_time_to_live(id, Some(LeaseTimeToLiveOptions::new().with_keys())).await.unwrap();
    assert_eq!(keys.keys(), [b"lease".to_vec()]);
    let (mut keeper, mut answers) = c.lease_keep_alive(id).await.unwrap();
    for _ in 0..3 {
        keeper.keep_alive().await.unwrap();
        let answer = answers.message().await.unwrap().unwrap();
        assert_eq!((answer.id(), answer.ttl()), (id, 600));
    }
    assert_eq!(c.leases().await.unwrap().leases().len(), 1);
    c.lease_revoke(id).await.unwrap();
    keeper.keep_alive().await.unwrap();
    assert_eq!(answers.message().await.unwrap().unwrap().ttl(), 0, "a lease that is gone has no time left");
    assert_eq!(c.lease_time_to_live(id, None).await.unwrap().ttl(), -1);
    assert_eq!(c.get("lease", None).await.unwrap().count(), 0);
}

async fn maintenance(mut c: Client) {
    let rev = put(&mut c, "a", "1").await;
    let status = c.status().await.unwrap();
    let header = status.header().unwrap();
    assert_eq!((status.leader(), header.revision()), (header.member_id(), rev));
    assert!(status.version().starts_with("3.") && status.errors().is_empty() && !status.is_learner());
    assert!(status.db_size() > 0 && status.raft_used_db_size() > 0 && status.raft_term() > 0);
    let hash = c.hash_kv(rev).await.unwrap().hash();
    put(&mut c, "a", "2").await;
    assert_eq!(c.hash_kv(rev).await.unwrap().hash(), hash);
    assert_ne!(c.hash_kv(0).await.unwrap().hash(), hash);
    let whole = c.hash().await.unwrap().hash();
    put(&mut c, "b", "1").await;
    assert_ne!(c.hash().await.unwrap().hash(), whole);
    c.defragment().await.unwrap();
    let stranger = refusal(c.move_leader(4711).await);
    assert_eq!(stranger, (PRECONDITION, "etcdserver: bad leader transferee".to_owned()));
}

async fn the_quota(mut c: Client) {
    let value = vec![b'x'; 1 << 20];
    let mut n = 0;
    let refused = loop {
        assert!(n < 20, "the quota is not kept");
        match c.put(format!("q{n}"), value.clone(), None).await {
            Ok(_) => n += 1,
            Err(e) => break refusal::<()>(Err(e)),
        }
    };
    let no_space = (EXHAUSTED, "etcdserver: mvcc: database space exceeded".to_owned());
    assert_eq!(refused, no_space);
    assert!(n >= 2);
    assert_eq!(refusal(c.put("small", "v", None).await), no_space);
    assert_eq!(refusal(c.txn(Txn::new().and_then([TxnOp::put("small", "v", None)])).await), no_space);
    assert_eq!(refusal(c.lease_grant(600, None).await), no_space);
    let alarms = c.alarm(AlarmAction::Get, AlarmType::None, None).await.unwrap();
    assert_eq!(alarms.alarms().len(), 1);
    assert_eq!(alarms.alarms()[0].alarm(), AlarmType::Nospace);
    assert!(c.status().await.unwrap().errors()[0].contains("NOSPACE"));
    // Reading and making space go on.
    assert_eq!(c.get("q0", None).await.unwrap().count(), 1);
    c.delete("q", Some(DeleteOptions::new().with_prefix())).await.unwrap();
    c.txn(Txn::new().and_then([TxnOp::delete("q", None), TxnOp::get("q", None)])).await.unwrap();
    let now = revision(&mut c).await;
    c.compact(now, Some(CompactionOptions::new().with_physical())).await.unwrap();
    c.defragment().await.unwrap();
    assert_eq!(refusal(c.put("small", "v", None).await), no_space, "until the alarm is taken back");
    let mut member = AlarmOptions::new();
    member.with_member(alarms.alarms()[0].member_id());
    c.alarm(AlarmAction::Deactivate, AlarmType::Nospace, Some(member)).await.unwrap();
    c.put("small", "v", None).await.unwrap();
    assert!(c.alarm(AlarmAction::Get, AlarmType::None, None).await.unwrap().alarms().is_empty());
}

async fn one_member(mut c: Client) {
    let list = c.member_list().await.unwrap();
    let me = list.header().unwrap().member_id();
    assert_eq!(list.members().len(), 1);
    let member = &list.members()[0];
    assert_eq!((member.id(), member.is_learner(), member.client_urls().len()), (me, false, 1));
    assert_eq!(refusal(c.member_remove(4711).await), (NOT_FOUND, "etcdserver: member not found".to_owned()));
    let last = "etcdserver: re-configuration failed due to not enough started members";
    assert_eq!(refusal(c.member_remove(me).await), (UNKNOWN, last.to_owned()));
    let full = "etcdserver: can only promote a learner member";
    assert_eq!(refusal(c.member_promote(me).await), (PRECONDITION, full.to_owned()));
}
