//! Events about objects (`v1` Event), recorded without ever holding up who records.
//!
//! What repeats is counted on one Event; many like ones become one "combined" Event; an object that floods is dropped.
//! The limits are those of client-go's `tools/record`.

use crate::calls::{Calls, Patch, Preconditions};
use crate::views::{Meta, MetaOnly};
use crate::{Error, Resource};
use isopod_api::time;
use isopod_base::clock::Clock;
use isopod_base::errors::Chain;
use jiff::Timestamp;
use kube::Client;
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashMap};
use tokio::sync::mpsc;

/// Events that wait to be written; more are dropped.
const WAITING: usize = 1000;
/// From this many different messages of one kind within [`AGGREGATE_SECONDS`] on, they are combined.
const AGGREGATE_FROM: usize = 10;
const AGGREGATE_SECONDS: i64 = 600;
/// Events that one object may have at once; it regains one in [`SPAM_REFILL_SECONDS`].
const SPAM_BURST: f64 = 25.0;
const SPAM_REFILL_SECONDS: f64 = 300.0;
/// Remembered keys a table before old ones are dropped.
const REMEMBERED: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Normal,
    Warning,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Kind::Normal => "Normal",
            Kind::Warning => "Warning",
        }
    }
}

/// The object that an event is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectRef {
    pub api_version: String,
    pub kind: String,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub resource_version: String,
    /// A part of the object: `spec.containers{web}`.
    pub field_path: String,
}

impl ObjectRef {
    pub fn new(api_version: &str, kind: &str, meta: &Meta) -> Self {
        ObjectRef {
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            uid: meta.uid.clone(),
            resource_version: meta.resource_version.clone(),
            field_path: String::new(),
        }
    }

    pub fn field(mut self, path: impl Into<String>) -> Self {
        self.field_path = path.into();
        self
    }

    fn json(&self) -> Value {
        let mut v = json!({"kind": self.kind, "name": self.name, "apiVersion": self.api_version});
        for (key, value) in [
            ("namespace", &self.namespace),
            ("uid", &self.uid),
            ("resourceVersion", &self.resource_version),
            ("fieldPath", &self.field_path),
        ] {
            if !value.is_empty() {
                v[key] = json!(value);
            }
        }
        v
    }
}

#[derive(Clone, Debug)]
struct Said {
    about: ObjectRef,
    kind: Kind,
    reason: String,
    message: String,
    at: Timestamp,
}

/// Records events as one component. Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    sender: mpsc::Sender<Said>,
    clock: Clock,
}

impl Recorder {
    /// `component` is who speaks (`deployment-controller`), `host` the node that it speaks of or empty. Starts a task that
    /// ends when the last clone is dropped; call it within a tokio runtime.
    pub fn new(client: Client, component: &str, host: &str, clock: Clock) -> Self {
        let (sender, mut receiver) = mpsc::channel(WAITING);
        let calls = Calls::new(client, Resource::namespaced("", "v1", "events"));
        let mut correlator = Correlator::new(component, host);
        tokio::spawn(async move {
            while let Some(said) = receiver.recv().await {
                let Some(write) = correlator.correlate(said) else { continue };
                if let Err(e) = send(&calls, &mut correlator, write).await {
                    tracing::debug!(error = %Chain(&e), "event not recorded");
                }
            }
        });
        Recorder { sender, clock }
    }

    /// Never waits: when too many events wait to be written, this one is dropped.
    pub fn event(&self, about: &ObjectRef, kind: Kind, reason: &str, message: impl Into<String>) {
        let said = Said {
            about: about.clone(),
            kind,
            reason: reason.to_owned(),
            message: message.into(),
            at: self.clock.now(),
        };
        if self.sender.try_send(said).is_err() {
            tracing::debug!(reason, "too many events wait: dropped one");
        }
    }
    pub fn normal(&self, about: &ObjectRef, reason: &str, message: impl Into<String>) {
        self.event(about, Kind::Normal, reason, message);
    }
    pub fn warning(&self, about: &ObjectRef, reason: &str, message: impl Into<String>) {
        self.event(about, Kind::Warning, reason, message);
    }
}

/// What to send for an event that was said.
#[derive(Debug, PartialEq)]
struct Write {
    key: String,
    namespace: String,
    /// The Event to count up; `None` creates `event`.
    existing: Option<String>,
    event: Value,
}

async fn send(calls: &Calls, correlator: &mut Correlator, write: Write) -> Result<(), Error> {
    if let Some(name) = &write.existing {
        let e = &write.event;
        let patch = json!({"count": e["count"], "lastTimestamp": e["lastTimestamp"], "message": e["message"]});
        let none = Preconditions::default();
        match calls.patch::<MetaOnly>(&write.namespace, name, None, Patch::Strategic(patch), &none).await {
            // It was cleaned up meanwhile: make it again.
            Err(e) if e.is_not_found() => {}
            other => return other.map(drop),
        }
    }
    let created: MetaOnly = calls.create(&write.namespace, &write.event).await?;
    correlator.created(&write.key, &created.metadata.name);
    Ok(())
}

#[derive(Default)]
struct Counted {
    name: String,
    count: u64,
    first: Timestamp,
}

struct Group {
    messages: BTreeSet<String>,
    last: Timestamp,
}

struct Bucket {
    tokens: f64,
    last: Timestamp,
}

/// Decides what becomes of an event: create, count up, combine or drop.
struct Correlator {
    component: String,
    host: String,
    groups: HashMap<String, Group>,
    counted: HashMap<String, Counted>,
    buckets: HashMap<ObjectRef, Bucket>,
}

