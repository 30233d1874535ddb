//! Containers: created as a record and a bundle, started by the pod's shim, stopped with grace, removed whole.

use crate::image::{Image, Merged};
use crate::persist;
use crate::records::ContainerRecord;
use crate::runtime::{Container, IsopodRuntime, blocking, io_error, now};
use crate::sandboxes::{VANISH, limits, new_id};
use crate::service::image_error;
use crate::spec;
use crate::types::{ContainerConfig, ContainerStats, NamespaceMode, Resources, Result, RuntimeError, RuntimeEvent};
use crate::users;
use isopod_shim_protocol::{Request, Response, Rootfs, Start};
use nix::libc::{SIGKILL, SIGTERM};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// `TERM`, `SIGTERM`, `15`, `SIGRTMIN+3`.
fn signal_number(name: &str) -> Option<i32> {
    let name = name.trim().to_ascii_uppercase();
    if let Ok(n) = name.parse::<i32>() {
        return (1..=64).contains(&n).then_some(n);
    }
    let short = name.strip_prefix("SIG").unwrap_or(&name);
    if let Some(n) = short.strip_prefix("RTMIN").map(|r| r.trim_start_matches('+')) {
        return Some(34 + if n.is_empty() { 0 } else { n.parse::<i32>().ok().filter(|n| (0..=30).contains(n))? });
    }
    if let Some(n) = short.strip_prefix("RTMAX").map(|r| r.trim_start_matches('-')) {
        return Some(64 - if n.is_empty() { 0 } else { n.parse::<i32>().ok().filter(|n| (0..=30).contains(n))? });
    }
    format!("SIG{short}").parse::<nix::sys::signal::Signal>().ok().map(|s| s as i32)
}

/// A bundle: the spec, and what of it the runtime itself needs at the start.
#[derive(serde::Serialize, serde::Deserialize)]
struct Launch {
    devices: Option<Vec<isopod_shim_protocol::DeviceRule>>,
    propagation: Vec<(PathBuf, isopod_shim_protocol::Propagation)>,
}

/// Images that a container has mounted.
#[derive(Default)]
struct Mounted {
    /// By the path in the container: the directories to stack, topmost first, or one file.
    sources: BTreeMap<PathBuf, Vec<PathBuf>>,
    lowers: Vec<String>,
}

impl IsopodRuntime {
    pub(crate) async fn make_container(self: &Arc<Self>, sandbox_id: &str, config: ContainerConfig) -> Result<String> {
        let sandbox = self.sandbox_entry(sandbox_id)?;
        if sandbox.shim.is_none() {
            return Err(RuntimeError::CreateContainer(format!("sandbox {sandbox_id} is not running")));
        }
        // No layer goes while it is being taken into use.
        let _in_use = self.store.in_use().await.map_err(|e| image_error(&e))?;
        let find = || self.store.find(&config.image_id).or_else(|| self.store.find(&config.image));
        let image = find().ok_or_else(|| RuntimeError::ImageNotPresent(config.image.clone()))?;
        let pid_namespace = self.pid_namespace(&sandbox, &config)?;
        let (runtime, id) = (self.clone(), new_id());
        let built = blocking(move || {
            let built = runtime.build_container(&id, &sandbox, config, &image, pid_namespace);
            if built.is_err() {
                let _ = persist::remove_tree(&runtime.paths.container(&id));
            }
            built
        });
        let record = built.await??;
        let id = record.id.clone();
        self.table.lock().containers.insert(id.clone(), Container { record, exit: None });
        Ok(id)
    }

    fn pid_namespace(&self, sandbox: &crate::runtime::Sandbox, config: &ContainerConfig) -> Result<Option<PathBuf>> {
        let of = |pid: i32| PathBuf::from(format!("/proc/{pid}/ns/pid"));
        if let Some(target) = &config.target_container_id {
            return Ok(Some(of(self.running(target)?.0.record.pid)));
        }
        match (sandbox.record.config.pid, sandbox.pid1) {
            (NamespaceMode::Pod, Some(pid1)) => Ok(Some(of(pid1))),
            (NamespaceMode::Pod, None) => {
                Err(RuntimeError::CreateContainer("the pod's process namespace has ended".into()))
            }
            _ => Ok(None),
        }
    }

