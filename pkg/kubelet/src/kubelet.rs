//! The kubelet as a whole: starts the node's tasks, keeps a worker for each pod, and hands events to them.

use crate::config::{ConfigError, KubeletConfig};
use crate::images::Puller;
use crate::machine::Machine;
use crate::node::NodeKeeper;
use crate::node_status;
use crate::objects::ObjectStore;
use crate::pod::PodExt;
use crate::probe::Prober;
use crate::shared::Shared;
use crate::state::{annotation, label};
use crate::upkeep;
use crate::volumes::{self, HostMounter, Mounter};
use crate::worker::{Known, Worker};
use isopod_base::clock::Clock;
use isopod_base::supervisor::Supervisor;
use isopod_client::events::Recorder;
use isopod_client::views::{Node, Service};
use isopod_client::{Calls, Change, Informer, Informers, ListScope, Resource};
use isopod_runtime::{Runtime, RuntimeError, RuntimeEvent};
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;
use tokio::sync::{Notify, broadcast, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

#[derive(Debug, thiserror::Error)]
pub enum KubeletError {
    #[error("the kubelet's configuration is invalid")]
    Config(#[from] ConfigError),
    #[error("cannot make the kubelet's directory {dir:?}")]
    Directory {
        dir: std::path::PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot read what the runtime has")]
    Runtime(#[from] RuntimeError),
}

struct Handle {
    api: watch::Sender<Option<Arc<Pod>>>,
    wake: Arc<Notify>,
}

/// A running kubelet. Its endpoints are served by [`Kubelet::serve`] and [`Kubelet::router`].
pub struct Kubelet {
    pub(crate) shared: Arc<Shared>,
    pub(crate) pods: Informer<Pod>,
    workers: Mutex<HashMap<String, Handle>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Kubelet {
    /// Starts everything but the HTTPS endpoints and returns at once. The tasks belong to `parts` and end with it.
    /// `client` is the node's own identity (`system:node:<name>`).
    pub async fn start(
        cfg: KubeletConfig,
        informers: &Informers,
        runtime: Arc<dyn Runtime>,
        clock: Clock,
        parts: &Supervisor,
    ) -> Result<Arc<Kubelet>, KubeletError> {
        Self::start_with(cfg, informers, runtime, clock, parts, Arc::new(HostMounter)).await
    }

    pub(crate) async fn start_with(
        cfg: KubeletConfig,
        informers: &Informers,
        runtime: Arc<dyn Runtime>,
        clock: Clock,
        parts: &Supervisor,
        mounter: Arc<dyn Mounter>,
    ) -> Result<Arc<Kubelet>, KubeletError> {
        for dir in [&cfg.root_dir, &cfg.pod_log_dir] {
            let failed = |source| KubeletError::Directory { dir: dir.clone(), source };
            std::fs::create_dir_all(dir).map_err(failed)?;
        }
        let machine = Machine::here(&cfg.root_dir);
        let resources = node_status::resources(&cfg, &machine)?;
        let client = informers.client().clone();
        let recorder = Recorder::new(client.clone(), "kubelet", &cfg.node_name, clock.clone());
        let by_node = ListScope::fields(format!("spec.nodeName={}", cfg.node_name));
        let pods = informers.get::<Pod>(Resource::namespaced("", "v1", "pods"), by_node);
        let shared = Arc::new(Shared {
            allocatable: resources.amounts,
            services: informers.get::<Service>(Service::resource(), ListScope::all()),
            node: informers
                .get::<Node>(Node::resource(), ListScope::fields(format!("metadata.name={}", cfg.node_name))),
            pods: Calls::new(client.clone(), Resource::namespaced("", "v1", "pods")),
            objects: ObjectStore::new(client.clone(), clock.clone(), &cfg.node_name),
            puller: Puller::new(runtime.clone(), recorder.clone(), clock.clone(), cfg.max_parallel_image_pulls),
            prober: Prober { runtime: runtime.clone(), recorder: recorder.clone(), clock: clock.clone() },
            reported: watch::Sender::new(false),
            admitted: Mutex::default(),
            freed: watch::Sender::new(0),
            cfg,
            machine,
            runtime,
            client,
            recorder,
            clock,
            mounter,
        });
        let kubelet = Arc::new(Kubelet {
            shared: shared.clone(),
            pods,
            workers: Mutex::default(),
            tasks: TaskTracker::new(),
            stop: parts.token(),
        });
        // Before what is there is listed: no event is missed.
        let events = shared.runtime.subscribe();
        let known = kubelet.known().await?;
        parts.vital("the kubelet's node status", NodeKeeper::new(shared.clone(), resources).run(parts.token()));
        parts.vital("the kubelet's upkeep", upkeep::run(shared, parts.token()));
        parts.vital("the kubelet's runtime events", kubelet.clone().events(events));
        parts.vital("the kubelet's list of pods", kubelet.clone().follow(known));
        Ok(kubelet)
    }

    /// Returns when the node's status in the API is what this kubelet found since its start.
    pub async fn reported(&self) {
        // The sender lives as long as this kubelet.
        let _ = self.shared.reported.subscribe().wait_for(|reported| *reported).await;
    }

    /// Waits until every pod's worker has ended after the stop.
    pub async fn stopped(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// What the runtime has, by pod uid; with a stand-in for each pod in case the API knows it no more.
    async fn known(&self) -> Result<HashMap<String, (Known, Pod)>, RuntimeError> {
        let mut out: HashMap<String, (Known, Pod)> = HashMap::new();
        for s in self.shared.runtime.sandboxes().await? {
            let id = &s.config.id;
            let entry = out.entry(id.uid.clone()).or_insert_with(|| {
                let meta = json!({"name": id.name, "namespace": id.namespace, "uid": id.uid});
                (
                    Known::default(),
                    serde_json::from_value(json!({"metadata": meta, "spec": {"containers": []}})).unwrap_or_default(),
                )
            });
            entry.0.sandboxes.push(s.id.clone());
        }
        for c in self.shared.runtime.containers().await? {
            let uid = c.config.labels.get(label::POD_UID).cloned().unwrap_or_default();
            let Some(entry) = out.get_mut(&uid) else { continue };
            let grace = c.config.annotations.get(annotation::POD_GRACE).and_then(|g| g.parse().ok());
            if let Some(spec) = entry.1.spec.as_mut() {
                spec.termination_grace_period_seconds = grace;
            }
            entry.0.containers.push(c.id);
        }
        Ok(out)
    }

    /// Follows the API's pods of this node.
    async fn follow(self: Arc<Self>, mut known: HashMap<String, (Known, Pod)>) {
        let mut changes = self.pods.subscribe();
        let mut first = true;
        loop {
            let change = tokio::select! {
                c = changes.recv() => c,
                () = self.stop.cancelled() => return,
            };
            match change {
                None => return,
                Some(Change::Applied { old, new }) => {
                    if let Some(old) = old.filter(|o| o.uid() != new.uid()) {
                        self.gone(&old);
                    }
                    let mine = known.remove(new.uid()).map(|(k, _)| k).unwrap_or_default();
                    self.applied(new, mine);
                }
                Some(Change::Deleted(pod)) => self.gone(&pod),
                Some(Change::Resync) if first => {
                    first = false;
                    for (_, (known, stub)) in known.drain() {
                        tracing::info!(pod = %stub.display(), "the API has no such pod: it is taken away");
                        self.spawn(Arc::new(stub), None, known);
                    }
                    self.remove_orphaned_directories();
                }
                Some(Change::Resync) => {}
            }
        }
    }

    fn applied(self: &Arc<Self>, pod: Arc<Pod>, known: Known) {
        if let Some(handle) = self.workers.lock().get(pod.uid()) {
            handle.api.send_replace(Some(pod));
            handle.wake.notify_one();
            return;
        }
        self.spawn(pod.clone(), Some(pod), known);
    }

    fn gone(&self, pod: &Pod) {
        if let Some(handle) = self.workers.lock().get(pod.uid()) {
            handle.api.send_replace(None);
            handle.wake.notify_one();
        }
    }

    fn spawn(self: &Arc<Self>, pod: Arc<Pod>, api: Option<Arc<Pod>>, known: Known) {
        let (tx, rx) = watch::channel(api);
        let wake = Arc::new(Notify::new());
        let uid = pod.uid().to_owned();
        let worker = Worker::new(self.shared.clone(), pod, rx, wake.clone(), known);
        self.workers.lock().insert(uid.clone(), Handle { api: tx, wake });
        let kubelet = self.clone();
        self.tasks.spawn(async move {
            worker.run(kubelet.stop.clone()).await;
            kubelet.workers.lock().remove(&uid);
        });
    }

    /// Wakes the workers whose sandboxes or containers changed.
    async fn events(self: Arc<Self>, mut events: broadcast::Receiver<RuntimeEvent>) {
        loop {
            let event = tokio::select! {
                e = events.recv() => e,
                () = self.stop.cancelled() => return,
            };
            let uid = match event {
                Ok(
                    RuntimeEvent::ContainerStarted { pod_uid, .. }
                    | RuntimeEvent::ContainerExited { pod_uid, .. }
                    | RuntimeEvent::SandboxExited { pod_uid, .. },
                ) => Some(pod_uid),
                Ok(RuntimeEvent::Lagged) | Err(broadcast::error::RecvError::Lagged(_)) => None,
                Err(broadcast::error::RecvError::Closed) => return,
            };
            let workers = self.workers.lock();
            match uid {
                Some(uid) => workers.get(&uid).into_iter().for_each(|h| h.wake.notify_one()),
                None => workers.values().for_each(|h| h.wake.notify_one()),
            }
        }
    }

    /// Directories of pods that neither the API nor the runtime knows.
    fn remove_orphaned_directories(&self) {
        let known: BTreeMap<String, ()> = self.workers.lock().keys().map(|uid| (uid.clone(), ())).collect();
        let dir = self.shared.cfg.root_dir.join("pods");
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let uid = entry.file_name().to_string_lossy().into_owned();
            if known.contains_key(&uid) {
                continue;
            }
            if let Err(e) = volumes::tear_down(&*self.shared.mounter, &entry.path()) {
                tracing::warn!(dir = %entry.path().display(), error = %e, "cannot remove an orphaned pod's directory");
            }
        }
    }
}
