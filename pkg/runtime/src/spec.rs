//! The OCI runtime spec of a container: CRI's request and the image's wishes, with containerd's defaults.

use crate::capabilities;
use crate::image::RunConfig;
use crate::seccomp;
use crate::types::{ContainerConfig, Mount, NamespaceMode, Propagation, RuntimeError, SeccompProfile};
use crate::users::User;
use isopod_shim_protocol as protocol;
use isopod_shim_protocol::DeviceRule;
use nix::sys::stat::{SFlag, major, minor, stat};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The kernel takes one page of options for a mount.
const MAX_MOUNT_DATA: usize = 4000;
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const MASKED: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What the spec is made of besides the request.
pub struct Parts<'a> {
    pub config: &'a ContainerConfig,
    pub image: &'a RunConfig,
    pub user: &'a User,
    pub rootfs: PathBuf,
    pub cgroup: &'a str,
    pub hostname: &'a str,
    pub pid: NamespaceMode,
    /// The file of a process namespace to join, for `Pod` and for a target container.
    pub pid_namespace: Option<PathBuf>,
    pub resolv_conf: PathBuf,
    pub hostname_file: PathBuf,
    pub shm: PathBuf,
    /// Where mounted images are, by their place in the container.
    pub images: &'a BTreeMap<PathBuf, Vec<PathBuf>>,
    pub seccomp_root: &'a Path,
}

pub struct Made {
    pub spec: Value,
    pub devices: Option<Vec<DeviceRule>>,
    pub propagation: Vec<(PathBuf, protocol::Propagation)>,
    pub working_dir: PathBuf,
}

fn refused(text: impl ToString) -> RuntimeError {
    RuntimeError::CreateContainer(text.to_string())
}

pub fn make(parts: &Parts<'_>) -> Result<Made, RuntimeError> {
    let security = &parts.config.security;
    let granted = capabilities::granted(security).map_err(refused)?;
    let args = args(parts.config, parts.image)?;
    let working_dir = working_dir(parts);
    let mut process = json!({
        "terminal": parts.config.tty,
        "user": {"uid": parts.user.uid, "gid": parts.user.gid, "additionalGids": parts.user.groups},
        "args": args,
        "env": env(parts),
        "cwd": working_dir,
        "capabilities": {
            "bounding": granted, "effective": granted, "permitted": granted, "inheritable": [], "ambient": [],
        },
        "oomScoreAdj": parts.config.resources.oom_score_adj.unwrap_or(0),
    });
    // Absent, not false, where escalation is allowed: libcontainer then installs the filter before it drops capabilities.
    if security.allow_privilege_escalation == Some(false) && !security.privileged {
        process["noNewPrivileges"] = json!(true);
    }
    let (devices, rules) = devices(parts.config)?;
    let propagation = propagation(&parts.config.mounts);
    let shared = parts.config.mounts.iter().any(|m| m.propagation == Propagation::Bidirectional);
    let mut linux = json!({
        "namespaces": namespaces(parts),
        "cgroupsPath": parts.cgroup,
        "devices": devices,
        "rootfsPropagation": if shared { "shared" } else { "slave" },
    });
    if !security.privileged && !security.unmasked_proc {
        linux["maskedPaths"] = json!(MASKED);
        linux["readonlyPaths"] = json!(READ_ONLY);
    }
    if let Some(profile) = seccomp_profile(parts, &granted)? {
        linux["seccomp"] = profile;
    }
    let spec = json!({
        "ociVersion": "1.2.0",
        "process": process,
        "root": {"path": parts.rootfs, "readonly": security.read_only_root},
        "mounts": mounts(parts)?,
        "linux": linux,
    });
    let devices = (!security.privileged).then_some(rules);
    Ok(Made { spec, devices, propagation, working_dir })
}

/// A command of the request replaces the image's entrypoint, and then the image's default arguments do not count.
fn args(config: &ContainerConfig, image: &RunConfig) -> Result<Vec<String>, RuntimeError> {
    let mut all = config.command.clone();
    if all.is_empty() {
        all.extend(image.entrypoint.iter().cloned());
        all.extend(if config.args.is_empty() { image.cmd.clone() } else { config.args.clone() });
    } else {
        all.extend(config.args.iter().cloned());
    }
    if all.is_empty() { Err(refused("no command specified")) } else { Ok(all) }
}