    fn build_container(
        &self,
        id: &str,
        sandbox: &crate::runtime::Sandbox,
        config: ContainerConfig,
        image: &Image,
        pid_namespace: Option<PathBuf>,
    ) -> Result<ContainerRecord> {
        let pod = &sandbox.record.config;
        let lowers = image.lowers();
        let layers = self.store.layers();
        let merged = Merged::new(lowers.iter().map(|l| layers.join(l)).collect());
        let refused = |e: String| RuntimeError::CreateContainer(e);
        let user = users::resolve(&config.security, &image.config.config.user, &merged)
            .map_err(|e| refused(isopod_base::errors::Chain(&e).to_string()))?;
        let mounted = self.mounted_images(&config)?;
        let cgroup = format!("{}/{id}", pod.cgroup_parent);
        let sandbox_dir = self.paths.sandbox(&sandbox.record.id);
        let hostname = std::fs::read_to_string(sandbox_dir.join("hostname")).unwrap_or_default();
        let made = spec::make(&spec::Parts {
            config: &config,
            image: &image.config.config,
            user: &user,
            rootfs: self.paths.rootfs(id),
            cgroup: &cgroup,
            hostname: hostname.trim(),
            pid: pod.pid,
            pid_namespace,
            resolv_conf: sandbox_dir.join("resolv.conf"),
            hostname_file: sandbox_dir.join("hostname"),
            shm: if pod.ipc == NamespaceMode::Node { "/dev/shm".into() } else { self.paths.shm(&sandbox.record.id) },
            seccomp_root: &self.config.seccomp_root,
            images: &mounted.sources,
        })?;
        let stop = config.stop_signal.clone().unwrap_or_else(|| image.config.config.stop_signal.clone());
        let dir = self.paths.container(id);
        let write = || -> io::Result<()> {
            for part in ["upper", "work"] {
                std::fs::create_dir_all(dir.join(part))?;
            }
            std::fs::write(dir.join("config.json"), serde_json::to_vec(&made.spec)?)?;
            let launch = Launch { devices: made.devices, propagation: made.propagation };
            std::fs::write(dir.join("launch.json"), serde_json::to_vec(&launch)?)
        };
        write().map_err(io_error("write the container's bundle"))?;
        let record = ContainerRecord {
            id: id.into(),
            sandbox_id: sandbox.record.id.clone(),
            pod_uid: pod.id.uid.clone(),
            log_path: pod.log_directory.join(&config.log_path),
            created_at: now(),
            started_at: 0,
            pid: 0,
            uid: user.uid,
            cgroup,
            lowers,
            mounted_lowers: mounted.lowers,
            working_dir: made.working_dir,
            stop_signal: signal_number(&stop).unwrap_or(SIGTERM),
            start_failure: None,
            config,
        };
        record.save(&self.paths).map_err(io_error("write the container's record"))?;
        Ok(record)
    }

    /// Where the images are that the container has mounted.
    fn mounted_images(&self, config: &ContainerConfig) -> Result<Mounted> {
        let mut all = Mounted::default();
        let layers = self.store.layers();
        for mount in &config.mounts {
            let Some(wanted) = &mount.image else { continue };
            let image = self.store.find(&wanted.id).ok_or_else(|| RuntimeError::ImageNotPresent(wanted.id.clone()))?;
            let lowers = image.lowers();
            let merged = Merged::new(lowers.iter().map(|l| layers.join(l)).collect());
            let found = merged.places(Path::new(&wanted.sub_path)).map_err(io_error("read the mounted image"))?;
            if found.is_empty() {
                let m = format!("{:?} is not in image {}", wanted.sub_path, wanted.id);
                return Err(RuntimeError::CreateContainer(m));
            }
            all.sources.insert(mount.container_path.clone(), found);
            all.lowers.extend(lowers);
        }
        Ok(all)
    }

