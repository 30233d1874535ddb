//! Says in every quota's status what it allows and what is used of it. Admission charges what is made; this controller counts
//! anew when a quota is made or changed, when something that is counted goes or ends, and on a slow period.
//!
//! Watches quotas, pods, services and claims, and the metadata of other resources while a quota counts them; writes the status
//! of quotas. Invariant: quotas are read before what they count, and a status is written only onto the quota that was read.
//! Admission writes a quota with every object that it charges, so a recount never misses an object that was made meanwhile.

use crate::controller::{Context, Controller, Error, Key};
use async_trait::async_trait;
use isopod_client::informer::View;
use isopod_client::queue::WorkQueue;
use isopod_client::views::{Condition, Meta, MetaOnly, PersistentVolumeClaim, Pod, Service};
use isopod_client::{Calls, Change, Informer, Informers, ListScope, Resource, discovery};
use isopod_kinds::quota::usage::Counted;
use isopod_kinds::quota::{Amounts, Evaluator, counted_by, recount};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// Everything is counted again after this time, whatever happened.
const PERIOD: Duration = Duration::from_secs(300);
/// What changes together is counted together.
const SETTLE: Duration = Duration::from_millis(100);
/// How long a resource that is not served is believed to be missing.
const MISSING: Duration = Duration::from_secs(30);

/// A quota: what it limits, and what its status says that it limits.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Quota {
    metadata: Meta,
    spec: Hard,
    status: Hard,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Hard {
    hard: Option<BTreeMap<String, Value>>,
}

impl View for Quota {
    fn name(&self) -> &str {
        &self.metadata.name
    }
    fn namespace(&self) -> &str {
        &self.metadata.namespace
    }
    fn uid(&self) -> &str {
        &self.metadata.uid
    }
    fn resource_version(&self) -> &str {
        &self.metadata.resource_version
    }
}

impl Quota {
    fn evaluators(&self) -> impl Iterator<Item = Evaluator> {
        self.spec.hard.iter().flatten().filter_map(|(name, _)| counted_by(name))
    }
}

/// The served resources, and when they were asked for.
#[derive(Default)]
struct Served {
    resources: HashMap<String, Resource>,
    asked: Option<Timestamp>,
}

struct Quotas {
    context: Context,
    quotas: Informer<Quota>,
    queue: WorkQueue<Key>,
    /// By resource: a set that ends with its entry.
    watched: Mutex<BTreeMap<String, Informers>>,
    served: Mutex<Served>,
}

/// Keys are namespaces.
pub async fn run(context: Context) {
    let quotas = context.informer::<Quota>(quota_resource());
    let (pods, services, claims) = (
        context.informer::<Pod>(Pod::resource()),
        context.informer::<Service>(Service::resource()),
        context.informer::<PersistentVolumeClaim>(PersistentVolumeClaim::resource()),
    );
    quotas.synced().await;
    let queue = WorkQueue::new(context.clock.clone());
    let controller = Arc::new(Quotas {
        context: context.clone(),
        quotas: quotas.clone(),
        queue: queue.clone(),
        watched: Mutex::default(),
        served: Mutex::default(),
    });
    let again = queue.clone();
    context.feed(&quotas, move |change| match change {
        Change::Applied { old, new } if needs_count(old.as_deref(), &new) => again.add(namespace(&*new)),
        Change::Deleted(old) => again.add(namespace(&*old)),
        _ => {}
    });
    controller.feed(&pods, Evaluator::Pods, frees_resources);
    controller.feed(&services, Evaluator::Services, |old, new| old.spec.kind != new.spec.kind);
    controller.feed(&claims, Evaluator::VolumeClaims, |old, new| (&old.spec, &old.status) != (&new.spec, &new.status));
    context.work(controller, queue, 2).await;
}

fn quota_resource() -> Resource {
    Resource::namespaced("", "v1", "resourcequotas")
}

fn namespace(object: &impl View) -> Key {
    Key::new("", object.namespace())
}

/// Whether somebody changed what is limited, in the spec or, without any right, in the status.
fn needs_count(old: Option<&Quota>, new: &Quota) -> bool {
    old.is_none_or(|o| o.spec != new.spec || o.metadata.uid != new.metadata.uid) || new.spec.hard != new.status.hard
}

