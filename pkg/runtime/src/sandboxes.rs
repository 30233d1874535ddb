//! Sandboxes: made in an order that leaves a record of everything before it exists, taken down in the reverse one.

use crate::persist;
use crate::records::SandboxRecord;
use crate::runtime::{IsopodRuntime, Sandbox, blocking, io_error, now};
use crate::shim::Shim;
use crate::types::{DnsConfig, NamespaceMode, Resources, Result, RuntimeEvent, SandboxConfig};
use isopod_shim_protocol::{Request, ShimConfig};
use isopod_sys::cgroup::Limits;
use isopod_sys::mount;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long killed processes may take to vanish.
pub(crate) const VANISH: Duration = Duration::from_secs(10);
/// Docker's and containerd's size of `/dev/shm`.
const SHM: &str = "mode=1777,size=65536k";

pub(crate) fn new_id() -> String {
    format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple())
}

pub(crate) fn limits(r: &Resources, oom_group: bool) -> Limits {
    Limits {
        cpu_shares: r.cpu_shares,
        cpu_quota: r.cpu_quota,
        cpu_period: r.cpu_period,
        cpuset_cpus: r.cpuset_cpus.clone(),
        memory: r.memory_limit,
        pids: r.pids_limit,
        hugepages: r.hugepages.clone(),
        oom_group,
    }
}

fn resolv_conf(dns: &DnsConfig) -> io::Result<String> {
    if *dns == DnsConfig::default() {
        return match std::fs::read_to_string("/etc/resolv.conf") {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            other => other,
        };
    }
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    dns.servers.iter().for_each(|s| text.push_str(&format!("nameserver {s}\n")));
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    Ok(text)
}

impl IsopodRuntime {
    pub(crate) async fn make_sandbox(self: &Arc<Self>, config: SandboxConfig) -> Result<String> {
        let id = new_id();
        let record = SandboxRecord {
            id: id.clone(),
            config,
            created_at: now(),
            ips: vec![],
            shim_pid: 0,
            shim_start: 0,
            stopped: false,
        };
        let (runtime, work) = (self.clone(), record.clone());
        let built = blocking(move || runtime.build_sandbox(work)).await?;
        let (record, shim) = match built {
            Ok(built) => built,
            Err(e) => {
                let runtime = self.clone();
                blocking(move || runtime.tear_down(&record)).await?;
                return Err(e);
            }
        };
        let shim = Arc::new(shim);
        let entry = Sandbox { record, shim: Some(shim.clone()), pid1: None };
        self.table.lock().sandboxes.insert(id.clone(), entry);
        // The first process of a shared process namespace is known before any container wants it.
        if let isopod_shim_protocol::Response::State { pid1, .. } = shim.call(&Request::State).await?
            && let Some(s) = self.table.lock().sandboxes.get_mut(&id)
        {
            s.pid1 = pid1;
        }
        self.watch(id.clone(), shim);
        Ok(id)
    }

    fn build_sandbox(&self, mut record: SandboxRecord) -> Result<(SandboxRecord, Shim)> {
        let (id, config) = (record.id.clone(), record.config.clone());
        let dir = self.paths.sandbox(&id);
        std::fs::create_dir_all(&dir).map_err(io_error("make the sandbox's directory"))?;
        record.save(&self.paths).map_err(io_error("write the sandbox's record"))?;
        let files = || -> io::Result<()> {
            std::fs::write(dir.join("resolv.conf"), resolv_conf(&config.dns)?)?;
            std::fs::write(dir.join("hostname"), format!("{}\n", self.hostname(&config)))?;
            std::fs::create_dir_all(&config.log_directory)
        };
        files().map_err(io_error("write the sandbox's files"))?;
        let group = self.hierarchies.group(&config.cgroup_parent).map_err(io_error("name the pod's control group"))?;
        group.create().map_err(io_error("make the pod's control group"))?;
        group.apply(&limits(&config.resources, false)).map_err(io_error("limit the pod's control group"))?;
        if config.ipc != NamespaceMode::Node {
            let shm = self.paths.shm(&id);
            let mounted = std::fs::create_dir_all(&shm).and_then(|()| mount::tmpfs(&shm, SHM));
            mounted.map_err(io_error("mount the pod's /dev/shm"))?;
        }
        let host_network = config.network == NamespaceMode::Node;
        let shim = Shim::spawn(
            &self.program,
            &self.paths.shim(&id),
            &ShimConfig {
                sandbox_id: id.clone(),
                hostname: self.hostname(&config),
                new_network: !host_network,
                new_ipc: config.ipc != NamespaceMode::Node,
                // With the node's network goes the node's name, as upstream has it.
                new_uts: !host_network,
                shared_pid: config.pid == NamespaceMode::Pod,
                sysctls: config.sysctls.clone().into_iter().collect(),
                cgroup: format!("{}/shims", self.config.cgroup_root),
                parent: std::process::id() as i32,
            },
        )?;
        (record.shim_pid, record.shim_start) = (shim.pid, shim.start);
        record.save(&self.paths).map_err(io_error("write the sandbox's record"))?;
        let attached = (|| -> Result<Vec<IpAddr>> {
            match &self.config.network {
                Some(network) if !host_network => {
                    let netns = PathBuf::from(format!("/proc/{}/ns/net", shim.pid));
                    Ok(network.attach(&id, &netns)?)
                }
                _ => Ok(vec![]),
            }
        })();
        match attached {
            Ok(ips) => record.ips = ips,
            Err(e) => {
                let _ = isopod_sys::process::signal(shim.pid, nix::libc::SIGKILL);
                shim.reap();
                return Err(e);
            }
        }
        record.save(&self.paths).map_err(io_error("write the sandbox's record"))?;
        Ok((record, shim))
    }

