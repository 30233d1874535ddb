//! [`EtcdStore`]: the suite, and what it adds: failover, watches that outlive connections, writes that are never made twice,
//! users, certificates, a slow reader, an export.

use crate::suite::{self, Subject};
use crate::target::{Settings, Target};
use crate::{BUFFER, options, referee};
use bytes::Bytes;
use isopod_etcd::remote::{EtcdOptions, EtcdStore, User};
use isopod_etcd::{Config, Listener, Service, serve};
use isopod_pki::{ServerNames, ServerPki, tls};
use isopod_store::memory::MemoryStore;
use isopod_store::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

pub fn reach(urls: &[&str]) -> EtcdOptions {
    EtcdOptions::new(urls.iter().map(|u| u.parse().unwrap()).collect())
}

pub async fn connect(url: &str) -> EtcdStore {
    EtcdStore::open(reach(&[url])).await.unwrap()
}

/// The store refuses older ones.
pub fn usable() -> Settings {
    Settings { since: (3, 6), ..Settings::default() }
}

fn memory() -> Arc<dyn Store> {
    Arc::new(MemoryStore::default())
}

async fn put(store: &dyn Store, key: &str, value: &str) -> Result<Revision> {
    let txn = Txn { success: vec![Op::put(key.to_owned(), value.to_owned())], ..Default::default() };
    Ok(store.txn(txn).await?.revision)
}

async fn get(store: &dyn Store, key: &str) -> Result<Option<Bytes>> {
    let read = store.range(RangeRequest::new(KeyRange::key(key.to_owned()))).await?;
    Ok(read.kvs.into_iter().next().map(|kv| kv.value))
}

async fn watch(store: &dyn Store, start: Revision) -> Result<Watch> {
    store.watch(WatchRequest { range: KeyRange::prefix("w/"), start }).await
}

/// The revision of the next events.
async fn next(watch: &mut Watch) -> Result<Revision> {
    loop {
        let message = tokio::time::timeout(Duration::from_secs(20), watch.receiver.recv()).await;
        match message.expect("nothing comes").expect("the watch ended without a word")? {
            WatchMessage::Events(revision, _) => return Ok(revision),
            WatchMessage::Progress(_) => {}
        }
    }
}

/// This server again and again at one address.
struct Place {
    address: String,
    running: Option<(CancellationToken, tokio::task::JoinHandle<()>)>,
}