    pub(crate) async fn launch_container(self: &Arc<Self>, id: &str) -> Result<()> {
        let container = self.container_entry(id)?;
        if container.record.started_at != 0 || container.record.start_failure.is_some() {
            return Err(RuntimeError::StartContainer(format!("container {id} was started before")));
        }
        let shim =
            self.shim_of(&container).ok_or_else(|| RuntimeError::NotRunning(container.record.sandbox_id.clone()))?;
        let (runtime, record) = (self.clone(), container.record.clone());
        let prepared = blocking(move || runtime.prepare_start(&record)).await?;
        // Before the shim is asked: a short program may have ended by the time its answer is here.
        let asked = now();
        let answer = match prepared {
            Ok(start) => shim.call(&Request::Start(Box::new(start))).await,
            Err(e) => Err(e),
        };
        let event = {
            let mut table = self.table.lock();
            let Some(c) = table.containers.get_mut(id) else { return Ok(()) };
            match &answer {
                Ok(Response::Started { pid }) => (c.record.started_at, c.record.pid) = (asked, *pid),
                Ok(other) => c.record.start_failure = Some(format!("the shim answered {other:?}")),
                Err(RuntimeError::Shim { why, .. }) => c.record.start_failure = Some(why.clone()),
                Err(e) => c.record.start_failure = Some(isopod_base::errors::Chain(e).to_string()),
            }
            if let Err(e) = c.record.save(&self.paths) {
                tracing::warn!(container = id, error = %e, "could not write the container's record");
            }
            if let Some(why) = c.record.start_failure.clone() {
                Err(RuntimeError::StartContainer(why))
            } else {
                Ok(RuntimeEvent::ContainerStarted {
                    sandbox_id: c.record.sandbox_id.clone(),
                    container_id: id.to_owned(),
                    pod_uid: c.record.pod_uid.clone(),
                })
            }
        };
        self.changed.send_replace(());
        let _ = self.events.send(event?);
        Ok(())
    }

    /// Everything but the process.
    fn prepare_start(&self, record: &ContainerRecord) -> Result<Start> {
        let bundle = self.paths.container(&record.id);
        let group = self.hierarchies.group(&record.cgroup).map_err(io_error("name the container's control group"))?;
        group.create().map_err(io_error("make the container's control group"))?;
        let limits = limits(&record.config.resources, true);
        group.apply(&limits).map_err(|e| RuntimeError::StartContainer(e.to_string()))?;
        let target = self.paths.rootfs(&record.id);
        std::fs::create_dir_all(&target).map_err(io_error("make the container's mount point"))?;
        let launch: Launch = persist::read_json(&bundle.join("launch.json"))
            .and_then(|l| l.ok_or_else(|| io::ErrorKind::NotFound.into()))
            .map_err(io_error("read the container's bundle"))?;
        Ok(Start {
            id: record.id.clone(),
            state_root: self.paths.libcontainer(),
            rootfs: Rootfs {
                layers: self.store.layers(),
                lowers: record.lowers.clone(),
                upper: bundle.join("upper"),
                work: bundle.join("work"),
                target,
                working_dir: record.working_dir.clone(),
            },
            bundle,
            cgroup: record.cgroup.clone(),
            devices: launch.devices,
            uid: record.uid,
            propagation: launch.propagation,
            log_path: record.log_path.clone(),
            stdin: record.config.stdin,
            stdin_once: record.config.stdin_once,
            tty: record.config.tty,
        })
    }