    fn hostname(&self, config: &SandboxConfig) -> String {
        match (config.network, config.hostname.as_str()) {
            (NamespaceMode::Node, _) | (_, "") => {
                nix::unistd::gethostname().map(|h| h.to_string_lossy().into_owned()).unwrap_or_default()
            }
            (_, name) => name.to_owned(),
        }
    }

    /// Takes away all that a sandbox has but its record. Blocks; goes on past what fails, and says it.
    fn release(&self, record: &SandboxRecord) {
        let say = |what: &str, e: &dyn std::fmt::Display| {
            tracing::warn!(sandbox = record.id, error = %e, "could not {what}");
        };
        if record.config.network != NamespaceMode::Node
            && let Some(network) = &self.config.network
            && let Err(e) = network.detach(&record.id)
        {
            say("take the network down", &isopod_base::errors::Chain(&e));
        }
        match self.hierarchies.group(&record.config.cgroup_parent).map(|g| g.remove(VANISH)) {
            Ok(Ok(())) => {}
            Ok(Err(e)) | Err(e) => say("remove the control group", &e),
        }
        let shm = self.paths.shm(&record.id);
        if let Err(e) = mount::detach(&shm) {
            say("unmount /dev/shm", &e);
        }
        let _ = std::fs::remove_dir(&shm);
        if let Err(e) = persist::remove_tree(&self.paths.shim(&record.id)) {
            say("remove the shim's directory", &e);
        }
    }

    fn tear_down(&self, record: &SandboxRecord) {
        self.release(record);
        if let Err(e) = persist::remove_tree(&self.paths.sandbox(&record.id)) {
            tracing::warn!(sandbox = record.id, error = %e, "could not remove the sandbox's record");
        }
    }

    pub(crate) async fn limit_sandbox(self: &Arc<Self>, id: &str, resources: Resources) -> Result<()> {
        let mut record = self.sandbox_entry(id)?.record;
        record.config.resources = resources.clone();
        let runtime = self.clone();
        let applied = blocking(move || {
            if !record.stopped {
                let group = runtime.hierarchies.group(&record.config.cgroup_parent)?;
                group.apply(&limits(&record.config.resources, false))?;
            }
            record.save(&runtime.paths)
        });
        applied.await?.map_err(io_error(format!("update the control group of sandbox {id}")))?;
        if let Some(s) = self.table.lock().sandboxes.get_mut(id) {
            s.record.config.resources = resources;
        }
        Ok(())
    }

    pub(crate) async fn end_sandbox(self: &Arc<Self>, id: &str) -> Result<()> {
        let Ok(sandbox) = self.sandbox_entry(id) else { return Ok(()) };
        if sandbox.record.stopped {
            return Ok(());
        }
        if let Some(shim) = &sandbox.shim {
            // Its watcher hears the containers' ends, then that the shim is gone.
            if shim.call(&Request::Shutdown).await.is_err() {
                let _ = isopod_sys::process::signal(shim.pid, nix::libc::SIGKILL);
            }
            let mut changed = self.changed.subscribe();
            let gone = async {
                while self.sandbox_entry(id).is_ok_and(|s| s.shim.is_some()) && changed.changed().await.is_ok() {}
            };
            let _ = tokio::time::timeout(VANISH, gone).await;
        }
        let (runtime, mut record) = (self.clone(), sandbox.record.clone());
        record.stopped = true;
        let saved = blocking(move || {
            runtime.release(&record);
            record.save(&runtime.paths).map(|()| record)
        });
        let record = saved.await?.map_err(io_error("write the sandbox's record"))?;
        if let Some(s) = self.table.lock().sandboxes.get_mut(id) {
            (s.record.stopped, s.shim) = (record.stopped, None);
        }
        Ok(())
    }

    pub(crate) async fn delete_sandbox(self: &Arc<Self>, id: &str) -> Result<()> {
        let Ok(sandbox) = self.sandbox_entry(id) else { return Ok(()) };
        self.end_sandbox(id).await?;
        let members = |table: &crate::runtime::Table| -> Vec<String> {
            let of_it = table.containers.values().filter(|c| c.record.sandbox_id == id);
            of_it.map(|c| c.record.id.clone()).collect()
        };
        let members = members(&self.table.lock());
        for container in members {
            self.delete_container(&container).await?;
        }
        let dir = self.paths.sandbox(id);
        blocking(move || remove(&dir)).await?.map_err(io_error("remove the sandbox's record"))?;
        self.table.lock().sandboxes.remove(id);
        let uid = sandbox.record.config.id.uid;
        let _ = self.events.send(RuntimeEvent::SandboxExited { sandbox_id: id.into(), pod_uid: uid });
        Ok(())
    }
}

fn remove(dir: &Path) -> io::Result<()> {
    persist::remove_tree(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_settings_become_a_file() {
        let list = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        let dns =
            DnsConfig { servers: list(&["10.43.0.10"]), searches: list(&["a.b", "b"]), options: list(&["ndots:5"]) };
        assert_eq!(resolv_conf(&dns).unwrap(), "search a.b b\nnameserver 10.43.0.10\noptions ndots:5\n");
    }

    #[test]
    fn ids_are_64_hex_digits() {
        let id = new_id();
        assert!(id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit()) && id != new_id());
    }
}
