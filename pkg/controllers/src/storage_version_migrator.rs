//! Writes every object of a resource again, so that it is stored in the version in which the resource is stored by now
//! (KEP-4192): what a StorageVersionMigration asks for. Upstream has three controllers for the three steps of it.
//!
//! Watches migrations and writes their status; writes objects of any resource without changing them, and the status of
//! definitions of custom resources. Invariant: of the migrations of one resource one runs at a time, the oldest first.

mod steps;

use crate::controller::{Context, Controller, Error, Key};
use async_trait::async_trait;
use isopod_client::discovery::{self, Discovered};
use isopod_client::queue::WorkQueue;
use isopod_client::views::{Meta, MetaOnly};
use isopod_client::{Calls, Change, Informer, ListScope, Patch, Preconditions, Resource, View, decode};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use steps::{Outcome, Step};

/// A resource with these verbs can be migrated.
const VERBS: [&str; 3] = ["update", "patch", "list"];
/// How long a resource that is not served is waited for, and how often it is looked for.
const MISSING: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_secs(2);
/// A namespace in which nothing is: a list of it tells the newest revision and nothing else.
const NOWHERE: &str = "@fake:svm_ns!";

/// A migration, whole: its status is written as upstream's role allows, by an update.
#[derive(Debug, Deserialize)]
#[serde(from = "Value")]
struct Migration {
    meta: Meta,
    object: Value,
}

impl From<Value> for Migration {
    fn from(object: Value) -> Self {
        Migration { meta: decode::from_value(&object["metadata"]).unwrap_or_default(), object }
    }
}

impl View for Migration {
    fn name(&self) -> &str {
        &self.meta.name
    }
    fn namespace(&self) -> &str {
        ""
    }
    fn uid(&self) -> &str {
        &self.meta.uid
    }
    fn resource_version(&self) -> &str {
        &self.meta.resource_version
    }
}

impl Migration {
    fn resource() -> Resource {
        Resource::cluster("storagemigration.k8s.io", "v1", "storageversionmigrations")
    }

    /// Group and name of what is migrated.
    fn target(&self) -> (&str, &str) {
        let of = |key: &str| self.object["spec"]["resource"][key].as_str().unwrap_or_default();
        (of("group"), of("resource"))
    }
}

struct Migrator {
    context: Context,
    migrations: Informer<Migration>,
}

/// Keys are migrations; a change of one may be the turn of another.
pub async fn run(context: Context) {
    let migrations = context.informer::<Migration>(Migration::resource());
    migrations.synced().await;
    let queue = WorkQueue::new(context.clock.clone());
    let (again, all) = (queue.clone(), migrations.clone());
    context.feed(&migrations, move |change| {
        if let Change::Applied { new: changed, .. } | Change::Deleted(changed) = change {
            let same = all.list().into_iter().filter(|m| m.target() == changed.target());
            same.for_each(|m| again.add(Key::new("", &m.meta.name)));
        }
    });
    let controller = Arc::new(Migrator { context: context.clone(), migrations });
    context.work(controller, queue, 5).await;
}

#[async_trait]
impl Controller for Migrator {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        let Some(migration) = self.migrations.get("", &key.name) else { return Ok(None) };
        let all = self.migrations.list();
        let others = all.iter().filter(|m| m.target() == migration.target()).map(|m| &m.object);
        match steps::next(&migration.object, others) {
            Step::Nothing => {}
            Step::Begin => {
                let message = format!("Migration {} is running", key.name);
                self.tell_definition(&migration, |d| steps::begun(d, &message, &self.now())).await?;
                self.write(&migration, |o| steps::begin(o, &self.now())).await?;
            }
            Step::Locate => return self.locate(&migration).await,
            Step::Migrate(revision) => return self.migrate(&migration, revision).await,
            Step::End => {
                let succeeded = steps::is(&migration.object, "Succeeded");
                self.tell_definition(&migration, |d| steps::ended(d, succeeded, &self.now())).await?;
                self.write(&migration, |o| steps::end(o, &self.now())).await?;
            }
        }
        Ok(None)
    }
}

impl Migrator {
    fn now(&self) -> String {
        isopod_api::time::format(self.context.clock.now())
    }

    fn is_young(&self, migration: &Migration) -> bool {
        let made = migration.object["metadata"]["creationTimestamp"].as_str().and_then(isopod_api::time::parse);
        made.is_some_and(|at| self.context.clock.now().duration_since(at).as_secs() < MISSING.as_secs() as i64)
    }

    async fn found(&self, migration: &Migration) -> Result<Option<Discovered>, Error> {
        let (group, resource) = migration.target();
        let all = discovery::preferred(&self.context.client).await?;
        Ok(all.into_iter().find(|d| d.resource.gvr.group == group && d.resource.gvr.resource == resource))
    }