fn working_dir(parts: &Parts<'_>) -> PathBuf {
    let chosen = [&parts.config.working_dir, &parts.image.working_dir].into_iter().find(|d| !d.is_empty());
    Path::new("/").join(chosen.map_or("", String::as_str))
}

/// The image's, then the request's: a later one replaces an earlier one of its name.
fn env(parts: &Parts<'_>) -> Vec<String> {
    let mut all: Vec<String> = vec![PATH.into(), format!("HOSTNAME={}", parts.hostname)];
    if parts.config.tty {
        all.push("TERM=xterm".into());
    }
    let given = parts.config.env.iter().map(|(k, v)| format!("{k}={v}"));
    for variable in parts.image.env.iter().cloned().chain(given) {
        let name = variable.split('=').next().unwrap_or_default();
        match all.iter_mut().find(|v| v.split('=').next() == Some(name)) {
            Some(old) => *old = variable,
            None => all.push(variable),
        }
    }
    all
}

/// Network, IPC and host name are the shim's own, which its helpers are born into.
fn namespaces(parts: &Parts<'_>) -> Vec<Value> {
    let mut all = vec![json!({"type": "mount"})];
    if !parts.config.security.privileged {
        all.push(json!({"type": "cgroup"}));
    }
    match (&parts.pid_namespace, parts.pid) {
        (Some(path), _) => all.push(json!({"type": "pid", "path": path})),
        (None, NamespaceMode::Node) => {}
        (None, _) => all.push(json!({"type": "pid"})),
    }
    all
}

fn mount(destination: &str, kind: &str, source: &str, options: &str) -> Value {
    let options: Vec<&str> = options.split(',').collect();
    json!({"destination": destination, "type": kind, "source": source, "options": options})
}

fn bind(destination: &Path, source: &Path, options: &[&str]) -> Value {
    let options: Vec<&str> = std::iter::once("rbind").chain(options.iter().copied()).collect();
    json!({"destination": destination, "type": "bind", "source": source, "options": options})
}

fn mounts(parts: &Parts<'_>) -> Result<Vec<Value>, RuntimeError> {
    let security = &parts.config.security;
    let mode = if security.privileged { "rw" } else { "ro" };
    let mut all = vec![
        mount("/proc", "proc", "proc", "nosuid,noexec,nodev"),
        mount("/dev", "tmpfs", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
        mount("/dev/pts", "devpts", "devpts", "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"),
        mount("/dev/mqueue", "mqueue", "mqueue", "nosuid,noexec,nodev"),
        mount("/sys", "sysfs", "sysfs", &format!("nosuid,noexec,nodev,{mode}")),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &format!("nosuid,noexec,nodev,relatime,{mode}")),
    ];
    let given = |path: &str| parts.config.mounts.iter().any(|m| m.container_path == Path::new(path));
    let file_mode = if security.read_only_root { "ro" } else { "rw" };
    for (path, source, mode) in [
        ("/dev/shm", &parts.shm, "rw"),
        ("/etc/resolv.conf", &parts.resolv_conf, file_mode),
        ("/etc/hostname", &parts.hostname_file, file_mode),
    ] {
        if !given(path) {
            all.push(bind(Path::new(path), source, &[mode]));
        }
    }
    let mut wanted: Vec<&Mount> = parts.config.mounts.iter().collect();
    // Parents before what is mounted in them.
    wanted.sort_by_key(|m| m.container_path.components().count());
    for m in wanted {
        if let Some(places) = parts.images.get(&m.container_path) {
            all.push(image(&Path::new("/").join(&m.container_path), places)?);
            continue;
        }
        if !m.host_path.exists() {
            std::fs::create_dir_all(&m.host_path)
                .map_err(|e| refused(format!("failed to mkdir {:?}: {e}", m.host_path.display())))?;
        }
        let mut options = vec![if m.read_only { "ro" } else { "rw" }];
        if m.recursive_read_only {
            options.push("rro");
        }
        all.push(bind(&Path::new("/").join(&m.container_path), &m.host_path, &options));
    }
    Ok(all)
}