/// Whether the pod may have come to hold less, or to be in other scopes.
fn frees_resources(old: &Pod, new: &Pod) -> bool {
    let resize = |p: &Pod| -> Vec<Condition> {
        p.status.conditions.iter().filter(|c| c.kind.starts_with("PodResize")).cloned().collect()
    };
    let resources = |p: &Pod| {
        let of =
            |list: &[isopod_client::views::Container]| list.iter().map(|c| c.resources.clone()).collect::<Vec<_>>();
        (p.spec.resources.clone(), of(&p.spec.containers), of(&p.spec.init_containers))
    };
    old.is_terminal() != new.is_terminal()
        || old.spec.active_deadline_seconds != new.spec.active_deadline_seconds
        || resize(old) != resize(new)
        || resources(old) != resources(new)
}

impl Quotas {
    /// Counts a namespace again when an object of `evaluator`'s goes, is replaced or changes as `frees` says.
    fn feed<T: View>(
        &self,
        informer: &Informer<T>,
        evaluator: Evaluator,
        frees: impl Fn(&T, &T) -> bool + Send + 'static,
    ) {
        let (quotas, queue) = (self.quotas.clone(), self.queue.clone());
        self.context.feed(informer, move |change| {
            let gone = match change {
                Change::Deleted(old) => old,
                Change::Applied { old: Some(old), new } if old.uid() != new.uid() || frees(&old, &new) => new,
                _ => return,
            };
            let counted =
                quotas.list_namespace(gone.namespace()).iter().any(|q| q.evaluators().any(|e| e == evaluator));
            if counted {
                queue.add_after(namespace(&*gone), SETTLE);
            }
        });
    }

    /// Watches what quotas count by number, and nothing else.
    fn watch(&self, served: &HashMap<String, Resource>) {
        let all = self.quotas.list();
        let wanted: BTreeMap<String, Evaluator> = all
            .iter()
            .flat_map(|q| q.evaluators())
            .filter(|e| e.only_counts() || *e == Evaluator::DeviceClaims)
            .map(|e| (e.resource().to_owned(), e))
            .collect();
        let mut watched = self.watched.lock();
        watched.retain(|name, _| wanted.contains_key(name) && served.contains_key(name));
        for (name, evaluator) in wanted {
            let Some(resource) = served.get(&name).filter(|_| !watched.contains_key(&name)) else { continue };
            let set = Informers::with_clock(self.context.client.clone(), self.context.clock.clone());
            self.feed(&set.get::<MetaOnly>(resource.clone(), ListScope::all()), evaluator, |_, _| false);
            watched.insert(name, set);
        }
    }

    /// The served resources; asked for again when one of `names` is not among them and that was not just so.
    async fn served(&self, names: &BTreeSet<&str>) -> Result<HashMap<String, Resource>, Error> {
        let now = self.context.clock.now();
        {
            let served = self.served.lock();
            let complete = names.iter().all(|n| served.resources.contains_key(*n));
            let just_asked = served.asked.is_some_and(|at| now.duration_since(at).unsigned_abs() < MISSING);
            if complete || just_asked {
                return Ok(served.resources.clone());
            }
        }
        let found = discovery::preferred(&self.context.client).await?;
        let countable = |d: &discovery::Discovered| d.resource.namespaced && d.can("list") && d.can("watch");
        let resources = found.into_iter().filter(countable).map(|d| (d.resource.gvr.qualified(), d.resource));
        let resources: HashMap<String, Resource> = resources.collect();
        *self.served.lock() = Served { resources: resources.clone(), asked: Some(now) };
        Ok(resources)
    }

    /// What one evaluator counts in a namespace; `None`: its resource is not served any more.
    async fn count(&self, resource: &Resource, evaluator: &Evaluator, ns: &str) -> Result<Option<Found>, Error> {
        let calls = self.context.calls(resource.clone());
        let scope = ListScope::namespace(ns);
        let found = if evaluator.only_counts() {
            calls.list_metadata(&scope).await.map(|l| Found::Number(l.len()))
        } else {
            calls.list(&scope).await.map(Found::Objects)
        };
        match found {
            Err(e) if e.is_not_found() => {
                *self.served.lock() = Served::default();
                Ok(None)
            }
            other => Ok(Some(other?)),
        }
    }
}

/// As [`Counted`], owned.
enum Found {
    Objects(Vec<Value>),
    Number(usize),
}

impl Found {
    fn counted(&self) -> Counted<'_> {
        match self {
            Found::Objects(list) => Counted::Objects(list),
            Found::Number(n) => Counted::Number(*n),
        }
    }
}

