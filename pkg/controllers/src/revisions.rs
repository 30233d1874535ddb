//! The templates that a daemon set or a stateful set has had, as controller revisions: finding or making the present one,
//! numbering it, and forgetting the oldest.
//!
//! Invariants: a revision's template never changes; the present one has the highest number; a revision that pods still have
//! is not forgotten.

use crate::controller::{Context, Error, Key};
use crate::op::Op;
use crate::ownership::{self, Claim};
use crate::pod_control::Owner;
use crate::template;
use isopod_client::queue::WorkQueue;
use isopod_client::views::{ControllerRevision, LabelSelector, Labels, Meta};
use isopod_client::{Change, Informer, decode};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The label by which pods name their revision.
pub const REVISION_LABEL: &str = "controller-revision-hash";
/// Characters of a set's name in the name of a revision.
const LONGEST_PREFIX: usize = 223;

pub struct Revisions {
    context: Context,
    revisions: Informer<ControllerRevision>,
}

/// What is recorded of a set.
pub struct Snapshot<'a> {
    pub owner: &'a Owner<'a>,
    pub template: Value,
    pub annotations: &'a Labels,
    /// The label that carries the hash.
    pub hash_label: &'static str,
}

/// The revisions of a set.
pub struct History {
    pub current: Arc<ControllerRevision>,
    /// Oldest first.
    pub old: Vec<Arc<ControllerRevision>>,
    /// Higher than before when the name of the current revision was taken.
    pub collision_count: Option<i32>,
}

impl Revisions {
    pub fn new(context: &Context) -> Self {
        let revisions = context.informer::<ControllerRevision>(ControllerRevision::resource());
        Revisions { context: context.clone(), revisions }
    }

    pub async fn synced(&self) {
        self.revisions.synced().await;
    }

    /// Feeds the owners of revisions that are deleted; `orphaned` is told of every revision without a controller.
    pub fn feed(&self, kind: &'static str, queue: &WorkQueue<Key>, mut orphaned: impl FnMut(&Meta) + Send + 'static) {
        let queue = queue.clone();
        self.context.feed(&self.revisions, move |change| match change {
            Change::Applied { new, .. } if new.metadata.controller().is_none() => orphaned(&new.metadata),
            Change::Deleted(old) => {
                if let Some(owner) = old.metadata.controller().filter(|c| c.kind == kind) {
                    queue.add(Key::new(&old.metadata.namespace, &owner.name));
                }
            }
            _ => {}
        });
    }

    /// The revisions of the owner, oldest first, after adopting and releasing.
    pub async fn claim(
        &self,
        owner: &Owner<'_>,
        selector: &LabelSelector,
    ) -> Result<Vec<Arc<ControllerRevision>>, Error> {
        let (mut owned, mut may_adopt) = (Vec::new(), None);
        for revision in self.revisions.list_namespace(&owner.meta.namespace) {
            let claim = ownership::claim(owner.meta, selector, &revision.metadata);
            let op = match claim {
                Claim::Owned => {
                    owned.push(revision);
                    continue;
                }
                Claim::NotOurs => continue,
                Claim::Release => {
                    ownership::release(ControllerRevision::resource(), &revision.metadata, &owner.meta.uid)
                }
                Claim::Adopt => {
                    if may_adopt.is_none() {
                        may_adopt = Some(owner.is_alive(&self.context).await?);
                    }
                    if may_adopt == Some(false) {
                        continue;
                    }
                    ownership::adopt(ControllerRevision::resource(), &revision.metadata, owner.reference())
                }
            };
            match self.context.apply(&op).await {
                Ok(_) if claim == Claim::Adopt => owned.push(revision),
                Ok(_) => {}
                Err(Error::Call { source, .. }) if source.is_not_found() || source.is_invalid() => {}
                Err(e) => return Err(e),
            }
        }
        sort(&mut owned);
        Ok(owned)
    }

    /// Finds the revision of the snapshot among the `owned` ones, or makes it, and gives it the highest number.
    pub async fn record(
        &self,
        snapshot: &Snapshot<'_>,
        owned: Vec<Arc<ControllerRevision>>,
        collision_count: Option<i32>,
    ) -> Result<History, Error> {
        let is_current = |r: &ControllerRevision| template::are_equal(&template_of(r), &snapshot.template);
        let mut old = owned;
        let found = old.iter().rposition(|r| is_current(r)).map(|at| old.remove(at));
        let number = old.last().map_or(0, |r| r.revision) + 1;
        let (current, collision_count) = match found {
            Some(current) => (current, collision_count),
            None => self.make(snapshot, number, collision_count).await?,
        };
        if current.revision < number {
            let m = &current.metadata;
            let change = json!({"revision": number});
            let op = Op::modify(ControllerRevision::resource(), &m.namespace, &m.name, change).if_uid(&m.uid);
            self.context.apply(&op).await?;
        }
        Ok(History { current, old, collision_count })
    }