impl Place {
    async fn start(store: &Arc<dyn Store>) -> Self {
        let mut place = Place { address: "127.0.0.1:0".into(), running: None };
        place.serve(store).await;
        place
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    async fn serve(&mut self, store: &Arc<dyn Store>) {
        let listener = TcpListener::bind(&self.address).await.unwrap();
        self.address = listener.local_addr().unwrap().to_string();
        let service = Service::new(store.clone(), Config::default()).await.unwrap();
        let stop = CancellationToken::new();
        let task = tokio::spawn(serve(service, vec![Listener::Tcp(listener, None)], stop.clone()));
        self.running = Some((stop, task));
    }

    async fn stop(&mut self) {
        let (stop, task) = self.running.take().unwrap();
        stop.cancel();
        task.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_conforms_as_a_remote_store() {
    for (name, case) in suite::cases() {
        let (options, clock) = options();
        println!("memory: {name}");
        let target = Target::start(Arc::new(MemoryStore::new(options)), Settings::default()).await;
        let store: Arc<dyn Store> = Arc::new(connect(&target.url).await);
        case(Subject { store, clock: Some(clock), buffer: BUFFER, remote: true }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_conforms_as_a_remote_store() {
    let Some(server) = referee::start(usable()).await else { return };
    for (name, case) in suite::cases() {
        println!("etcd: {name}");
        let store: Arc<dyn Store> = Arc::new(connect(&server.url).await);
        case(Subject { store, clock: None, buffer: BUFFER, remote: true }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_goes_on_where_it_was_when_the_server_is_back() {
    let inner = memory();
    let mut place = Place::start(&inner).await;
    let store = connect(&place.url()).await;
    let mut w = watch(&store, 0).await.unwrap();
    let first = put(&store, "w/a", "1").await.unwrap();
    assert_eq!(next(&mut w).await.unwrap(), first);
    place.stop().await;
    let missed = put(&*inner, "w/a", "2").await.unwrap();
    put(&*inner, "other", "2").await.unwrap();
    place.serve(&inner).await;
    let last = put(&*inner, "w/b", "3").await.unwrap();
    assert_eq!((next(&mut w).await.unwrap(), next(&mut w).await.unwrap()), (missed, last));
    // Progress is said on the new stream too.
    let other = put(&*inner, "other", "3").await.unwrap();
    (w.request_progress)();
    let progress = tokio::time::timeout(Duration::from_secs(20), w.receiver.recv()).await.unwrap().unwrap().unwrap();
    assert!(matches!(progress, WatchMessage::Progress(rev) if rev == other), "{progress:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_ends_when_its_history_is_gone() {
    let inner = memory();
    let mut place = Place::start(&inner).await;
    let store = connect(&place.url()).await;
    let mut w = watch(&store, 0).await.unwrap();
    assert_eq!(put(&store, "w/a", "1").await.unwrap(), next(&mut w).await.unwrap());
    place.stop().await;
    put(&*inner, "w/a", "2").await.unwrap();
    let last = put(&*inner, "w/a", "3").await.unwrap();
    inner.compact(last).await.unwrap();
    place.serve(&inner).await;
    let error = next(&mut w).await.unwrap_err();
    assert!(matches!(error, StoreError::Compacted { compacted, .. } if compacted == last), "{error}");
    // What was restored from an older backup has not seen what was watched.
    let mut w = watch(&store, 0).await.unwrap();
    place.stop().await;
    place.serve(&memory()).await;
    let error = next(&mut w).await.unwrap_err();
    assert!(matches!(error, StoreError::FutureRevision { newest: 1, .. } | StoreError::Compacted { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_endpoint_serves_when_one_is_gone() {
    let inner = memory();
    let (mut a, mut b) = (Place::start(&inner).await, Place::start(&inner).await);
    let store = EtcdStore::open(reach(&[&a.url(), &b.url()])).await.unwrap();
    let mut w = watch(&store, 0).await.unwrap();
    for round in 0..2 {
        let place = if round == 0 { &mut a } else { &mut b };
        place.stop().await;
        let started = Instant::now();
        // Nothing has been sent to anyone: a write may wait for the other endpoint.
        let revision = put(&store, "w/a", "x").await;
        let revision = match revision {
            // The connection broke under it.
            Err(StoreError::Unavailable { .. } | StoreError::NotDone { .. }) => put(&store, "w/a", "x").await.unwrap(),
            other => other.unwrap(),
        };
        assert_eq!(next(&mut w).await.unwrap(), revision);
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        if round == 0 {
            a.serve(&inner).await;
        }
    }
}

/// Passes bytes on to an address. `deaf`: the answers are dropped and, at the first one, the connection.
async fn relay(to: String, deaf: Arc<AtomicBool>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(&to).await.unwrap();
            let deaf = deaf.clone();
            tokio::spawn(async move {
                let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
                    (client.into_split(), server.into_split());
                tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
                let mut buffer = vec![0; 64 << 10];
                while let Ok(n @ 1..) = from_server.read(&mut buffer).await {
                    // Frames of the protocol itself are short; an answer is not.
                    if deaf.load(Ordering::SeqCst) && n > 40 {
                        return;
                    }
                    if to_client.write_all(&buffer[..n]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_answer_is_lost_is_not_made_again() {
    let inner = memory();
    let place = Place::start(&inner).await;
    let deaf = Arc::new(AtomicBool::new(false));
    let store = connect(&relay(place.address.clone(), deaf.clone()).await).await;
    put(&store, "a", "1").await.unwrap();
    deaf.store(true, Ordering::SeqCst);
    let error = put(&store, "a", "2").await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
    deaf.store(false, Ordering::SeqCst);
    let read = store.range(RangeRequest::new(KeyRange::key("a"))).await.unwrap();
    assert_eq!((&read.kvs[0].value[..], read.kvs[0].version), (&b"2"[..], 2), "made once");
    // A read is asked again, on a new connection.
    deaf.store(true, Ordering::SeqCst);
    let hearing = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(300)).await;
        deaf.store(false, Ordering::SeqCst);
    });
    assert_eq!(get(&store, "a").await.unwrap().as_deref(), Some(&b"2"[..]));
    hearing.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_answer_is_not_waited_for_without_end() {
    // One that accepts and is silent, as a stopped process is.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let mut options = reach(&[&url]);
    options.request_timeout = Duration::from_secs(1);
    let started = Instant::now();
    let error = EtcdStore::open(options).await.err().unwrap();
    assert!(matches!(&error, StoreError::Unavailable { .. }), "{error}");
    // And one that is not there.
    drop(silent);
    let mut options = reach(&[&url]);
    options.request_timeout = Duration::from_secs(1);
    let error = EtcdStore::open(options).await.err().unwrap();
    let text = isopod_base::errors::Chain(&error).to_string();
    assert!(matches!(&error, StoreError::Unavailable { .. }) && text.contains(&url), "{text}");
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_misses_nothing_and_holds_nobody_up() {
    let inner = memory();
    let place = Place::start(&inner).await;
    let store = connect(&place.url()).await;
    let mut slow = watch(&store, 0).await.unwrap();
    let value = "x".repeat(10_000);
    let mut written = Vec::new();
    for _ in 0..1000 {
        written.push(put(&*inner, "w/a", &value).await.unwrap());
    }
    // Longer than a stream is kept for one who does not read.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let mut quick = watch(&store, written[0]).await.unwrap();
    for revision in &written {
        assert_eq!(next(&mut quick).await.unwrap(), *revision);
    }
    for revision in &written {
        assert_eq!(next(&mut slow).await.unwrap(), *revision);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn users_log_in_and_log_in_again() {
    let Some(server) = referee::start(usable()).await else { return };
    let mut admin = etcd_client::Client::connect([&server.url], None).await.unwrap();
    admin.user_add("root", "secret", None).await.unwrap();
    admin.user_grant_role("root", "root").await.unwrap();
    admin.auth_enable().await.unwrap();
    let user = |password: &str| {
        let mut options = reach(&[&server.url]);
        options.user = Some(User { name: "root".into(), password: password.into() });
        options
    };
    let error = EtcdStore::open(user("wrong-one")).await.err().unwrap();
    let text = isopod_base::errors::Chain(&error).to_string();
    assert!(
        matches!(error, StoreError::Backend { .. }) && text.contains("\"root\"") && !text.contains("wrong-one"),
        "{text}"
    );
    let store = EtcdStore::open(user("secret")).await.unwrap();
    let first = put(&store, "w/a", "1").await.unwrap();
    // A change of the users makes the tokens invalid that were given before.
    let login = etcd_client::ConnectOptions::new().with_user("root", "secret");
    let mut admin = etcd_client::Client::connect([&server.url], Some(login)).await.unwrap();
    admin.user_add("somebody", "else", None).await.unwrap();
    let mut w = watch(&store, first).await.unwrap();
    assert_eq!(next(&mut w).await.unwrap(), first);
    admin.user_add("another", "one", None).await.unwrap();
    let second = put(&store, "w/a", "2").await.unwrap();
    assert_eq!(next(&mut w).await.unwrap(), second);
    // Without a user etcd does not let anyone read.
    assert!(EtcdStore::open(reach(&[&server.url])).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_shown_and_checked() {
    let dir = tempfile::tempdir().unwrap();
    let ips = vec!["127.0.0.1".parse().unwrap()];
    let names = ServerNames { dns: vec!["localhost".into()], ips, cluster_domain: "x".into() };
    let pki = ServerPki::load_or_create(dir.path(), &names).unwrap();
    let config = tls::listener("test", &pki.serving, Some(&pki.client_ca.cert_pem)).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let service = Service::new(memory(), Config::default()).await.unwrap();
    let stop = CancellationToken::new();
    let served = tokio::spawn(serve(service, vec![Listener::Tcp(listener, Some(Arc::new(config)))], stop.clone()));
    let open = async |identity, ca: &str| {
        let mut options = reach(&[&url]);
        options.request_timeout = Duration::from_secs(2);
        options.tls = Some(Arc::new(tls::client("test", identity, ca, &["h2"]).unwrap()));
        EtcdStore::open(options).await
    };
    let store = open(Some(&pki.admin), &pki.server_ca.cert_pem).await.unwrap();
    put(&store, "a", "1").await.unwrap();
    assert!(open(None, &pki.server_ca.cert_pem).await.is_err(), "no certificate");
    assert!(open(Some(&pki.admin), &pki.client_ca.cert_pem).await.is_err(), "another CA");
    assert!(EtcdStore::open(reach(&[&url])).await.is_err(), "no CA");
    drop(store);
    stop.cancel();
    served.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_is_what_there_is_at_one_revision() {
    let inner = memory();
    let place = Place::start(&inner).await;
    let store = connect(&place.url()).await;
    for i in 0..2500 {
        put(&*inner, &format!("e/{:04}", i % 1250), &i.to_string()).await.unwrap();
    }
    let txn = Txn { success: vec![Op::put("e/z", "1"), Op::put("e/y", "1")], ..Default::default() };
    let now = inner.txn(txn).await.unwrap().revision;
    let mut export = store.export().await.unwrap();
    put(&*inner, "e/later", "1").await.unwrap();
    assert_eq!((export.revision, export.compacted), (now, now));
    let mut entries = Vec::new();
    while let Some(part) = export.entries.recv().await {
        entries.extend(part.unwrap());
    }
    let places: Vec<_> = entries.iter().map(|e| (e.revision, e.sub)).collect();
    assert!(places.is_sorted());
    assert_eq!((entries.len(), places.last()), (1252, Some(&(now, 1))));
    assert_eq!(entries[0].kv.as_ref().map(|kv| (&kv.value[..], kv.version)), Some((&b"1250"[..], 2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_compacted_is_known() {
    let inner = memory();
    let place = Place::start(&inner).await;
    for i in 0..5 {
        put(&*inner, "a", &i.to_string()).await.unwrap();
    }
    inner.compact(4).await.unwrap();
    let store = connect(&place.url()).await;
    assert_eq!(store.revisions().await.unwrap(), (6, 4));
    // Somebody else compacts.
    inner.compact(5).await.unwrap();
    let mut old = RangeRequest::new(KeyRange::key("a"));
    old.revision = 4;
    let error = store.range(old).await.unwrap_err();
    assert!(matches!(error, StoreError::Compacted { requested: 4, compacted: 5 }), "{error:?}");
    let error = watch(&store, 3).await.err().unwrap();
    assert!(matches!(error, StoreError::Compacted { requested: 3, compacted: 5 }), "{error:?}");
    store.close().await.unwrap();
    assert!(matches!(store.revisions().await, Err(StoreError::Closed)));
}

/// Cuts every connection through a relay again and again, until the token says that it is enough.
pub async fn shaky(to: String) -> (String, CancellationToken) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (calm, cut) = (CancellationToken::new(), tokio::sync::watch::Sender::new(0));
    let (stop, cutter) = (calm.clone(), cut.clone());
    tokio::spawn(async move {
        let mut pauses = [30, 150, 70, 250, 10].iter().cycle();
        while !stop.is_cancelled() {
            tokio::time::sleep(Duration::from_millis(*pauses.next().unwrap())).await;
            cutter.send_modify(|n| *n += 1);
        }
    });
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let Ok(mut server) = TcpStream::connect(&to).await else { continue };
            let mut cut = cut.subscribe();
            tokio::spawn(async move {
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                    _ = cut.changed() => {}
                }
            });
        }
    });
    (url, calm)
}

/// Adds one by compare-and-swap; an unknown outcome is looked at: the value says who has added.
async fn add_one(store: &EtcdStore, who: &str) {
    loop {
        let Ok(read) = store.range(RangeRequest::new(KeyRange::key("w/counter"))).await else { continue };
        let (revision, value) =
            read.kvs.first().map_or((0, ""), |kv| (kv.mod_revision, std::str::from_utf8(&kv.value).unwrap()));
        if value.split(' ').any(|w| w == who) {
            return;
        }
        let compare = vec![Compare::mod_revision("w/counter", revision)];
        let success = vec![Op::put("w/counter", format!("{value} {who}")), Op::put(format!("w/{who}"), "1")];
        let done = store.txn(Txn { compare, success, ..Txn::default() }).await;
        if done.is_ok_and(|done| done.succeeded) {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_done_twice_on_a_network_that_breaks_all_the_time() {
    let inner = memory();
    let place = Place::start(&inner).await;
    let (url, calm) = shaky(place.address.clone()).await;
    let store = loop {
        if let Ok(store) = EtcdStore::open(reach(&[&url])).await {
            break Arc::new(store);
        }
    };
    let mut watches = Vec::new();
    while watches.len() < 3 {
        watches.extend(watch(&*store, 2).await.ok());
    }
    let writers = (0..4).map(|w| {
        let store = store.clone();
        tokio::spawn(async move {
            for n in 0..40 {
                add_one(&store, &format!("{w}.{n}")).await;
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    calm.cancel();
    let counter = inner.range(RangeRequest::new(KeyRange::key("w/counter"))).await.unwrap();
    assert_eq!(counter.kvs[0].version, 160, "each was made once");
    let last = counter.kvs[0].mod_revision;
    for mut w in watches {
        let mut seen = 1;
        while seen < last {
            (w.request_progress)();
            match tokio::time::timeout(Duration::from_secs(20), w.receiver.recv()).await.unwrap().unwrap().unwrap() {
                WatchMessage::Events(revision, events) => {
                    assert_eq!((revision, events.len()), (seen + 1, 2), "every transaction, whole, once, in order");
                    seen = revision;
                }
                WatchMessage::Progress(revision) => assert!(revision <= seen, "progress {revision} at {seen}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_says_progress_after_the_history_that_a_watch_reads() {
    let Some(server) = referee::start(usable()).await else { return };
    let store = connect(&server.url).await;
    let first = put(&store, "w/a", "0").await.unwrap();
    for n in 0..1500 {
        put(&store, "w/a", &n.to_string()).await.unwrap();
    }
    let last = put(&store, "other", "1").await.unwrap();
    let mut w = watch(&store, first).await.unwrap();
    (w.request_progress)();
    let mut seen = first - 1;
    loop {
        match tokio::time::timeout(Duration::from_secs(20), w.receiver.recv()).await.unwrap().unwrap().unwrap() {
            WatchMessage::Events(revision, _) => {
                assert_eq!(revision, seen + 1);
                seen = revision;
            }
            WatchMessage::Progress(revision) => {
                assert_eq!((revision, seen), (last, last - 1), "wished for once, and said when all was read");
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_the_newest_revision_at_the_same_time_shares_a_read() {
    let inner = memory();
    let place = Place::start(&inner).await;
    let store = Arc::new(connect(&place.url()).await);
    let reads = async || {
        let mut stream = TcpStream::connect(&place.address).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let line =
            text.lines().find(|l| l.starts_with("grpc_server_started_total") && l.contains("\"Range\"")).unwrap();
        line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()
    };
    let before = reads().await;
    let asked = (0..500).map(|_| {
        let (store, inner) = (store.clone(), inner.clone());
        tokio::spawn(async move {
            let acknowledged = put(&*inner, "a", "1").await.unwrap();
            assert!(store.revisions().await.unwrap().0 >= acknowledged, "a read that began before says nothing");
        })
    });
    for task in asked.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    let made = reads().await - before;
    assert!((1..400).contains(&made), "{made} reads for 500 callers");
}
