//! What is decided here and not by etcd: TLS, unix sockets, the pages, reflection, what is not served; and that a history has
//! the hash that a real etcd gives it.

use crate::target::{Settings, Target};
use crate::{options, referee};
use etcd_client::*;
use isopod_etcd::{Config, Listener, Service, serve};
use isopod_pki::{ServerNames, ServerPki, tls};
use isopod_store::memory::MemoryStore;
use isopod_store::sqlite::SqliteStore;
use isopod_store::{Alarm, Options, Store};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

fn memory() -> Arc<dyn Store> {
    Arc::new(MemoryStore::default())
}

fn refusal<T>(answer: Result<T, Error>) -> (i32, String) {
    match answer {
        Err(Error::GRpcStatus(s)) => (s.code() as i32, s.message().to_owned()),
        Err(e) => panic!("{e}"),
        Ok(_) => panic!("it was accepted"),
    }
}

const PRECONDITION: i32 = 9;
const UNIMPLEMENTED: i32 = 12;

/// The body of a page.
async fn page(mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin, path: &str) -> (String, String) {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_tell_how_it_is() {
    let store = memory();
    let target = Target::start(store, Settings { quota: Some(1), ..Settings::default() }).await;
    let address = target.url.strip_prefix("http://").unwrap().to_owned();
    let get = async |path: &str| page(TcpStream::connect(&address).await.unwrap(), path).await;
    let ok = "HTTP/1.1 200 OK".to_owned();
    assert_eq!(get("/health").await, (ok.clone(), r#"{"health":"true","reason":""}"#.to_owned()));
    assert_eq!(get("/readyz").await, (ok.clone(), "ok\n".to_owned()));
    assert!(get("/version").await.1.contains(r#""etcdserver":"3."#));
    let mut c = Client::connect([&target.url], None).await.unwrap();
    c.get("a", None).await.unwrap();
    let metrics = get("/metrics").await.1;
    assert!(
        metrics.contains(r#"grpc_server_started_total{grpc_service="etcdserverpb.KV",grpc_method="Range"} 1"#),
        "{metrics}"
    );
    assert!(metrics.contains("\netcd_debugging_mvcc_current_revision 1\n"), "{metrics}");
    // One byte is soon full.
    c.put("a", "1", None).await.unwrap_err();
    let (head, body) = get("/health").await;
    assert_eq!((&head[9..12], body.contains("NOSPACE")), ("503", true), "{head} {body}");
    assert_eq!(get("/livez").await.0, ok, "it lives");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_certified_clients_come_in() {
    let dir = tempfile::tempdir().unwrap();
    let names = ServerNames {
        dns: vec!["localhost".into()],
        ips: vec!["127.0.0.1".parse().unwrap()],
        cluster_domain: "x".into(),
    };
    let pki = ServerPki::load_or_create(dir.path(), &names).unwrap();
    let config = tls::listener("test", &pki.serving, Some(&pki.client_ca.cert_pem)).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let service = Service::new(memory(), Config::default()).await.unwrap();
    let stop = CancellationToken::new();
    let served = tokio::spawn(serve(service, vec![Listener::Tcp(listener, Some(Arc::new(config)))], stop.clone()));
    let connect = async |identity: Option<&isopod_pki::Identity>| {
        let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(&pki.server_ca.cert_pem));
        if let Some(i) = identity {
            tls = tls.identity(Identity::from_pem(&i.cert_pem, &i.key_pem));
        }
        Client::connect([&url], Some(ConnectOptions::new().with_tls(tls))).await?.put("a", "1", None).await
    };
    connect(Some(&pki.admin)).await.unwrap();
    connect(None).await.unwrap_err();
    // A certificate of another CA of the same name.
    let other = tempfile::tempdir().unwrap();
    let stranger = ServerPki::load_or_create(other.path(), &names).unwrap();
    connect(Some(&stranger.admin)).await.unwrap_err();
    let plain = Client::connect([url.replace("https", "http")], None).await.unwrap().get("a", None).await;
    plain.unwrap_err();
    stop.cancel();
    served.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unix_socket_serves_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("etcd.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let service = Service::new(memory(), Config::default()).await.unwrap();
    let stop = CancellationToken::new();
    let served = tokio::spawn(serve(service, vec![Listener::Unix(listener, None)], stop.clone()));
    let (head, _) = page(UnixStream::connect(&path).await.unwrap(), "/health").await;
    assert_eq!(head, "HTTP/1.1 200 OK");
    let endpoint = tonic::transport::Endpoint::from_shared(format!("unix://{}", path.display())).unwrap();
    let mut health = tonic_health::pb::health_client::HealthClient::new(endpoint.connect().await.unwrap());
    assert_eq!(health.check(tonic_health::pb::HealthCheckRequest::default()).await.unwrap().into_inner().status, 1);
    stop.cancel();
    served.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_reflection_are_served() {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};
    let target = Target::start(memory(), Settings::default()).await;
    let channel = tonic::transport::Endpoint::new(target.url.clone()).unwrap().connect().await.unwrap();
    let health = HealthClient::new(channel.clone()).check(HealthCheckRequest::default()).await.unwrap();
    assert_eq!(health.into_inner().status, 1, "serving");
    let mut client = ServerReflectionClient::new(channel);
    let mut ask = async |request: MessageRequest| -> ServerReflectionResponse {
        let request = ServerReflectionRequest { host: String::new(), message_request: Some(request) };
        let stream = futures::stream::iter([request]);
        client.server_reflection_info(stream).await.unwrap().into_inner().message().await.unwrap().unwrap()
    };
    let list = ask(MessageRequest::ListServices(String::new())).await;
    let Some(MessageResponse::ListServicesResponse(list)) = list.message_response else { panic!() };
    let names: Vec<&str> = list.service.iter().map(|s| s.name.as_str()).collect();
    for name in ["KV", "Watch", "Lease", "Cluster", "Maintenance", "Auth"] {
        assert!(names.contains(&format!("etcdserverpb.{name}").as_str()), "{names:?}");
    }
    let file = ask(MessageRequest::FileContainingSymbol("etcdserverpb.KV".into())).await;
    assert!(
        matches!(file.message_response, Some(MessageResponse::FileDescriptorResponse(f)) if !f.file_descriptor_proto.is_empty())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_served_says_so() {
    let target = Target::start(memory(), Settings::default()).await;
    let mut c = Client::connect([&target.url], None).await.unwrap();
    let (code, text) = refusal(c.member_add(["http://127.0.0.1:1"], None).await);
    assert_eq!((code, text.contains("one member")), (PRECONDITION, true), "{text}");
    // What only shows is kept.
    let me = c.member_list().await.unwrap().members()[0].id();
    assert_eq!(c.member_list().await.unwrap().members()[0].peer_urls(), ["http://localhost:2380"]);
    c.member_update(me, ["http://10.0.0.1:2380".to_owned()]).await.unwrap();
    assert_eq!(c.member_list().await.unwrap().members()[0].peer_urls(), ["http://10.0.0.1:2380"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alarm_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..2 {
        let store = Arc::new(SqliteStore::open(dir.path(), Options::default()).unwrap());
        let target = Target::start(store.clone(), Settings::default()).await;
        let mut c = Client::connect([&target.url], None).await.unwrap();
        if round == 0 {
            c.alarm(AlarmAction::Activate, AlarmType::Nospace, None).await.unwrap();
        }
        assert_eq!(store.alarms().await.unwrap(), [Alarm::NoSpace]);
        assert_eq!(refusal(c.put("a", "1", None).await).0, 8, "round {round}");
        target.stop().await;
        store.close().await.unwrap();
    }
}

/// The same requests, one after another, in a fresh store.
async fn history(url: &str) -> (u32, i64) {
    let mut c = Client::connect([url], None).await.unwrap();
    let lease = c.lease_grant(6000, Some(LeaseGrantOptions::new().with_id(77))).await.unwrap().id();
    for i in 0..40 {
        c.put(format!("k{}", i % 7), vec![i; usize::from(i) * 9], None).await.unwrap();
    }
    c.put("leased", "v", Some(PutOptions::new().with_lease(lease))).await.unwrap();
    c.delete("k3", None).await.unwrap();
    let ops = [
        TxnOp::put("a", "1", None),
        TxnOp::delete("k", Some(DeleteOptions::new().with_prefix())),
        TxnOp::put("z", "", None),
    ];
    c.txn(Txn::new().and_then(ops)).await.unwrap();
    c.put("k3", "again", None).await.unwrap();
    let hash = c.hash_kv(0).await.unwrap();
    (hash.hash(), hash.header().unwrap().revision())
}

/// Compacted in the middle, where some keys are deleted, some rewritten later.
async fn compacted(url: &str, at: i64) -> u32 {
    let mut c = Client::connect([url], None).await.unwrap();
    c.compact(at, Some(CompactionOptions::new().with_physical())).await.unwrap();
    c.put("after", "1", None).await.unwrap();
    c.hash_kv(0).await.unwrap().hash()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_has_etcds_hash() {
    let memory = Target::start(memory(), Settings::default()).await;
    let dir = tempfile::tempdir().unwrap();
    let sqlite = Arc::new(SqliteStore::open(dir.path(), options().0).unwrap());
    let sqlite = Target::start(sqlite, Settings::default()).await;
    let (hash, revision) = history(&memory.url).await;
    assert_eq!(history(&sqlite.url).await, (hash, revision));
    let Some(etcd) = referee::start(Settings::default()).await else { return };
    assert_eq!(history(&etcd.url).await, (hash, revision));
    // At a put, at a deletion, at a transaction: what is kept differs.
    for at in [30, revision - 2, revision - 1] {
        let want = compacted(&etcd.url, at).await;
        assert_eq!(compacted(&memory.url, at).await, want, "memory, compacted at {at}");
        assert_eq!(compacted(&sqlite.url, at).await, want, "sqlite, compacted at {at}");
    }
}

/// All keys of all parts, the last part, and how many came.
async fn parts(c: &Client, options: GetOptions) -> Result<(Vec<Vec<u8>>, GetResponse, usize), Error> {
    let mut stream = c.kv_client().get_stream("s/", Some(options.with_prefix())).await?;
    let (mut keys, mut last, mut n) = (Vec::new(), None::<GetResponse>, 0);
    while let Some(part) = stream.message().await? {
        assert!(last.is_none_or(|l| l.header().is_none()), "the header is in the last part");
        keys.extend(part.kvs().iter().map(|kv| kv.key().to_vec()));
        last = Some(part);
        n += 1;
    }
    Ok((keys, last.expect("there is one part at least"), n))
}

async fn check_parts(url: &str) {
    let mut c = Client::connect([url], None).await.unwrap();
    for i in 0..300 {
        c.put(format!("s/{i:03}"), vec![b'v'; 10_000], None).await.unwrap();
    }
    let last = c.put("t", "1", None).await.unwrap().header().unwrap().revision();
    let want: Vec<Vec<u8>> = (0..300).map(|i| format!("s/{i:03}").into_bytes()).collect();
    let (keys, end, n) = parts(&c, GetOptions::new()).await.unwrap();
    assert_eq!((keys, end.count(), end.more()), (want.clone(), 300, false));
    assert_eq!(end.header().unwrap().revision(), last);
    assert!(n > 2, "3 MB in {n} parts");
    let (keys, end, _) = parts(&c, GetOptions::new().with_limit(150)).await.unwrap();
    assert_eq!((&keys[..], end.count(), end.more()), (&want[..150], 300, true));
    let (keys, end, n) = parts(&c, GetOptions::new().with_count_only()).await.unwrap();
    assert_eq!((keys.len(), end.count(), n), (0, 300, 1));
    let descends = parts(&c, GetOptions::new().with_sort(SortTarget::Key, SortOrder::Descend)).await;
    assert_eq!(refusal(descends).0, UNIMPLEMENTED);
    // One revision, whatever is written meanwhile.
    let mut stream = c.kv_client().get_stream("s/", Some(GetOptions::new().with_prefix())).await.unwrap();
    let mut found = stream.message().await.unwrap().unwrap().kvs().len();
    c.delete("s/", Some(DeleteOptions::new().with_prefix())).await.unwrap();
    while let Some(part) = stream.message().await.unwrap() {
        found += part.kvs().len();
    }
    assert_eq!(found, 300);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_comes_in_parts() {
    check_parts(&Target::start(memory(), Settings::default()).await.url).await;
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(SqliteStore::open(dir.path(), Options::default()).unwrap());
    check_parts(&Target::start(store, Settings::default()).await.url).await;
    if let Some(etcd) = referee::start(Settings { since: (3, 7), ..Settings::default() }).await {
        check_parts(&etcd.url).await;
    }
}
