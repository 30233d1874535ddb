//! What the flow schemas and priority levels of the cluster say, ready for use. They are taken in all together, whenever one
//! of them changes.

use super::Mark;
use super::level::{Level, discipline};
use super::limits::{self, Party};
use super::schema::Schema;
use isopod_kinds::access::Access;
use isopod_kinds::bootstrap::fairness::{self, CATCH_ALL, EXEMPT};
use parking_lot::Mutex;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::Notify;

/// The period in which upstream shares seats out anew.
pub const PERIOD: std::time::Duration = std::time::Duration::from_secs(10);

/// A flow schema and where its requests go.
pub struct Flow {
    pub schema: Schema,
    pub level: Arc<Level>,
    /// Where the level counts its requests.
    pub slot: usize,
    /// There are queues to keep flows apart in.
    pub shards: bool,
    /// The most seats of one request; `None`: as many as of any.
    pub widest: Option<u32>,
    pub mark: Arc<Mark>,
}

/// See the module.
#[derive(Default)]
pub struct Digest {
    /// In the order in which they are asked; the last takes everything.
    pub flows: Vec<Flow>,
    pub levels: BTreeMap<Arc<str>, Arc<Level>>,
    pub fair: Mutex<f64>,
}

/// What a digest is made with.
pub struct Maker {
    /// Seats of the server.
    pub total: u32,
    pub idle: Arc<Notify>,
    pub began: Instant,
}

struct Described<'a> {
    object: &'a Value,
    discipline: super::queues::Discipline,
}

impl Maker {
    /// Takes the stored objects in. Levels that are still used go on, described or not.
    pub fn digest(&self, old: &Digest, levels: &[Value], schemas: &[Value]) -> Digest {
        let mandatory = fairness::mandatory();
        let mut described: BTreeMap<&str, Described<'_>> = BTreeMap::new();
        for object in mandatory.levels.iter().chain(levels) {
            let name = object.text("metadata.name");
            match discipline(name, object.at("spec")) {
                Some(discipline) => drop(described.insert(name, Described { object, discipline })),
                None => tracing::warn!(level = name, "a priority level with a broken spec is left out"),
            }
        }
        let mut running: BTreeMap<Arc<str>, Arc<Level>> = BTreeMap::new();
        for (name, new) in &described {
            let level = match old.levels.get(*name) {
                Some(level) => level.clone(),
                None => Level::new(name, Value::Null, new.discipline, self.idle.clone(), self.began),
            };
            let mut inner = level.lock();
            inner.spec = new.object["spec"].clone();
            inner.quiescing = false;
            drop(inner);
            running.insert(level.name.clone(), level);
        }
        for (name, level) in old.levels.iter().filter(|(name, _)| !described.contains_key(&***name)) {
            let mut inner = level.lock();
            if !inner.queues.is_idle() {
                inner.quiescing = true;
                running.insert(name.clone(), level.clone());
            }
        }
        self.share_out(&running);
        let fair = rebalance(&running, true);
        let flows = flows(&described, &running, &mandatory.schemas, schemas);
        Digest { flows, levels: running, fair: Mutex::new(fair) }
    }

    fn share_out(&self, levels: &BTreeMap<Arc<str>, Arc<Level>>) {
        let sum: f64 = levels.values().map(|l| limits::shares(&l.lock().spec)).sum();
        for level in levels.values() {
            let mut inner = level.lock();
            inner.limits = limits::limits(&inner.spec, self.total, sum);
        }
    }
}

/// Shares the seats out by what each level could use in the period that ends. `configure`: the rules may have changed, too.
pub fn rebalance(levels: &BTreeMap<Arc<str>, Arc<Level>>, configure: bool) -> f64 {
    let mut parties = Vec::with_capacity(levels.len());
    for level in levels.values() {
        let mut inner = level.lock();
        let period = inner.queues.demand.take(level.now());
        inner.demand.update(period);
        let exempt = &*level.name == EXEMPT;
        parties.push(Party { exempt, limits: inner.limits, demand: inner.demand, current: inner.queues.limit });
    }
    let shared = limits::share(&parties);
    for ((level, current), target) in levels.values().zip(shared.current).zip(shared.targets) {
        let mut inner = level.lock();
        inner.target = target;
        let same = inner.queues.limit == current;
        drop(inner);
        if configure || !same {
            level.configure(None, current);
        }
    }
    shared.fair
}