    pub(crate) async fn halt_container(self: &Arc<Self>, id: &str, grace: Duration) -> Result<()> {
        let Ok((container, shim)) = self.running(id) else { return Ok(()) };
        let kill = |signal, all| Request::Kill { id: id.to_owned(), signal, all };
        if !grace.is_zero() {
            shim.call(&kill(container.record.stop_signal, false)).await?;
            if self.wait_exit(id, grace).await {
                return Ok(());
            }
        }
        shim.call(&kill(SIGKILL, false)).await?;
        shim.call(&kill(SIGKILL, true)).await?;
        if self.wait_exit(id, VANISH).await {
            return Ok(());
        }
        Err(shim.failed(format!("container {id} does not end after SIGKILL")))
    }

    pub(crate) async fn delete_container(self: &Arc<Self>, id: &str) -> Result<()> {
        let Ok(container) = self.container_entry(id) else { return Ok(()) };
        self.halt_container(id, Duration::ZERO).await?;
        if let Some(shim) = self.shim_of(&container) {
            let _ = shim.call(&Request::Forget { id: id.to_owned() }).await;
        }
        let (runtime, record) = (self.clone(), container.record);
        let removed = blocking(move || {
            runtime.hierarchies.group(&record.cgroup)?.remove(VANISH)?;
            let _ = std::fs::remove_dir(runtime.paths.rootfs(&record.id));
            persist::remove_tree(&runtime.paths.libcontainer().join(&record.id))?;
            persist::remove_tree(&runtime.paths.container(&record.id))
        });
        removed.await?.map_err(io_error(format!("remove container {id}")))?;
        self.table.lock().containers.remove(id);
        Ok(())
    }

    pub(crate) async fn limit_container(
        self: &Arc<Self>,
        id: &str,
        resources: Resources,
        annotations: BTreeMap<String, String>,
    ) -> Result<()> {
        let mut container = self.container_entry(id)?;
        (container.record.config.resources, container.record.config.annotations) = (resources, annotations);
        let (runtime, record) = (self.clone(), container.record.clone());
        let applied = blocking(move || {
            if record.started_at != 0 {
                runtime.hierarchies.group(&record.cgroup)?.apply(&limits(&record.config.resources, true))?;
            }
            record.save(&runtime.paths)
        });
        applied.await?.map_err(io_error(format!("update container {id}")))?;
        if let Some(c) = self.table.lock().containers.get_mut(id) {
            c.record.config = container.record.config;
        }
        Ok(())
    }

    pub(crate) async fn measure_container(self: &Arc<Self>, id: &str) -> Result<ContainerStats> {
        let (container, _) = self.running(id)?;
        let (runtime, record) = (self.clone(), container.record);
        let measured = blocking(move || -> io::Result<ContainerStats> {
            let usage = runtime.hierarchies.group(&record.cgroup)?.usage()?;
            Ok(ContainerStats {
                timestamp: now(),
                cpu_usage: usage.cpu,
                memory_usage: usage.memory,
                memory_working_set: usage.memory_working_set,
                memory_rss: usage.memory_rss,
                pids: usage.pids,
                writable_layer: tree_size(&runtime.paths.container(&record.id).join("upper")),
                id: record.id,
            })
        });
        measured.await?.map_err(io_error(format!("measure container {id}")))
    }

    /// The layers that containers stand on.
    pub(crate) fn lowers_in_use(&self) -> BTreeSet<String> {
        let table = self.table.lock();
        let of = |c: &Container| [c.record.lowers.clone(), c.record.mounted_lowers.clone()].concat();
        table.containers.values().flat_map(of).collect()
    }
}

/// Bytes on disk; what changes while it is counted counts or not.
fn tree_size(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let size = |e: std::fs::DirEntry| match e.metadata() {
        Ok(m) if m.is_dir() => m.blocks() * 512 + tree_size(&e.path()),
        Ok(m) => m.blocks() * 512,
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, want) in [
            ("SIGTERM", Some(15)),
            ("quit", Some(3)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("SIGRTMIN+40", None),
            ("", None),
            ("SIGNOPE", None),
            ("0", None),
        ] {
            assert_eq!(signal_number(text), want, "{text}");
        }
    }
}