    async fn make(
        &self,
        snapshot: &Snapshot<'_>,
        number: i64,
        mut collision_count: Option<i32>,
    ) -> Result<(Arc<ControllerRevision>, Option<i32>), Error> {
        loop {
            let hash = template::hash(&snapshot.template, collision_count);
            let object = object(snapshot, &hash, number);
            let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let op = Op::create(ControllerRevision::resource(), &snapshot.owner.meta.namespace, object.clone());
            match self.context.apply(&op).await {
                // What the server answers is the object as it stands; what was sent has the same template.
                Ok(made) => {
                    let meta = decode::from_value(&made["metadata"]).unwrap_or_default();
                    let view = ControllerRevision { metadata: meta, revision: number, ..Default::default() };
                    return Ok((Arc::new(view), collision_count));
                }
                Err(e) if e.api().is_some_and(isopod_client::Error::is_already_exists) => {
                    let calls = self.context.calls(ControllerRevision::resource());
                    let taken: ControllerRevision = calls.get(&snapshot.owner.meta.namespace, &name).await?;
                    if template::are_equal(&template_of(&taken), &snapshot.template) {
                        return Ok((Arc::new(taken), collision_count));
                    }
                    collision_count = Some(collision_count.unwrap_or_default() + 1);
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Forgets the oldest of `old` above `limit`, except those for which `is_live` holds.
    pub async fn truncate(
        &self,
        old: &[Arc<ControllerRevision>],
        limit: i32,
        is_live: impl Fn(&ControllerRevision) -> bool,
    ) -> Result<(), Error> {
        for revision in forgotten(old, limit, is_live) {
            let m = &revision.metadata;
            let op = Op::delete(ControllerRevision::resource(), &m.namespace, &m.name).if_uid(&m.uid);
            self.context.apply(&op).await?;
        }
        Ok(())
    }
}

fn forgotten(
    old: &[Arc<ControllerRevision>],
    limit: i32,
    is_live: impl Fn(&ControllerRevision) -> bool,
) -> Vec<&Arc<ControllerRevision>> {
    let surplus = old.len().saturating_sub(limit.max(0) as usize);
    old.iter().filter(|r| !is_live(r)).take(surplus).collect()
}

fn sort(revisions: &mut [Arc<ControllerRevision>]) {
    revisions.sort_by(|a, b| {
        let rank =
            |r: &ControllerRevision| (r.revision, r.metadata.creation_timestamp.clone(), r.metadata.name.clone());
        rank(a).cmp(&rank(b))
    });
}

/// The template that a revision keeps.
pub fn template_of(revision: &ControllerRevision) -> Value {
    let mut template = revision.data.parse().pointer_mut("/spec/template").map(Value::take).unwrap_or_default();
    if let Some(t) = template.as_object_mut() {
        t.remove("$patch");
    }
    template
}

/// The name of a revision's hash: its label, or for one without a label its name.
pub fn hash_of<'a>(revision: &'a ControllerRevision, label: &str) -> &'a str {
    revision.metadata.labels.get(label).unwrap_or(&revision.metadata.name)
}

/// The hashes that pods name.
pub fn live_hashes<'a>(labels: impl IntoIterator<Item = &'a Labels>) -> BTreeSet<&'a str> {
    labels.into_iter().filter_map(|l| l.get(REVISION_LABEL)).map(String::as_str).collect()
}

fn object(snapshot: &Snapshot<'_>, hash: &str, number: i64) -> Value {
    let meta = snapshot.owner.meta;
    let prefix = &meta.name[..meta.name.len().min(LONGEST_PREFIX)];
    let mut labels = snapshot.template["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    labels.insert(snapshot.hash_label.to_owned(), json!(hash));
    let mut template = snapshot.template.clone();
    // As a strategic merge patch of the set, this puts the template back: `kubectl rollout undo` applies it.
    template["$patch"] = json!("replace");
    json!({
        "apiVersion": "apps/v1", "kind": "ControllerRevision",
        "metadata": {
            "name": format!("{prefix}-{hash}"), "namespace": meta.namespace, "labels": labels,
            "annotations": snapshot.annotations, "ownerReferences": [snapshot.owner.reference()],
        },
        "data": {"spec": {"template": template}},
        "revision": number,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use isopod_client::views::DaemonSet;

    fn revision(name: &str, number: i64) -> Arc<ControllerRevision> {
        let v = json!({"metadata": {"name": name}, "revision": number,
                       "data": {"spec": {"template": {"spec": {"x": number}, "$patch": "replace"}}}});
        Arc::new(serde_json::from_str(&v.to_string()).unwrap())
    }

    #[test]
    fn a_revision_keeps_the_template() {
        let meta: Meta = serde_json::from_value(json!({"name": "ds", "namespace": "ns", "uid": "u"})).unwrap();
        let owner = Owner {
            api_version: "apps/v1",
            kind: "DaemonSet",
            resource: DaemonSet::resource(),
            meta: &meta,
            finalizer: None,
        };
        let template = json!({"metadata": {"labels": {"app": "a"}}, "spec": {"x": 1}});
        let annotations = Labels::new();
        let snapshot =
            Snapshot { owner: &owner, template: template.clone(), annotations: &annotations, hash_label: "h" };
        let made = object(&snapshot, "abc", 3);
        assert_eq!(made["metadata"]["name"], "ds-abc");
        assert_eq!(made["metadata"]["labels"], json!({"app": "a", "h": "abc"}));
        let view: ControllerRevision = serde_json::from_str(&made.to_string()).unwrap();
        assert_eq!(template_of(&view), template);
        assert_eq!((view.revision, hash_of(&view, "h"), hash_of(&view, "none")), (3, "abc", "ds-abc"));
    }

    #[test]
    fn the_oldest_are_forgotten_unless_pods_have_them() {
        let mut all = [revision("c", 3), revision("a", 1), revision("b", 2)];
        sort(&mut all);
        let names = |limit, live: &str| -> Vec<String> {
            let gone = forgotten(&all, limit, |r| r.metadata.name == live);
            gone.iter().map(|r| r.metadata.name.clone()).collect()
        };
        assert_eq!(names(10, ""), Vec::<String>::new());
        assert_eq!(names(1, ""), ["a", "b"]);
        assert_eq!(names(1, "a"), ["b", "c"]);
        assert_eq!(names(0, ""), ["a", "b", "c"]);
    }
}