/// Whether two statuses say the same amounts.
fn same_status(a: &Value, b: &Value) -> bool {
    ["hard", "used"].iter().all(|f| Amounts::read(&a[*f]) == Amounts::read(&b[*f]))
}

/// What the quotas of a namespace count.
fn counted_evaluators(quotas: &[Value]) -> Vec<Evaluator> {
    let mut all: Vec<Evaluator> = Vec::new();
    let names = quotas.iter().filter_map(|q| q["spec"]["hard"].as_object()).flat_map(|hard| hard.keys());
    for evaluator in names.filter_map(|n| counted_by(n)) {
        if !all.contains(&evaluator) {
            all.push(evaluator);
        }
    }
    all
}

#[async_trait]
impl Controller for Quotas {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        let ns = key.name.as_str();
        let calls: Calls = self.context.calls(quota_resource());
        let quotas: Vec<Value> = calls.list(&ListScope::namespace(ns)).await?;
        let evaluators = counted_evaluators(&quotas);
        let served = self.served(&evaluators.iter().map(Evaluator::resource).collect()).await?;
        // Watched before it is counted: what goes in between is noticed.
        self.watch(&served);
        let mut found: BTreeMap<&str, Found> = BTreeMap::new();
        for evaluator in &evaluators {
            let Some(resource) = served.get(evaluator.resource()) else { continue };
            if let Some(content) = self.count(resource, evaluator, ns).await? {
                found.insert(evaluator.resource(), content);
            }
        }
        let now = self.context.clock.now();
        for mut quota in quotas.iter().cloned() {
            let status = recount(&quota, now, |e| found.get(e.resource()).map(Found::counted));
            let name = quota["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            if same_status(&quota["status"], &status) {
                continue;
            }
            quota["status"] = status;
            (quota["apiVersion"], quota["kind"]) = (json!("v1"), json!("ResourceQuota"));
            let written = calls.update::<Value>(ns, &name, Some("status"), &quota).await;
            let what = || format!("update the status of resourcequotas {ns}/{name}");
            written.map_err(|source| Error::Call { what: what(), source })?;
        }
        let complete = evaluators.iter().all(|e| found.contains_key(e.resource()));
        Ok((!quotas.is_empty()).then_some(if complete { PERIOD } else { MISSING }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_changes_of_quotas_need_a_count() {
        let quota = |spec: Value, status: Value| -> Quota {
            serde_json::from_value(
                json!({"metadata": {"uid": "u"}, "spec": {"hard": spec}, "status": {"hard": status}}),
            )
            .unwrap()
        };
        let (one, two) = (json!({"pods": "1"}), json!({"pods": "2"}));
        let done = || quota(one.clone(), one.clone());
        assert!(needs_count(None, &quota(one.clone(), Value::Null)));
        assert!(!needs_count(Some(&done()), &done()));
        assert!(needs_count(Some(&done()), &quota(two.clone(), one.clone())));
        assert!(needs_count(Some(&done()), &quota(one.clone(), two)));
    }

    #[test]
    fn which_changes_of_pods_free_resources() {
        let pod = |change: Value| -> Pod {
            let mut v = json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "2"}}}]},
                "status": {"phase": "Running"}});
            isopod_client::calls::merge(&mut v, &change);
            serde_json::from_value(v).unwrap()
        };
        for (change, want) in [
            (json!({}), false),
            (json!({"status": {"podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]}}), false),
            (json!({"status": {"phase": "Succeeded"}}), true),
            (json!({"status": {"conditions": [{"type": "PodResizeInProgress", "status": "True"}]}}), true),
            (json!({"spec": {"activeDeadlineSeconds": 5}}), true),
            (json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]}}), true),
        ] {
            assert_eq!(frees_resources(&pod(json!({})), &pod(change.clone())), want, "{change}");
        }
    }

    #[test]
    fn statuses_are_compared_by_amount() {
        let status = |cpu: &str, used: &str| json!({"hard": {"cpu": cpu}, "used": {"cpu": used}});
        assert!(same_status(&status("1000m", "0"), &status("1", "0")));
        assert!(!same_status(&status("1", "0"), &status("1", "1")));
        assert!(!same_status(&Value::Null, &status("1", "0")));
        let quota = |name: &str| json!({"spec": {"hard": {name: "1"}}});
        let all = counted_evaluators(&[quota("pods"), quota("cpu"), quota("secrets"), quota("storage")]);
        assert_eq!(all.iter().map(Evaluator::resource).collect::<Vec<_>>(), ["pods", "secrets"]);
    }
}
