//! What the runtime is told to make: sandbox and container configurations from a pod. Pure but for subpath binds.

use crate::config::KubeletConfig;
use crate::env::Environment;
use crate::expand::expand;
use crate::network;
use crate::pod::PodExt;
use crate::security::{self, SecurityError};
use crate::state::{annotation, label};
use crate::volumes::{self, Mounter, Paths};
use crate::{resize, resources};
use isopod_runtime::{
    ContainerConfig, ImageMount, ImageStatus, Mount, NamespaceMode, PodId, PortMapping, Propagation, SandboxConfig,
};
use k8s_openapi::api::core::v1::{Container, Pod, VolumeMount};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};

const TERMINATION_PATH: &str = "/dev/termination-log";

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(transparent)]
    Security(#[from] SecurityError),
    #[error("cannot find volume {volume:?} to mount into container {container:?}")]
    NoVolume { volume: String, container: String },
    #[error("subPathExpr {0:?} refers to variables that are not set")]
    SubPathExpr(String),
    #[error("failed to prepare subPath for volumeMount {mount:?} of container {container:?}")]
    SubPath {
        mount: String,
        container: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot prepare {what}")]
    File {
        what: String,
        #[source]
        source: io::Error,
    },
}

pub fn sandbox(pod: &Pod, attempt: u32, cfg: &KubeletConfig) -> SandboxConfig {
    let spec = pod.spec();
    let mut ports = Vec::new();
    let restartable = crate::pod::init_containers(spec).iter().filter(|c| crate::pod::is_sidecar(c));
    for p in restartable.chain(&spec.containers).flat_map(|c| c.ports.iter().flatten()) {
        let (Ok(container_port), Some(Ok(host_port @ 1..))) =
            (u16::try_from(p.container_port), p.host_port.map(u16::try_from))
        else {
            continue;
        };
        ports.push(PortMapping {
            protocol: p.protocol.clone().unwrap_or_else(|| "TCP".into()),
            container_port,
            host_port,
            host_ip: p.host_ip.clone().unwrap_or_default(),
        });
    }
    let sysctls = spec.security_context.iter().flat_map(|s| s.sysctls.iter().flatten());
    let host = |on: Option<bool>| if on == Some(true) { NamespaceMode::Node } else { NamespaceMode::Pod };
    SandboxConfig {
        id: PodId { namespace: pod.ns().into(), name: pod.pod_name().into(), uid: pod.uid().into(), attempt },
        hostname: network::sandbox_hostname(pod, &cfg.cluster_domain),
        network: host(spec.host_network),
        pid: match (spec.host_pid, spec.share_process_namespace) {
            (Some(true), _) => NamespaceMode::Node,
            (_, Some(true)) => NamespaceMode::Pod,
            _ => NamespaceMode::Container,
        },
        ipc: host(spec.host_ipc),
        sysctls: sysctls.map(|s| (s.name.replace('/', "."), s.value.clone())).collect(),
        cgroup_parent: resources::cgroup_parent(&cfg.cgroup_root, pod),
        resources: resources::pod_level(pod, cfg.pod_pids_limit, cfg.cpu_cfs_quota),
        log_directory: cfg.log_dir(pod.ns(), pod.pod_name(), pod.uid()),
        labels: labels(pod, None),
        annotations: pod.metadata.annotations.clone().unwrap_or_default(),
        // The kubelet mounts its own resolv.conf over the runtime's.
        dns: Default::default(),
        // The host network has the ports themselves.
        port_mappings: if pod.host_network() { Vec::new() } else { ports },
    }
}

fn labels(pod: &Pod, container: Option<&str>) -> BTreeMap<String, String> {
    let mut out = pod.metadata.labels.clone().unwrap_or_default();
    for (key, value) in
        [(label::POD_NAME, pod.pod_name()), (label::POD_NAMESPACE, pod.ns()), (label::POD_UID, pod.uid())]
    {
        out.insert(key.to_owned(), value.to_owned());
    }
    if let Some(name) = container {
        out.insert(label::CONTAINER_NAME.to_owned(), name.to_owned());
    }
    out
}

/// What one container's configuration is made of.
pub struct Inputs<'a> {
    pub pod: &'a Pod,
    pub container: &'a Container,
    pub attempt: u32,
    pub image: &'a ImageStatus,
    pub env: Environment,
    pub volumes: &'a Paths,
    pub cfg: &'a KubeletConfig,
    pub mounter: &'a dyn Mounter,
    /// Ids of the images that volumes show, by volume.
    pub images: &'a HashMap<String, String>,
    pub node_memory: u64,
    /// The container that an ephemeral one shares processes with.
    pub target: Option<String>,
}

