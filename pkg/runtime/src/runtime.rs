//! The runtime as one value: what it knows of sandboxes and containers, its start, and what it hears from the shims.
//!
//! Invariants: the table in memory mirrors the records on disk and the shims' words; a lock on it is never held over a
//! system call that may block or an `await`.

use crate::config::RuntimeConfig;
use crate::image::registries::Registries;
use crate::image::{Puller, Store};
use crate::persist;
use crate::records::{ContainerRecord, Paths, SandboxRecord, load};
use crate::shim::Shim;
use crate::types::{
    ContainerState, ContainerStatus, Nanos, Result, RuntimeError, RuntimeEvent, SandboxState, SandboxStatus,
};
use isopod_base::errors::Chain;
use isopod_shim_protocol::{Event, Exit, Request, Response};
use isopod_sys::cgroup::Hierarchies;
use isopod_sys::mount;
use isopod_sys::process::SealedProgram;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::{broadcast, watch};

/// Events that a slow subscriber may be behind before it is told to look at everything again.
const EVENTS: usize = 1024;

pub struct IsopodRuntime {
    me: Weak<IsopodRuntime>,
    pub(crate) config: RuntimeConfig,
    pub(crate) paths: Paths,
    pub(crate) hierarchies: Hierarchies,
    pub(crate) program: SealedProgram,
    pub(crate) store: Arc<Store>,
    pub(crate) puller: Puller,
    pub(crate) table: Mutex<Table>,
    pub(crate) events: broadcast::Sender<RuntimeEvent>,
    /// Moves whenever the table does.
    pub(crate) changed: watch::Sender<()>,
}

#[derive(Default)]
pub(crate) struct Table {
    pub sandboxes: BTreeMap<String, Sandbox>,
    pub containers: BTreeMap<String, Container>,
}

#[derive(Clone)]
pub(crate) struct Sandbox {
    pub record: SandboxRecord,
    /// `None`: it ended.
    pub shim: Option<Arc<Shim>>,
    /// The first process of a shared process namespace.
    pub pid1: Option<i32>,
}