impl Correlator {
    fn new(component: &str, host: &str) -> Self {
        Correlator {
            component: component.to_owned(),
            host: host.to_owned(),
            groups: HashMap::new(),
            counted: HashMap::new(),
            buckets: HashMap::new(),
        }
    }

    fn created(&mut self, key: &str, name: &str) {
        if let Some(c) = self.counted.get_mut(key) {
            name.clone_into(&mut c.name);
        }
    }

    fn correlate(&mut self, said: Said) -> Option<Write> {
        if self.is_spam(&said) {
            return None;
        }
        let o = &said.about;
        let group_key = format!(
            "{}\0{}\0{}\0{}\0{}\0{}\0{}",
            o.kind,
            o.namespace,
            o.name,
            o.uid,
            o.api_version,
            said.kind.as_str(),
            said.reason
        );
        let combined = self.is_combined(&group_key, &said);
        let message =
            if combined { format!("(combined from similar events): {}", said.message) } else { said.message.clone() };
        let key = if combined { group_key } else { format!("{group_key}\0{}\0{message}", o.field_path) };

        forget_old(&mut self.counted, |c| c.first);
        let counted =
            self.counted.entry(key.clone()).or_insert_with(|| Counted { first: said.at, ..Default::default() });
        counted.count += 1;
        let namespace = if o.namespace.is_empty() { "default".to_owned() } else { o.namespace.clone() };
        let event = json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": format!("{}.{:x}", o.name, said.at.as_nanosecond()), "namespace": namespace},
            "involvedObject": o.json(),
            "reason": said.reason, "message": message, "type": said.kind.as_str(),
            "source": {"component": self.component, "host": self.host},
            "reportingComponent": self.component, "reportingInstance": self.host,
            "firstTimestamp": time::format(counted.first), "lastTimestamp": time::format(said.at),
            "count": counted.count,
        });
        let existing = (!counted.name.is_empty()).then(|| counted.name.clone());
        Some(Write { key, namespace, existing, event })
    }

    fn is_spam(&mut self, said: &Said) -> bool {
        forget_old(&mut self.buckets, |b| b.last);
        let mut object = said.about.clone();
        // A flood is an object's, whatever its revision.
        object.resource_version.clear();
        object.field_path.clear();
        let b = self.buckets.entry(object).or_insert(Bucket { tokens: SPAM_BURST, last: said.at });
        let seconds = said.at.duration_since(b.last).as_secs_f64().max(0.0);
        b.tokens = (b.tokens + seconds / SPAM_REFILL_SECONDS).min(SPAM_BURST);
        b.last = said.at;
        if b.tokens < 1.0 {
            return true;
        }
        b.tokens -= 1.0;
        false
    }

    fn is_combined(&mut self, key: &str, said: &Said) -> bool {
        forget_old(&mut self.groups, |g| g.last);
        let fresh = || Group { messages: BTreeSet::new(), last: said.at };
        let group = self.groups.entry(key.to_owned()).or_insert_with(fresh);
        if said.at.duration_since(group.last).as_secs() > AGGREGATE_SECONDS {
            *group = fresh();
        }
        group.last = said.at;
        group.messages.insert(said.message.clone());
        if group.messages.len() < AGGREGATE_FROM {
            return false;
        }
        group.messages.pop_first();
        true
    }
}

/// Drops the older half of a table that has grown too large.
fn forget_old<K: Clone + Eq + std::hash::Hash, V>(table: &mut HashMap<K, V>, last: impl Fn(&V) -> Timestamp) {
    if table.len() < REMEMBERED {
        return;
    }
    let mut times: Vec<Timestamp> = table.values().map(&last).collect();
    times.sort_unstable();
    let middle = times[times.len() / 2];
    table.retain(|_, v| last(v) > middle);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn said(message: &str, second: i64) -> Said {
        let about = ObjectRef { kind: "Pod".into(), name: "p".into(), namespace: "ns".into(), ..Default::default() };
        let at = Timestamp::UNIX_EPOCH + Duration::from_secs(second as u64);
        Said { about, kind: Kind::Normal, reason: "R".into(), message: message.into(), at }
    }

    #[test]
    fn the_same_event_is_counted() {
        let mut c = Correlator::new("kubelet", "n1");
        let first = c.correlate(said("m", 0)).unwrap();
        assert_eq!((first.existing, &first.event["count"]), (None, &json!(1)));
        c.created(&first.key, "p.1");
        let second = c.correlate(said("m", 5)).unwrap();
        assert_eq!(second.existing.as_deref(), Some("p.1"));
        assert_eq!(second.event["count"], 2);
        assert_eq!(second.event["firstTimestamp"], "1970-01-01T00:00:00Z");
        assert_eq!(second.event["lastTimestamp"], "1970-01-01T00:00:05Z");
    }

    #[test]
    fn many_similar_events_are_combined() {
        let mut c = Correlator::new("x", "");
        let messages: Vec<String> = (0..12)
            .map(|i| c.correlate(said(&format!("m{i}"), i)).unwrap().event["message"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(messages[8], "m8");
        assert_eq!(messages[9], "(combined from similar events): m9");
        assert_eq!(messages[11], "(combined from similar events): m11");
    }

    #[test]
    fn a_flood_is_dropped_and_regains_slowly() {
        let mut c = Correlator::new("x", "");
        let passed = (0..40).filter(|_| c.correlate(said("m", 0)).is_some()).count();
        assert_eq!(passed, 25);
        assert!(c.correlate(said("m", 299)).is_none());
        assert!(c.correlate(said("m", 300)).is_some());
    }
}
