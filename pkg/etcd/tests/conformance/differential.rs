//! The same random requests, one after another, to every store behind this server and to a real etcd: whole answers are
//! compared, and at the end what each watch has told.
//!
//! `ISOPOD_SEEDS=7,8,9` chooses the seeds, `ISOPOD_STEPS` their length.

use crate::raw::{Raw, Refusal};
use crate::referee;
use crate::target::{Settings, Target};
use isopod_store::Options;
use isopod_store::memory::MemoryStore;
use isopod_store::sqlite::SqliteStore;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Map, Value as Json, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

const KEYS: [&str; 10] = ["a", "aa", "ab", "b", "b/1", "b/2", "c", "d", "\u{7f}", "z"];
const ENDS: [&str; 8] = ["", "", "", "\0", "b", "b0", "d", "a"];
/// Transactions in transactions.
const DEPTH: u32 = 2;
/// What was written before a compaction or a cancellation has been told to the watches by then.
const SETTLE: Duration = Duration::from_millis(250);

struct Generator {
    rng: StdRng,
    /// As the last answer had it.
    revision: i64,
    compacted: i64,
}

impl Generator {
    fn chance(&mut self, percent: u32) -> bool {
        self.rng.random_range(0..100) < percent
    }

    fn one(&mut self, of: &[&'static str]) -> &'static str {
        of.choose(&mut self.rng).unwrap()
    }

    /// A number of an enumeration, and seldom the first that is none.
    fn one_of(&mut self, values: i32) -> i32 {
        let values = if self.chance(3) { values + 1 } else { values };
        self.rng.random_range(0..values)
    }

    fn key(&mut self) -> &'static str {
        if self.chance(1) { "" } else { self.one(&KEYS) }
    }

    fn value(&mut self) -> String {
        let n = self.rng.random_range(0..6);
        if n == 0 { String::new() } else { format!("v{}", self.rng.random_range(0..5)) }
    }

    /// Near the newest, now and then compacted, in the future or wrong.
    fn some_revision(&mut self) -> i64 {
        let back = self.rng.random_range(-2..12);
        self.revision - back
    }

    fn lease(&mut self) -> i64 {
        self.rng.random_range(0..5)
    }

    fn maybe(
        &mut self,
        fields: &mut Map<String, Json>,
        percent: u32,
        name: &str,
        value: impl FnOnce(&mut Self) -> Json,
    ) {
        if self.chance(percent) {
            let value = value(self);
            fields.insert(name.to_owned(), value);
        }
    }

    fn put(&mut self) -> Json {
        let mut r = Map::new();
        r.insert("key".into(), json!(self.key()));
        let ignores_value = self.chance(8);
        if !ignores_value || self.chance(10) {
            r.insert("value".into(), json!(self.value()));
        }
        r.insert("ignore_value".into(), json!(ignores_value));
        self.maybe(&mut r, 20, "lease", |g| json!(g.lease()));
        self.maybe(&mut r, 30, "prev_kv", |_| json!(true));
        self.maybe(&mut r, 8, "ignore_lease", |_| json!(true));
        Json::Object(r)
    }

    fn range(&mut self) -> Json {
        let mut r = Map::new();
        r.insert("key".into(), json!(self.key()));
        r.insert("range_end".into(), json!(self.one(&ENDS)));
        self.maybe(&mut r, 30, "limit", |g| json!(g.rng.random_range(-1..5)));
        self.maybe(&mut r, 25, "revision", |g| json!(g.some_revision()));
        self.maybe(&mut r, 40, "sort_order", |g| json!(g.one_of(3)));
        self.maybe(&mut r, 40, "sort_target", |g| json!(g.one_of(5)));
        self.maybe(&mut r, 20, "serializable", |_| json!(true));
        self.maybe(&mut r, 20, "keys_only", |_| json!(true));
        self.maybe(&mut r, 10, "count_only", |_| json!(true));
        for bound in ["min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision"] {
            self.maybe(&mut r, 8, bound, |g| json!(g.some_revision()));
        }
        Json::Object(r)
    }

    fn delete(&mut self) -> Json {
        let mut r = Map::new();
        r.insert("key".into(), json!(self.key()));
        self.maybe(&mut r, 40, "range_end", |g| json!(g.one(&ENDS)));
        self.maybe(&mut r, 40, "prev_kv", |_| json!(true));
        Json::Object(r)
    }

    fn compare(&mut self) -> Json {
        let mut r = Map::new();
        r.insert("key".into(), json!(self.key()));
        r.insert("result".into(), json!(self.rng.random_range(0..4)));
        let targets = [("version", 0), ("create_revision", 1), ("mod_revision", 2), ("value", 3), ("lease", 4)];
        let (name, target) = *targets.choose(&mut self.rng).unwrap();
        r.insert("target".into(), json!(target));
        let wanted = match name {
            "version" | "lease" => json!(self.rng.random_range(0..4)),
            "value" => json!(self.value()),
            _ => json!(if self.chance(40) { 0 } else { self.some_revision() }),
        };
        if !self.chance(5) {
            r.insert(name.into(), wanted);
        }
        self.maybe(&mut r, 20, "range_end", |g| json!(g.one(&ENDS)));
        Json::Object(r)
    }

    fn txn(&mut self, depth: u32) -> Json {
        let compares: Vec<Json> = (0..self.rng.random_range(0..3)).map(|_| self.compare()).collect();
        let branch = |g: &mut Self| -> Vec<Json> { (0..g.rng.random_range(0..4)).map(|_| g.op(depth)).collect() };
        let (success, failure) = (branch(self), branch(self));
        json!({ "compare": compares, "success": success, "failure": failure })
    }

    fn op(&mut self, depth: u32) -> Json {
        match self.rng.random_range(0..10) {
            0..4 => json!({ "request_put": self.put() }),
            4..7 => json!({ "request_range": self.range() }),
            // Nor does it compare what one nested transaction puts with what a later one deletes.
            7 | 8 if depth == DEPTH => {
                let mut delete = self.delete();
                // etcd takes this end for the smallest key when it looks for duplicates, and lets a transaction put and
                // delete one key; here it is refused.
                if delete.get("range_end") == Some(&json!("\0")) {
                    delete["range_end"] = json!("e");
                }
                json!({ "request_delete_range": delete })
            }
            _ if depth > 0 => json!({ "request_txn": self.txn(depth - 1) }),
            _ => json!({ "request_range": self.range() }),
        }
    }

    /// Method and request.
    fn request(&mut self) -> (&'static str, Json) {
        match self.rng.random_range(0..100) {
            0..30 => ("KV/Put", self.put()),
            30..52 => ("KV/Range", self.range()),
            52..62 => ("KV/DeleteRange", self.delete()),
            62..84 => ("KV/Txn", self.txn(DEPTH)),
            84..86 => ("KV/Compact", json!({ "revision": self.some_revision().max(1), "physical": true })),
            86..89 => ("Lease/LeaseGrant", json!({ "ID": self.rng.random_range(1..5), "TTL": 10_000 })),
            89 => ("Lease/LeaseRevoke", json!({ "ID": self.lease() })),
            90..92 => ("Lease/LeaseTimeToLive", json!({ "ID": self.lease(), "keys": self.chance(70) })),
            92 => ("Lease/LeaseLeases", json!({})),
            93..95 => {
                // At a revision at which it compacted etcd answers with a hash from then, of other entries.
                let at = if self.chance(50) { 0 } else { self.some_revision().max(self.compacted + 1) };
                ("Maintenance/HashKV", json!({ "revision": at }))
            }
            95..99 => ("Watch", self.watch()),
            _ => ("Watch", json!({ "cancel_request": { "watch_id": self.rng.random_range(0..12) } })),
        }
    }

    fn watch(&mut self) -> Json {
        let mut r = Map::new();
        r.insert("key".into(), json!(self.key()));
        self.maybe(&mut r, 60, "range_end", |g| json!(g.one(&ENDS)));
        self.maybe(&mut r, 50, "start_revision", |g| json!(g.some_revision()));
        self.maybe(&mut r, 50, "prev_kv", |_| json!(true));
        self.maybe(&mut r, 20, "fragment", |_| json!(true));
        self.maybe(&mut r, 20, "filters", |g| json!([g.rng.random_range(0..2)]));
        self.maybe(&mut r, 10, "watch_id", |g| json!(g.rng.random_range(0..12)));
        json!({ "create_request": r })
    }
}

/// One server and the stream of its watches.
struct Subject {
    name: &'static str,
    raw: Raw,
    watch: UnboundedSender<Json>,
    told: UnboundedReceiver<Result<Json, Refusal>>,
    /// Of each watch: the events, and what else was said of it.
    watches: BTreeMap<i64, Vec<Json>>,
}

impl Subject {
    async fn new(name: &'static str, url: &str) -> Self {
        let raw = Raw::connect(url).await;
        let (watch, requests) = unbounded_channel();
        let (out, told) = unbounded_channel();
        let stream = raw.clone();
        tokio::spawn(async move {
            let mut answers = match stream.open("Watch/Watch", requests).await {
                Ok(answers) => answers,
                Err(e) => return out.send(Err(e)).unwrap_or_default(),
            };
            while let Some(answer) = answers.next().await.transpose() {
                if out.send(answer).is_err() {
                    return;
                }
            }
        });
        Subject { name, raw, watch, told, watches: BTreeMap::new() }
    }