#[derive(Clone)]
pub(crate) struct Container {
    pub record: ContainerRecord,
    pub exit: Option<Exit>,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot {what}")]
    Io {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot open the image store")]
    Images(#[from] crate::image::ImageError),
    #[error(transparent)]
    Registries(#[from] crate::image::registries::RegistriesError),
    #[error("cannot put the pod network in order")]
    Network(#[from] crate::network::NetworkError),
}

pub(crate) fn now() -> Nanos {
    jiff::Timestamp::now().as_nanosecond() as Nanos
}

pub(crate) fn io_error(context: impl Into<String>) -> impl FnOnce(io::Error) -> RuntimeError {
    let context = context.into();
    move |source| RuntimeError::Io { context, source }
}

/// Runs what blocks where blocking is allowed.
pub(crate) async fn blocking<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(f).await.map_err(|e| io_error("run a blocking step")(io::Error::other(e)))
}

impl IsopodRuntime {
    /// Opens the runtime and finds again what an earlier one started. Call inside a tokio runtime.
    pub async fn open(config: RuntimeConfig) -> std::result::Result<Arc<Self>, OpenError> {
        // The TLS provider that image pulls use; set already when the program uses TLS elsewhere.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let failed = |what: &'static str| move |source: io::Error| OpenError::Io { what, source };
        let paths = Paths { data: config.data_dir.clone(), state: config.state_dir.clone() };
        for dir in [paths.sandboxes(), paths.containers(), paths.shims(), paths.libcontainer(), paths.mounts()] {
            std::fs::create_dir_all(&dir).map_err(failed("make the runtime's directories"))?;
        }
        mount::make_private_place(&paths.mounts()).map_err(failed("make a private place for mounts"))?;
        for dir in ["rootfs", "shm"] {
            std::fs::create_dir_all(paths.mounts().join(dir)).map_err(failed("make the runtime's directories"))?;
        }
        let registries = Registries::load(&config.registries)?;
        let store = Arc::new(Store::open(&paths.images())?);
        let hierarchies = Hierarchies::detect().map_err(failed("find the control groups"))?;
        let program = zstd::Decoder::new(config.shim).and_then(|shim| SealedProgram::new("isopod-shim", shim));
        let program = program.map_err(failed("load the shim into memory"))?;
        let runtime = Arc::new_cyclic(|me| IsopodRuntime {
            me: me.clone(),
            hierarchies,
            program,
            puller: Puller::new(store.clone(), registries),
            store,
            table: Mutex::default(),
            events: broadcast::Sender::new(EVENTS),
            changed: watch::Sender::new(()),
            paths,
            config,
        });
        runtime.adopt().map_err(failed("read the runtime's records"))?;
        if let Some(network) = &runtime.config.network {
            let live = |s: &&Sandbox| s.shim.is_some();
            let living = runtime.table.lock().sandboxes.values().filter(live).map(|s| s.record.id.clone()).collect();
            network.reconcile(&living)?;
        }
        Ok(runtime)
    }

    /// For what outlives a call.
    pub(crate) fn arc(&self) -> Arc<Self> {
        self.me.upgrade().expect("the value lives in an Arc only: `open` makes no other")
    }

    /// Reads the records and connects to the shims that still run.
    fn adopt(self: &Arc<Self>) -> io::Result<()> {
        let mut table = Table::default();
        for record in load::<ContainerRecord>(&self.paths.containers(), "container.json")? {
            let exit = self.read_exit(&record.id);
            table.containers.insert(record.id.clone(), Container { record, exit });
        }
        let mut live = Vec::new();
        for record in load::<SandboxRecord>(&self.paths.sandboxes(), "sandbox.json")? {
            let dir = self.paths.shim(&record.id);
            let shim = Shim::adopt(&record.id, &dir, record.shim_pid, record.shim_start).map(Arc::new);
            if let Some(shim) = &shim {
                live.push((record.id.clone(), shim.clone()));
            }
            table.sandboxes.insert(record.id.clone(), Sandbox { record, shim, pid1: None });
        }
        let Table { sandboxes, containers } = &table;
        tracing::debug!(sandboxes = sandboxes.len(), running = live.len(), containers = containers.len(), "adopted");
        *self.table.lock() = table;
        for (id, shim) in live {
            self.watch(id, shim);
        }
        Ok(())
    }

    /// What the shim wrote when the container ended.
    pub(crate) fn read_exit(&self, container: &str) -> Option<Exit> {
        persist::read_json(&self.paths.container(container).join("exit.json")).ok().flatten()
    }

    /// Listens to a shim until it ends.
    pub(crate) fn watch(self: &Arc<Self>, sandbox: String, shim: Arc<Shim>) {
        let runtime = Arc::downgrade(self);
        tokio::spawn(async move {
            if let Err(e) = listen(&runtime, &sandbox, &shim).await {
                tracing::debug!(sandbox, error = %Chain(&e), "lost the shim");
            }
            let reaped = shim.clone();
            // Whether it ended or hangs up for another reason: one that does not speak is of no use.
            let _ = blocking(move || {
                let _ = isopod_sys::process::signal(reaped.pid, nix::libc::SIGKILL);
                reaped.reap();
            })
            .await;
            if let Some(runtime) = runtime.upgrade() {
                runtime.shim_ended(&sandbox);
            }
        });
    }

    fn heard(&self, sandbox: &str, response: Response) {
        match response {
            Response::State { containers, pid1 } => {
                if let Some(s) = self.table.lock().sandboxes.get_mut(sandbox) {
                    s.pid1 = pid1;
                }
                for c in containers {
                    if let Some(exit) = c.exit {
                        self.exited(&c.id, exit);
                    }
                }
            }
            Response::Event(Event::Exited { id, exit }) => self.exited(&id, exit),
            _ => {}
        }
        self.changed.send_replace(());
    }

    pub(crate) fn exited(&self, id: &str, exit: Exit) {
        let event = {
            let mut table = self.table.lock();
            let Some(c) = table.containers.get_mut(id).filter(|c| c.exit.is_none()) else { return };
            c.exit = Some(exit);
            RuntimeEvent::ContainerExited {
                sandbox_id: c.record.sandbox_id.clone(),
                container_id: id.to_owned(),
                pod_uid: c.record.pod_uid.clone(),
            }
        };
        self.changed.send_replace(());
        let _ = self.events.send(event);
    }

    /// The sandbox lives no longer, and with it nothing in it: what the shim could not say is read or made up.
    fn shim_ended(&self, sandbox: &str) {
        let (uid, group, running) = {
            let mut table = self.table.lock();
            let Some(s) = table.sandboxes.get_mut(sandbox) else { return };
            s.shim = None;
            let (uid, group) = (s.record.config.id.uid.clone(), s.record.config.cgroup_parent.clone());
            let running =
                |c: &&Container| c.record.sandbox_id == sandbox && c.exit.is_none() && c.record.started_at != 0;
            let running: Vec<String> = table.containers.values().filter(running).map(|c| c.record.id.clone()).collect();
            (uid, group, running)
        };
        if let Ok(group) = self.hierarchies.group(&group) {
            let _ = group.signal(nix::libc::SIGKILL);
        }
        for id in running {
            let unknown = || Exit { code: 137, signal: Some(nix::libc::SIGKILL), at: now(), oom_killed: false };
            self.exited(&id, self.read_exit(&id).unwrap_or_else(unknown));
        }
        self.changed.send_replace(());
        let _ = self.events.send(RuntimeEvent::SandboxExited { sandbox_id: sandbox.into(), pod_uid: uid });
    }

    pub(crate) fn sandbox_entry(&self, id: &str) -> Result<Sandbox> {
        self.table.lock().sandboxes.get(id).cloned().ok_or_else(|| RuntimeError::NoSuchSandbox(id.into()))
    }

    pub(crate) fn container_entry(&self, id: &str) -> Result<Container> {
        self.table.lock().containers.get(id).cloned().ok_or_else(|| RuntimeError::NoSuchContainer(id.into()))
    }

    /// The shim of a container's sandbox, while it lives.
    pub(crate) fn shim_of(&self, container: &Container) -> Option<Arc<Shim>> {
        self.table.lock().sandboxes.get(&container.record.sandbox_id)?.shim.clone()
    }

    /// The shim of a container that runs.
    pub(crate) fn running(&self, id: &str) -> Result<(Container, Arc<Shim>)> {
        let container = self.container_entry(id)?;
        let shim = self.shim_of(&container);
        match shim.filter(|_| container.exit.is_none() && container.record.started_at != 0) {
            Some(shim) => Ok((container, shim)),
            None => Err(RuntimeError::NotRunning(id.into())),
        }
    }

    /// Waits until the container has ended; `false`: it has not in this time.
    pub(crate) async fn wait_exit(&self, id: &str, patience: Duration) -> bool {
        let mut changed = self.changed.subscribe();
        let ended = async {
            while self.container_entry(id).is_ok_and(|c| c.exit.is_none()) {
                if changed.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(patience, ended).await.is_ok()
    }

    pub(crate) fn sandbox_status(s: &Sandbox) -> SandboxStatus {
        SandboxStatus {
            id: s.record.id.clone(),
            config: s.record.config.clone(),
            state: if s.shim.is_some() { SandboxState::Ready } else { SandboxState::NotReady },
            created_at: s.record.created_at,
            ips: s.record.ips.clone(),
            pid: s.record.shim_pid,
        }
    }

    pub(crate) fn container_status(&self, c: &Container) -> ContainerStatus {
        let live = self.shim_of(c).is_some();
        let r = &c.record;
        let mut status = ContainerStatus {
            id: r.id.clone(),
            sandbox_id: r.sandbox_id.clone(),
            config: r.config.clone(),
            state: ContainerState::Created,
            created_at: r.created_at,
            started_at: r.started_at,
            finished_at: 0,
            exit_code: 0,
            signal: None,
            reason: String::new(),
            message: String::new(),
            pid: r.pid,
            uid: r.uid,
            log_path: r.log_path.clone(),
            mounts: r.config.mounts.clone(),
        };
        let mut end = |code, signal, at, reason: &str| {
            status.state = ContainerState::Exited;
            (status.exit_code, status.signal, status.finished_at, status.reason) = (code, signal, at, reason.into());
        };
        match (&c.exit, &r.start_failure) {
            (_, Some(why)) => {
                end(128, None, r.created_at, "StartError");
                status.message = why.clone();
            }
            (Some(e), None) => {
                let reason = match e {
                    Exit { oom_killed: true, .. } => "OOMKilled",
                    Exit { code: 0, .. } => "Completed",
                    _ => "Error",
                };
                end(e.code, e.signal, e.at, reason);
            }
            (None, None) if r.started_at != 0 && live => status.state = ContainerState::Running,
            // The machine went down under it.
            (None, None) if r.started_at != 0 => end(255, None, r.started_at, "Unknown"),
            (None, None) => {}
        }
        status
    }
}

async fn listen(runtime: &Weak<IsopodRuntime>, sandbox: &str, shim: &Shim) -> Result<()> {
    let mut connection = shim.connect().await?;
    connection.send(&Request::Subscribe, &[]).await.map_err(|e| shim.failed(e))?;
    while let Some(response) = connection.next().await.map_err(|e| shim.failed(e))? {
        match runtime.upgrade() {
            Some(runtime) => runtime.heard(sandbox, response),
            None => std::future::pending().await,
        }
    }
    Ok(())
}
