//! A store under encryption: sealed below, open above, and keys that change while it runs.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use isopod_encryption::{Encryption, Resources, Sealed, opened_by_nobody};
use isopod_store::memory::MemoryStore;
use isopod_store::{
    Compare, EventKind, KeyRange, Op, OpResponse, RangeRequest, Store, Txn, WatchMessage, WatchRequest,
};
use std::path::PathBuf;
use std::sync::Arc;

const A: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
const B: &str = "YWJjZGVmZ2hpamtsbW5vcGFiY2RlZmdoaWprbG1ub3A=";
const SECRET: &str = "/registry/secrets/default/a";
const POD: &str = "/registry/pods/default/a";

struct World {
    dir: tempfile::TempDir,
    below: Arc<dyn Store>,
    encryption: Arc<Encryption>,
    store: Sealed,
}

impl World {
    async fn new(providers: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        write(&dir, providers);
        let row = |r: &str| (r.to_owned(), String::new(), r.to_owned());
        let resources = Resources::new([row("secrets"), row("pods")]);
        let encryption = Encryption::load(path(&dir), resources, false, "apiserver-x").await.unwrap();
        let below: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let store = Sealed::over(below.clone(), encryption.clone());
        World { dir, below, encryption, store }
    }

    async fn reload(&self, providers: &str) {
        write(&self.dir, providers);
        assert!(self.encryption.look().await.unwrap());
        assert!(!self.encryption.look().await.unwrap());
    }
}

fn path(dir: &tempfile::TempDir) -> PathBuf {
    dir.path().join("encryption.yaml")
}

fn write(dir: &tempfile::TempDir, providers: &str) {
    let text = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  providers: [{providers}]\n"
    );
    std::fs::write(path(dir), text).unwrap();
}

fn secretbox(keys: &[(&str, &str)]) -> String {
    let keys: Vec<_> = keys.iter().map(|(n, s)| format!("{{name: {n}, secret: {s}}}")).collect();
    format!("{{secretbox: {{keys: [{}]}}}}", keys.join(", "))
}

async fn put(store: &dyn Store, key: &'static str, value: &'static str) {
    store.txn(Txn { success: vec![Op::put(key, value)], ..Txn::default() }).await.unwrap();
}

async fn get(store: &dyn Store, key: &str) -> Bytes {
    let read = store.range(RangeRequest::new(KeyRange::key(key.to_owned()))).await.unwrap();
    read.kvs.into_iter().next().unwrap().value
}

#[tokio::test]
async fn values_are_sealed_below_and_open_above() {
    let w = World::new(&secretbox(&[("a", A)])).await;
    put(&w.store, SECRET, "plain").await;
    put(&w.store, POD, "pod").await;
    assert!(get(&*w.below, SECRET).await.starts_with(b"k8s:enc:secretbox:v1:a:"));
    assert_eq!(get(&*w.below, POD).await, "pod");
    assert_eq!((get(&w.store, SECRET).await, get(&w.store, POD).await), ("plain".into(), "pod".into()));
    // In answers of transactions, nested ones too.
    let again = Op::Put {
        key: SECRET.into(),
        value: "new".into(),
        lease: 0,
        prev_kv: true,
        ignore_value: false,
        ignore_lease: false,
    };
    let nested = Op::Txn(Box::new(Txn { success: vec![again, Op::get(SECRET)], ..Txn::default() }));
    let compare = vec![Compare::mod_revision(SECRET, 2)];
    let answer = w.store.txn(Txn { compare, success: vec![nested], ..Txn::default() }).await.unwrap();
    let OpResponse::Txn(inner) = &answer.responses[0] else { panic!() };
    let (OpResponse::Put { prev: Some(prev) }, OpResponse::Range(read)) = (&inner.responses[0], &inner.responses[1])
    else {
        panic!()
    };
    assert_eq!((&prev.value[..], &read.kvs[0].value[..]), (&b"plain"[..], &b"new"[..]));
    let gone = Txn { success: vec![Op::Delete { range: KeyRange::key(SECRET), prev_kv: true }], ..Txn::default() };
    let answer = w.store.txn(gone).await.unwrap();
    let OpResponse::Delete { prev, .. } = &answer.responses[0] else { panic!() };
    assert_eq!(prev[0].value, "new");
}

#[tokio::test]
async fn a_watch_shows_what_was_written() {
    let w = World::new(&secretbox(&[("a", A)])).await;
    let mut watch = w.store.watch(WatchRequest { range: KeyRange::prefix("/registry/"), start: 0 }).await.unwrap();
    put(&w.store, SECRET, "one").await;
    put(&w.store, SECRET, "two").await;
    w.store.txn(Txn { success: vec![Op::delete(SECRET)], ..Txn::default() }).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 3 {
        if let WatchMessage::Events(_, events) = watch.receiver.recv().await.unwrap().unwrap() {
            seen.extend(events.iter().map(|e| (e.kind, e.kv.value.clone(), e.prev.as_ref().map(|p| p.value.clone()))));
        }
    }
    assert_eq!(seen[0], (EventKind::Put, "one".into(), None));
    assert_eq!(seen[1], (EventKind::Put, "two".into(), Some("one".into())));
    assert_eq!((seen[2].0, seen[2].2.clone()), (EventKind::Delete, Some("two".into())));
}

#[tokio::test]
async fn keys_change_while_it_runs() {
    let w = World::new("{identity: {}}").await;
    put(&w.store, SECRET, "plain").await;
    w.reload(&format!("{}, {{identity: {{}}}}", secretbox(&[("a", A)]))).await;
    assert!(w.store.is_stale(SECRET).await.unwrap());
    put(&w.store, SECRET, "plain").await;
    assert!(!w.store.is_stale(SECRET).await.unwrap());
    w.reload(&secretbox(&[("b", B), ("a", A)])).await;
    assert_eq!(get(&w.store, SECRET).await, "plain");
    assert!(w.store.is_stale(SECRET).await.unwrap());
    put(&w.store, SECRET, "plain").await;
    w.reload(&secretbox(&[("b", B)])).await;
    assert_eq!(get(&w.store, SECRET).await, "plain");
    // A file that has become bad changes nothing.
    std::fs::write(path(&w.dir), "kind: Nonsense").unwrap();
    assert!(w.encryption.look().await.is_err());
    assert_eq!(get(&w.store, SECRET).await, "plain");
}

#[tokio::test]
async fn what_nobody_can_open_is_an_error_and_never_served() {
    let w = World::new(&secretbox(&[("a", A)])).await;
    put(&w.store, SECRET, "plain").await;
    w.reload(&secretbox(&[("b", B)])).await;
    let error = w.store.range(RangeRequest::new(KeyRange::prefix("/registry/secrets/"))).await.unwrap_err();
    let text = isopod_base::errors::Chain(&error).to_string();
    assert_eq!(
        text,
        format!("unable to transform key {SECRET:?}: no matching key was found for the provided Secretbox transformer")
    );
    let raw = get(&*w.below, SECRET).await;
    assert!(
        opened_by_nobody(SECRET.as_bytes(), &raw).is_some() && opened_by_nobody(SECRET.as_bytes(), b"{}").is_none()
    );
    // Others are not held up.
    put(&w.store, POD, "pod").await;
    assert_eq!(get(&w.store, POD).await, "pod");
}
