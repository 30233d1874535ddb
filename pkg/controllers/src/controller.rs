//! What every controller is made of: its context, its feeds from informers to a work queue, and its workers.

use crate::Options;
use crate::all::Row;
use crate::op::Op;
use async_trait::async_trait;
use futures::future::BoxFuture;
use isopod_base::clock::Clock;
use isopod_base::errors::Chain;
use isopod_client::events::Recorder;
use isopod_client::queue::WorkQueue;
use isopod_client::views::Meta;
use isopod_client::{Calls, Change, Informer, Informers, ListScope, Resource, View};
use serde_json::Value;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The name of an object; the namespace of a cluster-scoped one is empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub namespace: String,
    pub name: String,
}

impl Key {
    pub fn new(namespace: &str, name: &str) -> Self {
        Key { namespace: namespace.to_owned(), name: name.to_owned() }
    }
    pub fn of(meta: &Meta) -> Self {
        Key::new(&meta.namespace, &meta.name)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {what}")]
    Call { what: String, source: isopod_client::Error },
    #[error(transparent)]
    Read(#[from] isopod_client::Error),
    #[error("{0} objects in the namespace are not gone yet")]
    ContentLeft(usize),
    #[error("the cluster range {cidr:?} is no range: {why}")]
    Cidr { cidr: String, why: String },
    #[error("no free pod range is left in {0}")]
    RangeFull(String),
    #[error("{0:?} may not have requests of kubelets approved")]
    NotAllowed(String),
    #[error("cannot sign a token: {0}")]
    Token(String),
    #[error("cannot sign as {signer}")]
    Sign { signer: String, source: isopod_pki::PkiError },
}

impl Error {
    /// Nothing to report: another writer was faster, or the object or its namespace is going away.
    fn is_ordinary(&self) -> bool {
        match self {
            Error::Call { source: e, .. } | Error::Read(e) => {
                e.is_conflict() || e.is_not_found() || e.is_namespace_terminating()
            }
            Error::ContentLeft(_) | Error::NotAllowed(_) => true,
            _ => false,
        }
    }
    /// The server's answer, for error messages on objects.
    pub fn api(&self) -> Option<&isopod_client::Error> {
        match self {
            Error::Call { source, .. } | Error::Read(source) => Some(source),
            _ => None,
        }
    }
}

/// What a controller runs with.
#[derive(Clone)]
pub struct Context {
    pub name: &'static str,
    /// Its own identity: everything that it writes goes through this.
    pub client: kube::Client,
    pub informers: Informers,
    pub clock: Clock,
    pub options: Arc<Options>,
    pub stop: CancellationToken,
    pub recorder: Recorder,
}

impl Context {
    pub(crate) fn new(
        row: &Row,
        client: kube::Client,
        informers: Informers,
        clock: Clock,
        options: Arc<Options>,
        stop: CancellationToken,
    ) -> Self {
        let recorder = Recorder::new(client.clone(), row.account, "", clock.clone());
        Context { name: row.name, client, informers, clock, options, stop, recorder }
    }

    pub fn informer<T: View>(&self, resource: Resource) -> Informer<T> {
        self.informers.get(resource, ListScope::all())
    }

    pub fn calls(&self, resource: Resource) -> Calls {
        Calls::new(self.client.clone(), resource)
    }

    /// Does one step of a plan and returns the server's answer.
    pub async fn apply(&self, op: &Op) -> Result<Value, Error> {
        op.apply(&self.client, &self.recorder).await.map_err(|source| Error::Call { what: op.what(), source })
    }

    /// Does the steps in order, up to the first that fails.
    pub async fn apply_all(&self, ops: &[Op]) -> Result<(), Error> {
        for op in ops {
            self.apply(op).await?;
        }
        Ok(())
    }

    /// Calls `react` with every change of `informer`, in order, until the end. The run ends when `react` fails.
    pub fn feed<T: View>(&self, informer: &Informer<T>, react: impl FnMut(Change<T>) + Send + 'static) {
        self.follow(informer.subscribe().each(react));
    }

    /// Apart from [`Context::feed`], so that it is one task for all types.
    fn follow(&self, changes: BoxFuture<'static, ()>) {
        let stop = self.stop.clone();
        tokio::spawn(async move {
            let failed = stop.clone().drop_guard();
            stop.run_until_cancelled(changes).await;
            failed.disarm();
        });
    }

    /// Feeds the key of every object that changes.
    pub fn feed_own<T: View>(&self, informer: &Informer<T>, queue: &WorkQueue<Key>) {
        let queue = queue.clone();
        self.feed(informer, move |change| match change {
            Change::Applied { new: object, .. } | Change::Deleted(object) => {
                queue.add(Key::new(object.namespace(), object.name()));
            }
            Change::Resync => {}
        });
    }

    /// Works on the queue with `workers` tasks until the end. Panics when one of them does.
    pub async fn work(&self, controller: Arc<dyn Controller>, queue: WorkQueue<Key>, workers: usize) {
        queue.measured(&self.options.queues, self.name);
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..workers {
            let (controller, queue, name) = (controller.clone(), queue.clone(), self.name);
            tasks.spawn(async move {
                while let Some(key) = queue.next().await {
                    reconcile_one(&*controller, &queue, &key, name).await;
                    queue.done(&key);
                }
            });
        }
        let failed = tokio::select! {
            () = self.stop.cancelled() => None,
            ended = tasks.join_next() => ended.and_then(Result::err),
        };
        queue.close();
        if let Some(panic) = failed.and_then(|e| e.try_into_panic().ok()) {
            std::panic::resume_unwind(panic);
        }
        while tasks.join_next().await.is_some() {}
    }
}

async fn reconcile_one(controller: &dyn Controller, queue: &WorkQueue<Key>, key: &Key, name: &str) {
    match controller.reconcile(key).await {
        Ok(again) => {
            queue.forget(key);
            if let Some(wait) = again {
                queue.add_after(key.clone(), wait);
            }
        }
        Err(e) => {
            if e.is_ordinary() {
                tracing::debug!(controller = name, object = %key, error = %Chain(&e), "trying again");
            } else {
                tracing::warn!(controller = name, object = %key, error = %Chain(&e), "cannot reconcile; trying again");
            }
            queue.add_rate_limited(key.clone());
        }
    }
}

/// Brings one object to what it should be.
#[async_trait]
pub trait Controller: Send + Sync + 'static {
    /// Looks at everything that concerns the object, does what is to be done, and says when to look again at the latest.
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error>;
}
