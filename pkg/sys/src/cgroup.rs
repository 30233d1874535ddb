//! Control groups on version 1, version 2 and the two beside each other (hybrid): limits, membership, counters, removal.
//!
//! A group is named by one path below every controller's root (`/isopod/burstable/pod…`). On version 1 it is a directory in
//! each hierarchy, the unified one of a hybrid machine and systemd's included: a process that moves is in no group of the
//! service that started it. Invariant: a group that was removed is gone from every hierarchy.

use crate::mount::{self, MountPoint};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The hierarchies of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchies {
    /// Version 1: controller (or `name=…`) → mount point. Hierarchies that are mounted together appear under each name.
    v1: BTreeMap<String, PathBuf>,
    /// The version 2 hierarchy. It has the controllers when `v1` is empty.
    v2: Option<PathBuf>,
}

/// Limits of a group. `None` or empty: as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Version 1's unit, 2 … 262144.
    pub cpu_shares: Option<u64>,
    /// Microseconds; not positive: none.
    pub cpu_quota: Option<i64>,
    pub cpu_period: Option<u64>,
    pub cpuset_cpus: String,
    /// Bytes; not positive: none.
    pub memory: Option<i64>,
    /// Not positive: none.
    pub pids: Option<i64>,
    /// Page size (`2MB`) → bytes.
    pub hugepages: BTreeMap<String, u64>,
    /// Version 2: the kernel kills the whole group, not one process of it.
    pub oom_group: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Core-nanoseconds.
    pub cpu: u64,
    pub memory: u64,
    /// Without the file cache that could be dropped at once.
    pub memory_working_set: u64,
    pub memory_rss: u64,
    pub pids: u64,
}

const CPUSET: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];
const CONTROLLERS: [&str; 12] = [
    "cpu",
    "cpuacct",
    "cpuset",
    "memory",
    "devices",
    "freezer",
    "blkio",
    "pids",
    "hugetlb",
    "net_cls",
    "net_prio",
    "perf_event",
];

impl Hierarchies {
    pub fn detect() -> io::Result<Self> {
        let found = Self::from_mounts(&mount::table()?);
        if found.v1.is_empty() && found.v2.is_none() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "no control group file system is mounted"));
        }
        Ok(found)
    }

    fn from_mounts(mounts: &[MountPoint]) -> Self {
        let (mut v1, mut v2) = (BTreeMap::new(), None);
        for m in mounts {
            match m.fstype.as_str() {
                "cgroup2" if v2.is_none() => v2 = Some(m.path.clone()),
                "cgroup" => {
                    for o in &m.options {
                        if CONTROLLERS.contains(&o.as_str()) || o.starts_with("name=") {
                            v1.entry(o.clone()).or_insert_with(|| m.path.clone());
                        }
                    }
                }
                _ => {}
            }
        }
        Hierarchies { v1, v2 }
    }

    /// Version 2 holds the controllers.
    pub fn is_unified(&self) -> bool {
        !self.v1.keys().any(|c| !c.starts_with("name="))
    }

    /// Where limits of memory stand: the hierarchy's root, the file in each group, the controller's name in a list of memberships.
    pub(crate) fn memory_limit_file(&self) -> Option<(&Path, &'static str, &'static str)> {
        if self.is_unified() {
            return Some((self.v2.as_deref()?, "memory.max", ""));
        }
        Some((self.v1.get("memory")?, "memory.limit_in_bytes", "memory"))
    }

    #[cfg(test)]
    pub(crate) fn faked(v1: &[(&str, &Path)], v2: Option<&Path>) -> Self {
        let v1 = v1.iter().map(|(name, root)| ((*name).to_owned(), root.to_path_buf()));
        Hierarchies { v1: v1.collect(), v2: v2.map(Path::to_path_buf) }
    }

    /// The group named by `path`, whether it exists or not. The path is taken as below the root: `..` is refused.
    pub fn group(&self, path: &str) -> io::Result<Group<'_>> {
        let relative = path.trim_matches('/');
        if relative.is_empty() || relative.split('/').any(|c| matches!(c, "" | "." | "..")) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{path:?} names no control group")));
        }
        Ok(Group { hierarchies: self, relative: relative.into() })
    }

    fn roots(&self) -> Vec<&Path> {
        let mut all: Vec<&Path> = self.v1.values().chain(&self.v2).map(PathBuf::as_path).collect();
        all.sort();
        all.dedup();
        all
    }
}