/// An image's layers stacked, or what there is of one layer, read-only.
fn image(at: &Path, places: &[PathBuf]) -> Result<Value, RuntimeError> {
    if let [one] = places {
        return Ok(bind(at, one, &["ro"]));
    }
    let escaped = |p: &PathBuf| p.display().to_string().replace('\\', "\\\\").replace(':', "\\:").replace(',', "\\,");
    let stack = format!("lowerdir={}", places.iter().map(escaped).collect::<Vec<_>>().join(":"));
    if stack.len() >= MAX_MOUNT_DATA {
        return Err(refused(format!("the image at {} has too many layers to be mounted", at.display())));
    }
    Ok(json!({"destination": at, "type": "overlay", "source": "overlay", "options": ["ro", stack]}))
}

/// Parents first. Each mount's own, because libcontainer knows one propagation for all.
fn propagation(mounts: &[Mount]) -> Vec<(PathBuf, protocol::Propagation)> {
    let one = |m: &Mount| {
        let to = match m.propagation {
            Propagation::Private => protocol::Propagation::Private,
            Propagation::HostToContainer => protocol::Propagation::Slave,
            Propagation::Bidirectional => protocol::Propagation::Shared,
        };
        (Path::new("/").join(&m.container_path), to)
    };
    let mut all: Vec<_> = mounts.iter().map(one).collect();
    all.sort_by_key(|(path, _)| path.components().count());
    all
}

/// The device nodes to make beside the standard ones, and all that may be used.
fn devices(config: &ContainerConfig) -> Result<(Vec<Value>, Vec<DeviceRule>), RuntimeError> {
    let rule = |kind, major, minor, access: &str| DeviceRule { kind, major, minor, access: access.into() };
    let mut rules = vec![rule('c', None, None, "m"), rule('b', None, None, "m")];
    // null, zero, full, random, urandom, tty, console, ptmx, terminals
    for (a, b) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)] {
        rules.push(rule('c', Some(a), Some(b), "rwm"));
    }
    rules.push(rule('c', Some(136), None, "rwm"));
    let mut nodes = Vec::new();
    if config.security.privileged {
        host_devices(Path::new("/dev"), &mut nodes);
    }
    for (host, container, access) in &config.devices {
        let (node, kind, a, b) =
            device(host, container).ok_or_else(|| refused(format!("{} is not a device", host.display())))?;
        nodes.push(node);
        rules.push(rule(kind, Some(a), Some(b), if access.is_empty() { "rwm" } else { access }));
    }
    Ok((nodes, rules))
}

fn device(host: &Path, container: &Path) -> Option<(Value, char, u32, u32)> {
    let s = stat(host).ok()?;
    let kind = match SFlag::from_bits_truncate(s.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFCHR => 'c',
        SFlag::S_IFBLK => 'b',
        _ => return None,
    };
    let (a, b) = (major(s.st_rdev), minor(s.st_rdev));
    let node = json!({
        "path": container, "type": kind.to_string(), "major": a, "minor": b,
        "fileMode": s.st_mode & 0o7777, "uid": s.st_uid, "gid": s.st_gid,
    });
    Some((node, kind, a as u32, b as u32))
}

/// All of the node's devices, for a privileged container; not those that each container has of its own.
fn host_devices(dir: &Path, nodes: &mut Vec<Value>) {
    const OWN: [&str; 14] = [
        "pts",
        "shm",
        "fd",
        "mqueue",
        "console",
        "null",
        "zero",
        "full",
        "random",
        "urandom",
        "tty",
        "ptmx",
        ".lxc",
        ".lxd-mounts",
    ];
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        if OWN.iter().any(|o| entry.file_name() == *o) {
            continue;
        }
        if kind.is_dir() {
            host_devices(&entry.path(), nodes);
        } else if !kind.is_symlink() {
            nodes.extend(device(&entry.path(), &entry.path()).map(|d| d.0));
        }
    }
}