pub fn container(inputs: Inputs<'_>) -> Result<ContainerConfig, ConfigError> {
    let Inputs { pod, container: c, attempt, image, cfg, .. } = inputs;
    let security = security::of(pod, c, image, cfg.seccomp_default)?;
    let message_file = termination_file(pod, c, attempt, cfg)?;
    let mounts = mounts(&inputs, &message_file)?;
    let env = &inputs.env.vars;
    let lookup = |name: &str| env.iter().rev().find(|(k, _)| k == name).map(|(_, v)| v.clone());
    let expanded = |list: &Option<Vec<String>>| list.iter().flatten().map(|a| expand(a, &lookup)).collect();
    let image_ref = image.repo_digests.first().unwrap_or(&image.id).clone();
    let path = c.termination_message_path.clone().unwrap_or_else(|| TERMINATION_PATH.into());
    let annotations = [
        (annotation::TERMINATION_MESSAGE_PATH, path),
        (annotation::TERMINATION_MESSAGE_POLICY, c.termination_message_policy.clone().unwrap_or_else(|| "File".into())),
        (annotation::TERMINATION_MESSAGE_FILE, message_file.display().to_string()),
        (annotation::IMAGE_REF, image_ref),
        (annotation::RESOURCES, resize::record(c)),
        (annotation::POD_GRACE, pod.spec().termination_grace_period_seconds.unwrap_or(30).to_string()),
    ];
    Ok(ContainerConfig {
        name: c.name.clone(),
        attempt,
        image_id: image.id.clone(),
        image: c.image.clone().unwrap_or_default(),
        command: expanded(&c.command),
        args: expanded(&c.args),
        working_dir: c.working_dir.clone().unwrap_or_default(),
        env: env.clone(),
        mounts,
        devices: Vec::new(),
        log_path: format!("{}/{attempt}.log", c.name).into(),
        stdin: c.stdin == Some(true),
        stdin_once: c.stdin_once == Some(true),
        tty: c.tty == Some(true),
        resources: resources::container(pod, c, inputs.node_memory, cfg.cpu_cfs_quota),
        security,
        labels: labels(pod, Some(&c.name)),
        annotations: annotations.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
        stop_signal: c.lifecycle.as_ref().and_then(|l| l.stop_signal.clone()),
        target_container_id: inputs.target,
    })
}

fn termination_file(pod: &Pod, c: &Container, attempt: u32, cfg: &KubeletConfig) -> Result<PathBuf, ConfigError> {
    let dir = cfg.pod_dir(pod.uid()).join("containers").join(&c.name);
    let file = dir.join(attempt.to_string());
    let make = || {
        use std::os::unix::fs::PermissionsExt;
        std::fs::create_dir_all(&dir)?;
        std::fs::write(&file, b"")?;
        // Whoever the container runs as writes it.
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666))
    };
    make().map_err(|source| ConfigError::File { what: "the termination message file".into(), source })?;
    Ok(file)
}