#[derive(Clone, Debug)]
pub struct Group<'a> {
    hierarchies: &'a Hierarchies,
    relative: PathBuf,
}

impl Group<'_> {
    fn v1(&self, controller: &str) -> Option<PathBuf> {
        Some(self.hierarchies.v1.get(controller)?.join(&self.relative))
    }

    /// The directory in the version 2 hierarchy, if there is one.
    pub fn unified(&self) -> Option<PathBuf> {
        Some(self.hierarchies.v2.as_ref()?.join(&self.relative))
    }

    /// The directories of this group, one in each hierarchy.
    pub fn directories(&self) -> Vec<PathBuf> {
        self.hierarchies.roots().iter().map(|r| r.join(&self.relative)).collect()
    }

    /// Version 2's directory, else the named version 1 controller's.
    fn controller(&self, v1: &str) -> io::Result<PathBuf> {
        let dir = if self.hierarchies.is_unified() { self.unified() } else { self.v1(v1) };
        dir.ok_or_else(|| io::Error::new(io::ErrorKind::Unsupported, format!("no control group controller {v1:?}")))
    }

    /// Makes it, and its parents, in every hierarchy.
    pub fn create(&self) -> io::Result<()> {
        if self.hierarchies.is_unified() {
            return self.create_unified();
        }
        for dir in self.directories() {
            fs::create_dir_all(&dir)?;
        }
        let (Some(dir), Some(root)) = (self.v1("cpuset"), self.hierarchies.v1.get("cpuset")) else { return Ok(()) };
        // A version 1 cpuset starts empty, and an empty one holds no process: each level takes its parent's.
        let mut level = root.clone();
        for part in dir.strip_prefix(root).map_err(io::Error::other)?.components() {
            let parent = level.clone();
            level.push(part);
            for file in CPUSET {
                if fs::read_to_string(level.join(file))?.trim().is_empty() {
                    fs::write(level.join(file), fs::read_to_string(parent.join(file))?.trim())?;
                }
            }
        }
        Ok(())
    }

    fn create_unified(&self) -> io::Result<()> {
        let Some(root) = &self.hierarchies.v2 else { return Ok(()) };
        let mut level = root.clone();
        for part in self.relative.components() {
            // What a level's children may limit is enabled at the level: all that this machine has.
            let available = fs::read_to_string(level.join("cgroup.controllers")).unwrap_or_default();
            for c in available.split_whitespace() {
                // Only a limit needs its controller: one that cannot be enabled here is told when a limit is set.
                let _ = enable(&level, c);
            }
            level.push(part);
            match fs::create_dir(&level) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }

    /// Enables a controller for this group at each level above it; an error names the level that refuses.
    fn enable_unified(&self, controller: &str) -> io::Result<()> {
        let Some(root) = &self.hierarchies.v2 else { return Ok(()) };
        let mut level = root.clone();
        for part in self.relative.components() {
            let enabled = fs::read_to_string(level.join("cgroup.subtree_control")).unwrap_or_default();
            if !enabled.split_whitespace().any(|c| c == controller) {
                enable(&level, controller)?;
            }
            level.push(part);
        }
        Ok(())
    }

    pub fn exists(&self) -> bool {
        self.directories().iter().any(|d| d.exists())
    }

    /// Moves a process (0: the caller) into it, in every hierarchy.
    pub fn add(&self, pid: i32) -> io::Result<()> {
        for dir in self.directories() {
            fs::write(dir.join("cgroup.procs"), pid.to_string())?;
        }
        Ok(())
    }

    /// As [`Group::add`], but only in hierarchies without controllers: of those none on version 2.
    pub fn add_beside_controllers(&self, pid: i32) -> io::Result<()> {
        if self.hierarchies.is_unified() {
            return Ok(());
        }
        let named = self.hierarchies.v1.iter().filter(|(name, _)| name.starts_with("name=")).map(|(_, root)| root);
        for root in named.chain(&self.hierarchies.v2) {
            fs::write(root.join(&self.relative).join("cgroup.procs"), pid.to_string())?;
        }
        Ok(())
    }

    pub fn apply(&self, limits: &Limits) -> io::Result<()> {
        if self.hierarchies.is_unified() { self.apply_v2(limits) } else { self.apply_v1(limits) }
    }

    fn apply_v1(&self, limits: &Limits) -> io::Result<()> {
        let set = |controller: &str, file: &str, value: String| -> io::Result<()> {
            match self.v1(controller) {
                Some(dir) => write_limit(&dir.join(file), &value),
                None => Err(io::Error::new(io::ErrorKind::Unsupported, format!("no controller for {file}"))),
            }
        };
        if let Some(shares) = limits.cpu_shares {
            set("cpu", "cpu.shares", shares.max(2).to_string())?;
        }
        if let Some(period) = limits.cpu_period.filter(|p| *p > 0) {
            set("cpu", "cpu.cfs_period_us", period.to_string())?;
        }
        if let Some(quota) = limits.cpu_quota {
            set("cpu", "cpu.cfs_quota_us", if quota > 0 { quota } else { -1 }.to_string())?;
        }
        if !limits.cpuset_cpus.is_empty() {
            set("cpuset", "cpuset.cpus", limits.cpuset_cpus.clone())?;
        }
        if let Some(memory) = limits.memory {
            let value = if memory > 0 { memory } else { -1 }.to_string();
            // Without swap: memory and swap together have the same limit. The larger of the two must be raised first.
            let swap = self.v1("memory").map(|d| d.join("memory.memsw.limit_in_bytes")).filter(|f| f.exists());
            if set("memory", "memory.limit_in_bytes", value.clone()).is_err() {
                if let Some(swap) = &swap {
                    write_limit(swap, &value)?;
                }
                set("memory", "memory.limit_in_bytes", value.clone())?;
            }
            if let Some(swap) = &swap {
                write_limit(swap, &value)?;
            }
        }
        if let Some(pids) = limits.pids {
            set("pids", "pids.max", if pids > 0 { pids.to_string() } else { "max".into() })?;
        }
        for (size, bytes) in &limits.hugepages {
            set("hugetlb", &format!("hugetlb.{size}.limit_in_bytes"), bytes.to_string())?;
        }
        Ok(())
    }

    fn apply_v2(&self, limits: &Limits) -> io::Result<()> {
        let dir = self.controller("memory")?;
        let set = |file: &str, value: String| {
            let path = dir.join(file);
            // A file that is not there belongs to a controller that is not enabled: why not?
            if !path.exists() {
                self.enable_unified(file.split('.').next().unwrap_or(file))?;
            }
            write_limit(&path, &value)
        };
        if let Some(shares) = limits.cpu_shares {
            set("cpu.weight", weight(shares).to_string())?;
        }
        if limits.cpu_quota.is_some() || limits.cpu_period.is_some() {
            let period = limits.cpu_period.filter(|p| *p > 0).unwrap_or(100_000);
            let quota = limits.cpu_quota.filter(|q| *q > 0).map_or("max".into(), |q| q.to_string());
            set("cpu.max", format!("{quota} {period}"))?;
        }
        if !limits.cpuset_cpus.is_empty() {
            set("cpuset.cpus", limits.cpuset_cpus.clone())?;
        }
        if let Some(memory) = limits.memory {
            set("memory.max", if memory > 0 { memory.to_string() } else { "max".into() })?;
            if dir.join("memory.swap.max").exists() {
                set("memory.swap.max", if memory > 0 { "0".into() } else { "max".into() })?;
            }
        }
        if limits.oom_group && dir.join("memory.oom.group").exists() {
            set("memory.oom.group", "1".into())?;
        }
        if let Some(pids) = limits.pids {
            set("pids.max", if pids > 0 { pids.to_string() } else { "max".into() })?;
        }
        for (size, bytes) in &limits.hugepages {
            set(&format!("hugetlb.{size}.max"), bytes.to_string())?;
        }
        Ok(())
    }

    /// The processes in it and below it.
    pub fn processes(&self) -> Vec<i32> {
        let mut all = Vec::new();
        for dir in self.directories() {
            collect_processes(&dir, &mut all);
        }
        all.sort_unstable();
        all.dedup();
        all
    }

    pub fn signal(&self, signal: i32) -> io::Result<()> {
        let kill = self.unified().map(|d| d.join("cgroup.kill")).filter(|f| f.exists());
        if signal == libc::SIGKILL
            && let Some(kill) = kill
        {
            // On a hybrid machine too: every process of the group is in the unified hierarchy's directory.
            fs::write(kill, "1")?;
        }
        for pid in self.processes() {
            // SAFETY: sends a signal, touches no memory of this process.
            unsafe { libc::kill(pid, signal) };
        }
        Ok(())
    }

    /// Kills what is in it and removes it and all below it, waiting at most `patience` for the processes to go.
    pub fn remove(&self, patience: Duration) -> io::Result<()> {
        let until = Instant::now() + patience;
        loop {
            self.signal(libc::SIGKILL)?;
            let mut failed = None;
            for dir in self.directories() {
                if let Err(e) = remove_tree(&dir) {
                    failed = Some(e);
                }
            }
            let Some(e) = failed else { return Ok(()) };
            if Instant::now() >= until {
                return Err(e);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// How many processes in it the kernel has killed for want of memory.
    pub fn oom_kills(&self) -> u64 {
        let file = if self.hierarchies.is_unified() { "memory.events" } else { "memory.oom_control" };
        let Ok(dir) = self.controller("memory") else { return 0 };
        fs::read_to_string(dir.join(file)).ok().and_then(|t| keyed(&t, "oom_kill")).unwrap_or(0)
    }

    pub fn usage(&self) -> io::Result<Usage> {
        let memory = self.controller("memory")?;
        let stat = fs::read_to_string(memory.join("memory.stat"))?;
        let pids = self.controller("pids").and_then(|d| number(&d.join("pids.current"))).unwrap_or(0);
        if self.hierarchies.is_unified() {
            let cpu = fs::read_to_string(memory.join("cpu.stat"))?;
            let used = number(&memory.join("memory.current"))?;
            let inactive = keyed(&stat, "inactive_file").unwrap_or(0);
            return Ok(Usage {
                cpu: keyed(&cpu, "usage_usec").unwrap_or(0) * 1000,
                memory: used,
                memory_working_set: used.saturating_sub(inactive),
                memory_rss: keyed(&stat, "anon").unwrap_or(0),
                pids,
            });
        }
        let used = number(&memory.join("memory.usage_in_bytes"))?;
        let inactive = keyed(&stat, "total_inactive_file").unwrap_or(0);
        Ok(Usage {
            cpu: self.controller("cpuacct").and_then(|d| number(&d.join("cpuacct.usage"))).unwrap_or(0),
            memory: used,
            memory_working_set: used.saturating_sub(inactive),
            memory_rss: keyed(&stat, "total_rss").unwrap_or(0),
            pids,
        })
    }

    /// Lets the group's processes use these devices only: version 1's device controller, else a program in the kernel.
    pub fn allow_devices(&self, rules: &[crate::devices::Rule]) -> io::Result<()> {
        if let Some(dir) = self.v1("devices") {
            write_limit(&dir.join("devices.deny"), "a")?;
            for rule in rules {
                write_limit(&dir.join("devices.allow"), &rule.to_string())?;
            }
            return Ok(());
        }
        match self.unified() {
            Some(dir) => crate::devices::attach(&dir, rules),
            None => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

/// Lets the children of the group at `level` be limited by a controller of version 2.
fn enable(level: &Path, controller: &str) -> io::Result<()> {
    write_limit(&level.join("cgroup.subtree_control"), &format!("+{controller}"))
}

/// Never makes the file: what is not there has no controller behind it.
fn write_limit(file: &Path, value: &str) -> io::Result<()> {
    let write = || fs::OpenOptions::new().write(true).truncate(true).open(file)?.write_all(value.as_bytes());
    write().map_err(|e| {
        let text = format!("cannot write {value:?} to {}: {e}", file.display());
        io::Error::new(e.kind(), text)
    })
}

fn number(file: &Path) -> io::Result<u64> {
    fs::read_to_string(file)?.trim().parse().map_err(io::Error::other)
}

/// The number after `key ` at a line's start.
fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

fn subdirectories(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return vec![] };
    entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
}

fn collect_processes(dir: &Path, all: &mut Vec<i32>) {
    if let Ok(text) = fs::read_to_string(dir.join("cgroup.procs")) {
        all.extend(text.lines().filter_map(|l| l.parse::<i32>().ok()).filter(|p| *p > 0));
    }
    for sub in subdirectories(dir) {
        collect_processes(&sub, all);
    }
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    for sub in subdirectories(dir) {
        remove_tree(&sub)?;
    }
    match fs::remove_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Version 2's weight for version 1's shares, such that 1024 shares (one core's request) weigh 100, the default (KEP-2254's
/// formula as runc 1.3.2 and crun 1.23 have it).
fn weight(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let l = (shares as f64).log2();
            10f64.powf((l * l + 125.0 * l) / 612.0 - 7.0 / 34.0).ceil() as u64
        }
    }
}

#[cfg(test)]
#[path = "cgroup_tests.rs"]
mod tests;