    async fn ask(&mut self, method: &str, request: &Json) -> Result<Json, Refusal> {
        if method != "Watch" {
            return Ok(comparable(method, self.raw.call(method, request).await?));
        }
        self.watch.send(request.clone()).unwrap();
        if request.get("create_request").is_none() {
            return Ok(Json::Null);
        }
        // The ids are given in the order of the answers.
        loop {
            let answer = self.told.recv().await.unwrap().unwrap();
            let created = answer["created"] == json!(true);
            let shown = self.note(answer);
            if created {
                return Ok(shown);
            }
        }
    }

    /// Batches differ and headers with them: events are noted one by one.
    fn note(&mut self, mut answer: Json) -> Json {
        let id = answer["watch_id"].as_i64().unwrap_or(0);
        let notes = self.watches.entry(id).or_default();
        match answer.get_mut("events") {
            Some(events) => notes.extend(events.as_array().unwrap().iter().cloned()),
            None => {
                answer.as_object_mut().unwrap().remove("header");
                notes.push(answer.clone());
            }
        }
        answer
    }

    async fn settle(&mut self, quiet: Duration) {
        while let Ok(Some(answer)) = tokio::time::timeout(quiet, self.told.recv()).await {
            self.note(answer.unwrap());
        }
    }
}

/// Without what goes by the clock or has no order.
fn comparable(method: &str, mut answer: Json) -> Json {
    if method == "Lease/LeaseTimeToLive" && answer["TTL"].as_i64() > Some(0) {
        answer["TTL"] = json!("some");
    }
    forget_leases(&mut answer);
    for list in ["keys", "leases"] {
        if let Some(list) = answer.get_mut(list).and_then(Json::as_array_mut) {
            list.sort_by_key(|v| v.to_string());
        }
    }
    answer
}

/// Of keys without values: etcd 3.7 leaves the lease out where keys alone are asked for, older ones and this server tell it.
fn forget_leases(answer: &mut Json) {
    match answer {
        Json::Object(fields) => {
            if fields.contains_key("mod_revision") && !fields.contains_key("value") {
                fields.remove("lease");
            }
            fields.values_mut().for_each(forget_leases);
        }
        Json::Array(list) => list.iter_mut().for_each(forget_leases),
        _ => {}
    }
}

async fn compare(seed: u64, steps: usize, subjects: &mut [Subject]) {
    let mut generator = Generator { rng: StdRng::seed_from_u64(seed), revision: 1, compacted: 0 };
    for step in 0..steps {
        let (method, request) = generator.request();
        if method == "KV/Compact" || request.get("cancel_request").is_some() {
            tokio::time::sleep(SETTLE).await;
        }
        let mut answers = Vec::new();
        for subject in subjects.iter_mut() {
            answers.push(subject.ask(method, &request).await);
        }
        for (subject, answer) in subjects.iter().zip(&answers).skip(1) {
            assert_eq!(
                *answer, answers[0],
                "seed {seed}, step {step}: {method} {request}: {} (left) and {} (right) differ",
                subject.name, subjects[0].name
            );
        }
        if let Some(revision) = answers[0].as_ref().ok().and_then(|a| a["header"]["revision"].as_i64()) {
            generator.revision = revision.max(generator.revision);
            if method == "KV/Compact" {
                generator.compacted = request["revision"].as_i64().unwrap_or_default();
            }
        }
    }
    for subject in subjects.iter_mut() {
        subject.settle(Duration::from_millis(700)).await;
    }
    let (first, others) = subjects.split_first().unwrap();
    for other in others {
        for (id, told) in &first.watches {
            let got = other.watches.get(id);
            assert_eq!(got, Some(told), "seed {seed}: watch {id}: {} and {} differ", other.name, first.name);
        }
        assert_eq!(other.watches.len(), first.watches.len());
    }
}

fn numbers(var: &str) -> Option<Vec<u64>> {
    std::env::var(var).ok().map(|text| text.split(',').map(|n| n.parse().unwrap()).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn random_requests_are_answered_alike() {
    let steps = numbers("ISOPOD_STEPS").map_or(700, |n| n[0] as usize);
    for seed in numbers("ISOPOD_SEEDS").unwrap_or_else(|| vec![1]) {
        let settings = Settings { since: (3, 7), ..Settings::default() };
        let etcd = referee::start(settings).await;
        let memory = Target::start(Arc::new(MemoryStore::default()), settings).await;
        let dir = tempfile::tempdir().unwrap();
        let sqlite = Arc::new(SqliteStore::open(dir.path(), Options::default()).unwrap());
        let sqlite = Target::start(sqlite, settings).await;
        let mut subjects = Vec::new();
        if let Some(etcd) = &etcd {
            subjects.push(Subject::new("etcd", &etcd.url).await);
        }
        subjects.push(Subject::new("memory", &memory.url).await);
        subjects.push(Subject::new("sqlite", &sqlite.url).await);
        compare(seed, steps, &mut subjects).await;
    }
}