fn mounts(inputs: &Inputs<'_>, message_file: &Path) -> Result<Vec<Mount>, ConfigError> {
    let (pod, c) = (inputs.pod, inputs.container);
    let mut out = Vec::new();
    for (i, m) in c.volume_mounts.iter().flatten().enumerate() {
        out.push(volume_mount(inputs, i, m)?);
    }
    let taken: Vec<PathBuf> = out.iter().map(|m: &Mount| m.container_path.clone()).collect();
    let mut add = |host: PathBuf, at: &str, read_only: bool| {
        if !taken.iter().any(|t| t == Path::new(at)) {
            out.push(Mount { host_path: host, container_path: at.into(), read_only, ..Default::default() });
        }
    };
    let dir = inputs.cfg.pod_dir(pod.uid());
    let read_only_root = c.security_context.as_ref().and_then(|s| s.read_only_root_filesystem) == Some(true);
    add(dir.join("etc-hosts"), "/etc/hosts", read_only_root);
    add(dir.join("resolv.conf"), "/etc/resolv.conf", read_only_root);
    add(dir.join("hostname"), "/etc/hostname", true);
    let path = c.termination_message_path.as_deref().unwrap_or(TERMINATION_PATH);
    add(message_file.to_path_buf(), path, false);
    Ok(out)
}

fn volume_mount(inputs: &Inputs<'_>, index: usize, m: &VolumeMount) -> Result<Mount, ConfigError> {
    let c = inputs.container;
    let no_volume = || ConfigError::NoVolume { volume: m.name.clone(), container: c.name.clone() };
    let expr = m.sub_path_expr.as_deref().filter(|e| !e.is_empty());
    let sub = match expr {
        Some(expr) => {
            let missing = std::cell::Cell::new(false);
            let value = expand(expr, &|name| {
                let found = inputs.env.vars.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone());
                missing.set(missing.get() || found.is_none());
                found
            });
            if missing.get() {
                return Err(ConfigError::SubPathExpr(expr.to_owned()));
            }
            value
        }
        None => m.sub_path.clone().unwrap_or_default(),
    };
    let container_path =
        if m.mount_path.starts_with('/') { m.mount_path.clone() } else { format!("/{}", m.mount_path) };
    if let Some(id) = inputs.images.get(&m.name) {
        let image = Some(ImageMount { id: id.clone(), sub_path: sub });
        return Ok(Mount { image, container_path: container_path.into(), read_only: true, ..Default::default() });
    }
    let root = inputs.volumes.get(&m.name).ok_or_else(no_volume)?;
    let host_path = if sub.is_empty() {
        root.clone()
    } else {
        let pod_dir = inputs.cfg.pod_dir(inputs.pod.uid());
        volumes::subpath(inputs.mounter, &pod_dir, (&m.name, root), &c.name, index, &sub)
            .map_err(|source| ConfigError::SubPath { mount: m.name.clone(), container: c.name.clone(), source })?
    };
    let volume = inputs.pod.spec().volumes.iter().flatten().find(|v| v.name == m.name);
    // What the kubelet writes is not for pods to change.
    let managed = volume.is_some_and(|v| {
        v.config_map.is_some() || v.secret.is_some() || v.downward_api.is_some() || v.projected.is_some()
    });
    Ok(Mount {
        host_path,
        image: None,
        container_path: container_path.into(),
        read_only: m.read_only == Some(true) || managed,
        recursive_read_only: m.read_only == Some(true)
            && matches!(m.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible")),
        propagation: match m.mount_propagation.as_deref() {
            Some("HostToContainer") => Propagation::HostToContainer,
            Some("Bidirectional") => Propagation::Bidirectional,
            _ => Propagation::Private,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sandboxes_carry_namespaces_ports_and_cgroup() {
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {
            "shareProcessNamespace": true,
            "securityContext": {"sysctls": [{"name": "net/ipv4/tcp_syncookies", "value": "1"}]},
            "containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 8080}, {"containerPort": 81}]}]}}))
            .unwrap();
        let s = sandbox(&pod, 2, &KubeletConfig::default());
        assert_eq!((s.pid, s.network, s.ipc), (NamespaceMode::Pod, NamespaceMode::Pod, NamespaceMode::Pod));
        assert_eq!(s.port_mappings.len(), 1);
        assert_eq!(s.port_mappings[0].protocol, "TCP");
        assert_eq!(s.cgroup_parent, "/isopod/kubepods/besteffort/podu");
        assert_eq!(s.sysctls["net.ipv4.tcp_syncookies"], "1");
        assert_eq!((s.id.attempt, s.labels[label::POD_UID].as_str()), (2, "u"));
        assert_eq!(s.log_directory, Path::new("/var/log/pods/n_p_u"));
    }
}