fn seccomp_profile(
    parts: &Parts<'_>,
    granted: &std::collections::BTreeSet<String>,
) -> Result<Option<Value>, RuntimeError> {
    let security = &parts.config.security;
    if security.privileged {
        return Ok(None);
    }
    match &security.seccomp {
        SeccompProfile::Unconfined => Ok(None),
        SeccompProfile::RuntimeDefault => Ok(Some(seccomp::default_profile(granted))),
        SeccompProfile::Localhost(path) => {
            let path = parts.seccomp_root.join(path);
            let said =
                |e: &dyn std::fmt::Display| refused(format!("cannot load seccomp profile {:?}: {e}", path.display()));
            let text = std::fs::read(&path).map_err(|e| said(&e))?;
            serde_json::from_slice(&text).map(Some).map_err(|e| said(&e))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(config: &ContainerConfig, image: &RunConfig) -> Result<Made, RuntimeError> {
        make(&Parts {
            config,
            image,
            user: &User { uid: 5, gid: 6, groups: vec![6] },
            rootfs: "/r".into(),
            cgroup: "/a/b",
            hostname: "pod",
            pid: NamespaceMode::Container,
            pid_namespace: None,
            resolv_conf: "/s/resolv.conf".into(),
            hostname_file: "/s/hostname".into(),
            shm: "/s/shm".into(),
            seccomp_root: Path::new("/nowhere"),
            images: &BTreeMap::new(),
        })
    }

    fn list(words: &[&str]) -> Vec<String> {
        words.iter().map(|w| (*w).to_owned()).collect()
    }

    #[test]
    fn commands_and_arguments_follow_the_image_only_where_they_are_not_given() {
        let image = RunConfig { entrypoint: list(&["/e"]), cmd: list(&["c"]), ..Default::default() };
        for (command, args, want) in [
            (&[][..], &[][..], &["/e", "c"][..]),
            (&[], &["x"], &["/e", "x"]),
            (&["/k"], &[], &["/k"]),
            (&["/k"], &["x"], &["/k", "x"]),
        ] {
            let config = ContainerConfig { command: list(command), args: list(args), ..Default::default() };
            let made = made(&config, &image).unwrap();
            assert_eq!(made.spec["process"]["args"], json!(want));
        }
        assert!(made(&ContainerConfig::default(), &RunConfig::default()).is_err());
    }

    #[test]
    fn the_request_wins_over_the_image() {
        let image =
            RunConfig { cmd: list(&["c"]), env: list(&["A=1", "B=2"]), working_dir: "/w".into(), ..Default::default() };
        let config = ContainerConfig { env: vec![("A".into(), "3".into())], ..Default::default() };
        let made = made(&config, &image).unwrap();
        assert_eq!(made.spec["process"]["env"], json!([PATH, "HOSTNAME=pod", "A=3", "B=2"]));
        assert_eq!(made.spec["process"]["cwd"], "/w");
    }

    #[test]
    fn security_reaches_the_spec() {
        let image = RunConfig { cmd: list(&["c"]), ..Default::default() };
        let mut config = ContainerConfig::default();
        let spec = made(&config, &image).unwrap().spec;
        assert!(spec["process"].get("noNewPrivileges").is_none());
        assert_eq!(spec["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");
        assert_eq!(spec["linux"]["maskedPaths"][0], "/proc/asound");
        config.security.allow_privilege_escalation = Some(false);
        config.security.seccomp = SeccompProfile::Unconfined;
        config.security.read_only_root = true;
        let spec = made(&config, &image).unwrap().spec;
        assert_eq!(spec["process"]["noNewPrivileges"], true);
        assert!(spec["linux"].get("seccomp").is_none());
        assert_eq!(spec["root"]["readonly"], true);
        config.security.privileged = true;
        let all = made(&config, &image).unwrap();
        assert!(all.devices.is_none() && all.spec["linux"].get("maskedPaths").is_none());
        config.security.privileged = false;
        config.security.seccomp = SeccompProfile::Localhost("missing.json".into());
        assert!(made(&config, &image).is_err());
    }

    #[test]
    fn mounts_of_the_request_replace_the_runtimes_own() {
        let image = RunConfig { cmd: list(&["c"]), ..Default::default() };
        let at = |path: &str| Mount { host_path: "/tmp".into(), container_path: path.into(), ..Default::default() };
        let config =
            ContainerConfig { mounts: vec![at("/a/b"), at("/a"), at("/etc/resolv.conf")], ..Default::default() };
        let spec = made(&config, &image).unwrap().spec;
        let order: Vec<&str> =
            spec["mounts"].as_array().unwrap().iter().filter_map(|m| m["destination"].as_str()).collect();
        assert_eq!(order[order.len() - 3..], ["/a", "/a/b", "/etc/resolv.conf"]);
        assert_eq!(order.iter().filter(|d| **d == "/etc/resolv.conf").count(), 1);
    }
}
