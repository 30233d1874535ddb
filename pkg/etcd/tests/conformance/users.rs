//! Users where the script's one server over plain TCP is not enough: certificates, restarts, several servers.

use crate::raw::Raw;
use crate::referee;
use crate::target::{Settings, Target};
use etcd_client::{Certificate, Client, ConnectOptions, Identity, PutOptions, TlsOptions};
use isopod_etcd::{AuthConfig, Config, Listener, Service, serve};
use isopod_pki::{Leaf, ServerNames, ServerPki, Usage, tls};
use isopod_store::Options;
use isopod_store::memory::MemoryStore;
use isopod_store::sqlite::SqliteStore;
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

async fn login(raw: &Raw, name: &str, password: &str) -> Raw {
    let answer = raw.call("Auth/Authenticate", &json!({ "name": name, "password": password })).await.unwrap();
    raw.with_token(answer["token"].as_str().unwrap())
}

/// `root`, and `alice` who may read what begins with a.
async fn enable(raw: &Raw) {
    let requests = [
        ("Auth/UserAdd", json!({ "name": "root", "password": "pw" })),
        ("Auth/UserGrantRole", json!({ "user": "root", "role": "root" })),
        ("Auth/UserAdd", json!({ "name": "alice", "password": "pw" })),
        ("Auth/RoleAdd", json!({ "name": "a" })),
        ("Auth/RoleGrantPermission", json!({ "name": "a", "perm": { "key": "a", "range_end": "b" } })),
        ("Auth/UserGrantRole", json!({ "user": "alice", "role": "a" })),
        ("Auth/AuthEnable", json!({})),
    ];
    for (method, request) in requests {
        raw.call(method, &request).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn users_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..2 {
        let store = Arc::new(SqliteStore::open(dir.path(), Options::default()).unwrap());
        let target = Target::start(store.clone(), Settings::default()).await;
        let raw = Raw::connect(&target.url).await;
        if round == 0 {
            enable(&raw).await;
        }
        assert_eq!(raw.call("KV/Range", &json!({ "key": "a" })).await.unwrap_err().0, 3, "round {round}");
        let alice = login(&raw, "alice", "pw").await;
        alice.call("KV/Range", &json!({ "key": "a" })).await.unwrap();
        assert_eq!(alice.call("KV/Range", &json!({ "key": "b" })).await.unwrap_err().0, 7, "round {round}");
        target.stop().await;
        isopod_store::Store::close(&*store).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_server_sees_changes_soon() {
    let store = Arc::new(MemoryStore::default());
    let one = Target::start(store.clone(), Settings::default()).await;
    let two = Target::start(store, Settings::default()).await;
    let (one, two) = (Raw::connect(&one.url).await, Raw::connect(&two.url).await);
    two.call("KV/Range", &json!({ "key": "a" })).await.unwrap();
    enable(&one).await;
    let deadline = Instant::now() + Duration::from_secs(5);
    while two.call("KV/Range", &json!({ "key": "a" })).await.is_ok() {
        assert!(Instant::now() < deadline, "the other server still lets everybody in");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let alice = login(&two, "alice", "pw").await;
    alice.call("KV/Range", &json!({ "key": "a" })).await.unwrap();
    // A change here is made on what was changed there.
    let root = login(&one, "root", "pw").await;
    root.call("Auth/UserChangePassword", &json!({ "name": "alice", "password": "new" })).await.unwrap();
    let there = login(&two, "root", "pw").await;
    there.call("Auth/RoleAdd", &json!({ "name": "late" })).await.unwrap();
    assert_eq!(root.call("Auth/RoleList", &json!({})).await.unwrap()["roles"], json!(["a"]), "not yet");
    assert_eq!(alice.call("KV/Range", &json!({ "key": "a" })).await.unwrap_err().0, 16, "the password was changed");
    login(&two, "alice", "new").await;
}

/// A case on a server that asks for certificates of `pki`: who has the name of a user is that user.
async fn check_certificates(url: &str, pki: &ServerPki) {
    let connect = async |name: &str| {
        let leaf = Leaf {
            common_name: name,
            organizations: &[],
            dns_names: Vec::new(),
            ips: Vec::new(),
            usage: Usage::Client,
        };
        let identity = pki.client_ca.issue(&leaf).unwrap();
        let tls = TlsOptions::new()
            .ca_certificate(Certificate::from_pem(&pki.server_ca.cert_pem))
            .identity(Identity::from_pem(&identity.cert_pem, &identity.key_pem));
        Client::connect([url], Some(ConnectOptions::new().with_tls(tls))).await.unwrap()
    };
    let code = |e: etcd_client::Error| match e {
        etcd_client::Error::GRpcStatus(s) => (s.code() as i32, s.message().to_owned()),
        e => panic!("{e}"),
    };
    let (mut root, mut alice, mut stranger) = (connect("root").await, connect("alice").await, connect("eve").await);
    for name in ["root", "alice"] {
        let no_password = etcd_client::UserAddOptions::new().with_no_pwd();
        root.user_add(name, "", Some(no_password)).await.unwrap();
    }
    root.user_grant_role("root", "root").await.unwrap();
    root.role_add("a").await.unwrap();
    root.role_grant_permission("a", etcd_client::Permission::read("a")).await.unwrap();
    root.user_grant_role("alice", "a").await.unwrap();
    root.auth_enable().await.unwrap();
    root.put("a", "1", None).await.unwrap();
    assert_eq!(alice.get("a", None).await.unwrap().count(), 1);
    let denied = (7, "etcdserver: permission denied".to_owned());
    assert_eq!(code(alice.get("b", None).await.unwrap_err()), denied);
    assert_eq!(code(alice.put("a", "2", Some(PutOptions::new())).await.unwrap_err()), denied);
    assert_eq!(code(stranger.get("a", None).await.unwrap_err()), denied);
    assert_eq!(code(stranger.user_list().await.unwrap_err()).1, "etcdserver: user name not found");
    // There is no revision in a certificate that could be too old.
    root.role_add("b").await.unwrap();
    assert_eq!(alice.get("a", None).await.unwrap().count(), 1);
    root.auth_disable().await.unwrap();
    assert_eq!(stranger.get("a", None).await.unwrap().count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_name_users() {
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
    let auth = AuthConfig { certificates: true, ..AuthConfig::default() };
    let service = Service::new(Arc::new(MemoryStore::default()), Config { auth, ..Config::default() }).await.unwrap();
    let stop = CancellationToken::new();
    let served = tokio::spawn(serve(service, vec![Listener::Tcp(listener, Some(Arc::new(config)))], stop.clone()));
    Box::pin(check_certificates(&url, &pki)).await;
    stop.cancel();
    served.await.unwrap();
    if let Some(etcd) = referee::start_with_certificates(&pki, dir.path()).await {
        Box::pin(check_certificates(&etcd.url, &pki)).await;
    }
}