fn flows(
    described: &BTreeMap<&str, Described<'_>>,
    levels: &BTreeMap<Arc<str>, Arc<Level>>,
    mandatory: &[Value],
    stored: &[Value],
) -> Vec<Flow> {
    let flow = |object: &Value| {
        let schema = Schema::new(object);
        let described = described.get(schema.level.as_str())?;
        let level = levels.get(schema.level.as_str())?.clone();
        let nominal = level.lock().limits.nominal;
        let (queues, widest) = match described.discipline {
            super::queues::Discipline::Exempt | super::queues::Discipline::Reject => (0, None),
            super::queues::Discipline::Queue { queues, hand, .. } => {
                (queues, Some(limits::widest(nominal, u32::try_from(hand).unwrap_or(u32::MAX))))
            }
        };
        let mark = Arc::new(Mark::new(&schema.uid, described.object.text("metadata.uid")));
        let slot = level.slot(&schema.name);
        Some(Flow { schema, level, slot, shards: queues > 1, widest, mark })
    };
    let mut all: Vec<Flow> = stored.iter().filter_map(flow).collect();
    all.sort_by(|a, b| (a.schema.precedence, &a.schema.name).cmp(&(b.schema.precedence, &b.schema.name)));
    for (name, first) in [(EXEMPT, true), (CATCH_ALL, false)] {
        if all.iter().any(|f| f.schema.name == name) {
            continue;
        }
        let missing = mandatory.iter().find(|o| o.text("metadata.name") == name).and_then(flow);
        let at = if first { 0 } else { all.len() };
        missing.into_iter().for_each(|flow| all.insert(at, flow));
    }
    all
}

/// The `Dangling` condition that a flow schema should have: status, reason and message.
pub fn dangling(schema: &Value, levels: &[Value]) -> (&'static str, &'static str, String) {
    let wanted = schema.text("spec.priorityLevelConfiguration.name");
    let exists = |l: &Value| l.text("metadata.name") == wanted && discipline(wanted, l.at("spec")).is_some();
    let about = format!("This FlowSchema references the PriorityLevelConfiguration object named {wanted:?}");
    match levels.iter().any(exists) {
        true => ("False", "Found", format!("{about} and it exists")),
        false => ("True", "NotFound", format!("{about} but there is no such object")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fairness::level::Detail;
    use crate::fairness::queues::{Arrival, Work};
    use crate::fairness::schema::Distinguisher;

    fn maker() -> Maker {
        Maker { total: 600, idle: Arc::default(), began: Instant::now() }
    }

    fn names(digest: &Digest) -> Vec<&str> {
        digest.flows.iter().map(|f| f.schema.name.as_str()).collect()
    }

    #[test]
    fn without_any_object_the_mandatory_ones_are_imagined() {
        let digest = maker().digest(&Digest::default(), &[], &[]);
        assert_eq!(names(&digest), ["exempt", "catch-all"]);
        assert_eq!(digest.levels["catch-all"].lock().queues.limit, 600);
    }

    #[test]
    fn flows_are_asked_in_order_and_dangling_ones_are_not() {
        let mut all = fairness::suggested();
        all.levels.retain(|l| l.text("metadata.name") != "system");
        let digest = maker().digest(&Digest::default(), &all.levels, &all.schemas);
        assert_eq!(names(&digest)[..4], ["exempt", "probes", "system-leader-election", "system-node-high"]);
        assert!(!names(&digest).contains(&"system-nodes"));
        assert_eq!(names(&digest).last(), Some(&"catch-all"));
        let nodes = all.schemas.iter().find(|s| s.text("metadata.name") == "system-nodes").unwrap();
        assert_eq!(dangling(nodes, &all.levels).1, "NotFound");
    }

    #[tokio::test]
    async fn a_level_that_is_not_wanted_stays_until_it_is_idle() {
        let (maker, all) = (maker(), fairness::suggested());
        let before = maker.digest(&Digest::default(), &all.levels, &all.schemas);
        let level = before.levels["system"].clone();
        let arrival = Arrival { hash: 0, flow: 0, work: Work::seats(1), watch: false };
        let Ok((seat, _)) = level.start(arrival, None, Detail::new(&Arc::default(), "a", Distinguisher::None)) else {
            panic!("there are seats")
        };
        let during = maker.digest(&before, &[], &[]);
        assert!(during.levels.contains_key("system") && level.lock().quiescing);
        drop(seat);
        maker.idle.notified().await;
        assert!(!maker.digest(&during, &[], &[]).levels.contains_key("system"));
    }
}