    /// Finds out up to which revision objects may be of an older version.
    async fn locate(&self, migration: &Migration) -> Result<Option<Duration>, Error> {
        let Some(found) = self.found(migration).await? else {
            if self.is_young(migration) {
                return Ok(Some(AGAIN));
            }
            self.fail(migration, "resource does not exist in discovery").await?;
            return Ok(None);
        };
        if !VERBS.iter().all(|v| found.can(v)) {
            let gvr = &found.resource.gvr;
            let named = format!("{}/{}, Resource={}", gvr.group, gvr.version, gvr.resource);
            let why = format!("resource {named:?} does not support discovery operations: [{}]", VERBS.join(" "));
            self.fail(migration, &why).await?;
            return Ok(None);
        }
        let revision = self.context.calls(found.resource).revision(NOWHERE).await?;
        self.write(migration, |o| o["status"]["resourceVersion"] = revision.into()).await?;
        Ok(None)
    }

    /// Writes every object that has not been written since.
    async fn migrate(&self, migration: &Migration, revision: u64) -> Result<Option<Duration>, Error> {
        let Some(found) = self.found(migration).await? else {
            if self.is_young(migration) {
                return Ok(Some(AGAIN));
            }
            self.fail(migration, "migration encountered unhandled error: unable to obtain GVR from discovery").await?;
            return Ok(None);
        };
        let calls = self.context.calls(found.resource.clone());
        let objects: Vec<MetaOnly> = calls.list_metadata(&ListScope::all()).await?;
        let total = objects.len();
        let older = |o: &&MetaOnly| o.metadata.resource_version.parse().is_ok_and(|v: u64| v <= revision);
        let older: Vec<&MetaOnly> = objects.iter().filter(older).collect();
        for (done, object) in older.iter().enumerate() {
            let Err(failed) = touch(&calls, &found, &object.metadata).await else { continue };
            let left = older.len() - done;
            let why = failed.to_string();
            if steps::is_passing(failed.status().map(|s| s.code)) {
                self.write(migration, |o| steps::progress(o, left, total, Some(&why), &self.now())).await?;
                return Err(failed.into());
            }
            let outcome = Outcome::Failed(format!(
                "{left}/{total} not yet migrated. migration encountered unhandled error: {why}"
            ));
            self.write(migration, |o| steps::finish(o, left, total, &outcome, &self.now())).await?;
            return Ok(None);
        }
        self.write(migration, |o| steps::finish(o, 0, total, &Outcome::Succeeded, &self.now())).await?;
        Ok(None)
    }

    async fn fail(&self, migration: &Migration, why: &str) -> Result<(), Error> {
        self.write(migration, |o| steps::failed(o, why, &self.now())).await
    }

    async fn write(&self, migration: &Migration, change: impl FnOnce(&mut Value)) -> Result<(), Error> {
        let mut object = migration.object.clone();
        change(&mut object);
        if object != migration.object {
            let calls = self.context.calls(Migration::resource());
            calls.update::<Value>("", &migration.meta.name, Some("status"), &object).await?;
        }
        Ok(())
    }

    /// Changes the status of the definition of what is migrated, if it is a custom resource.
    async fn tell_definition(&self, migration: &Migration, change: impl FnOnce(&mut Value)) -> Result<(), Error> {
        let calls = self.context.calls(Resource::cluster("apiextensions.k8s.io", "v1", "customresourcedefinitions"));
        let (group, resource) = migration.target();
        let name = format!("{resource}.{group}");
        let Some(definition) = calls.find::<Value>("", &name).await? else { return Ok(()) };
        let mut changed = definition.clone();
        change(&mut changed);
        // As it was read: else its generation is another.
        let metadata = json!({"resourceVersion": definition["metadata"]["resourceVersion"]});
        let patch = Patch::Merge(json!({"metadata": metadata, "status": changed["status"]}));
        calls.patch::<Value>("", &name, Some("status"), patch, &Preconditions::default()).await?;
        Ok(())
    }
}

/// Writes an object without changing it. One that was written or deleted meanwhile needs that no more.
async fn touch(calls: &Calls, found: &Discovered, meta: &Meta) -> Result<(), isopod_client::Error> {
    let same = json!({"apiVersion": found.resource.api_version(), "kind": found.kind,
        "metadata": {"resourceVersion": meta.resource_version}});
    let always = Preconditions::default();
    match calls.patch::<Value>(&meta.namespace, &meta.name, None, Patch::Merge(same), &always).await {
        Err(e) if !e.is_conflict() && !e.is_not_found() => Err(e),
        _ => Ok(()),
    }
}
