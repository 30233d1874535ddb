//! `isopod check`: can this machine run a cluster? Each line says what was looked at, what was found, and what to do.
//!
//! What the kernel does is tried (see `probe.rs`), not guessed from its configuration.

use crate::args::CheckArgs;
use crate::probe::{self, Probe};
use anyhow::bail;
use isopod_base::errors::Chain;
use isopod_sys::{cgroup, mount};
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

const MIN_MEMORY_MIB: u64 = 256;
const MIN_DISK_MIB: u64 = 512;

enum Verdict {
    Good(String),
    /// It works, but something will be missing.
    Warning {
        found: String,
        remedy: String,
    },
    Bad {
        found: String,
        remedy: String,
    },
}

use Verdict::{Bad, Good, Warning};

fn bad(found: impl Into<String>, remedy: impl Into<String>) -> Verdict {
    Bad { found: found.into(), remedy: remedy.into() }
}

pub fn run(args: &CheckArgs) -> anyhow::Result<()> {
    let mut checks = vec![
        ("user", user()),
        ("kernel", kernel()),
        ("namespaces", namespaces()),
        ("cgroups", cgroups()),
        ("seccomp", seccomp()),
    ];
    checks.extend(probed(probe::NODE, &args.data.data_dir));
    checks.extend([
        ("memory", memory()),
        ("disk", disk(&args.data.data_dir)),
        ("API server's port", port(args.https_listen_port, "--https-listen-port")),
        ("kubelet's port", port(args.kubelet_port, "--kubelet-port")),
    ]);
    tell(&checks)
}

fn probed(probes: &[Probe], data_dir: &Path) -> Vec<(&'static str, Verdict)> {
    let Some(place) = nearest(data_dir) else { return Vec::new() };
    let verdict = |p: &Probe| match (p.attempt)(place) {
        Ok(found) => Good(found.into()),
        Err(e) => bad(Chain(e.as_ref()).to_string(), p.remedy),
    };
    probes.iter().map(|p| (p.name, verdict(p))).collect()
}

/// The directory itself may not be there yet: its nearest ancestor tells.
fn nearest(dir: &Path) -> Option<&Path> {
    dir.ancestors().find(|p| p.is_dir())
}

fn tell(checks: &[(&str, Verdict)]) -> anyhow::Result<()> {
    let mut failed = 0;
    for (name, verdict) in checks {
        match verdict {
            Good(found) => println!("ok       {name}: {found}"),
            Warning { found, remedy } => println!("warning  {name}: {found}\n         {remedy}"),
            Bad { found, remedy } => {
                failed += 1;
                println!("MISSING  {name}: {found}\n         {remedy}");
            }
        }
    }
    if failed > 0 {
        bail!(
            "{failed} of {} checks failed; mend what is listed as MISSING and run `isopod check` again",
            checks.len()
        );
    }
    println!("This machine can run a cluster: `isopod server`");
    Ok(())
}

fn user() -> Verdict {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let uid = status.lines().find_map(|l| l.strip_prefix("Uid:")?.split_whitespace().nth(1));
    match uid {
        Some("0") => Good("root".into()),
        other => bad(
            format!("user id {}", other.unwrap_or("unknown")),
            "run as root, or run only the API server with `isopod server --disable-agent`",
        ),
    }
}

fn kernel() -> Verdict {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(|p| p.parse::<u32>().unwrap_or(0));
    let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    // 5.6 brought openat2 and nftables' concatenated keys; 5.10 is the oldest long-term kernel after it.
    if version >= (5, 10) { Good(release) } else { bad(release, "Linux 5.10 or newer is needed") }
}

fn namespaces() -> Verdict {
    let missing: Vec<&str> = ["cgroup", "ipc", "mnt", "net", "pid", "uts", "user"]
        .into_iter()
        .filter(|n| !Path::new("/proc/self/ns").join(n).exists())
        .collect();
    if missing.is_empty() {
        return Good("all".into());
    }
    bad(format!("no {}", missing.join(", ")), "use a kernel with CONFIG_NAMESPACES and these kinds of namespaces")
}

fn cgroups() -> Verdict {
    let remedy = "mount cgroup2 at /sys/fs/cgroup (systemd does), and enable the controllers; on a Raspberry Pi add \
                  `cgroup_enable=memory cgroup_memory=1` to /boot/firmware/cmdline.txt and reboot";
    let found = match cgroup::Hierarchies::detect() {
        Ok(h) => h,
        Err(e) => return bad(e.to_string(), remedy),
    };
    let have = |controller: &str| {
        if found.is_unified() {
            let list = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
            list.split_whitespace().any(|c| c == controller)
        } else {
            Path::new("/sys/fs/cgroup").join(controller).is_dir()
        }
    };
    let missing: Vec<&str> = ["cpu", "cpuset", "memory", "pids"].into_iter().filter(|c| !have(c)).collect();
    if !missing.is_empty() {
        return bad(format!("no controller {}", missing.join(", ")), remedy);
    }
    Good(if found.is_unified() { "version 2".into() } else { "version 1".into() })
}

fn seccomp() -> Verdict {
    if Path::new("/proc/sys/kernel/seccomp/actions_avail").exists() {
        return Good("filters".into());
    }
    bad("no filters", "use a kernel with CONFIG_SECCOMP_FILTER: containers run under the default profile")
}

fn memory() -> Verdict {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let value = text.lines().find_map(|l| l.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse::<u64>().ok());
    match value.map(|kib| kib / 1024) {
        Some(mib) if mib >= MIN_MEMORY_MIB => Good(format!("{mib} MiB")),
        Some(mib) => {
            Warning { found: format!("{mib} MiB"), remedy: format!("{MIN_MEMORY_MIB} MiB or more leave room for pods") }
        }
        None => bad("unknown", "mount /proc"),
    }
}

fn disk(data_dir: &Path) -> Verdict {
    let Some(place) = nearest(data_dir) else {
        return bad("no such place", "choose another --data-dir");
    };
    match mount::usage(place) {
        Ok(([_, available, _], _)) if available >> 20 >= MIN_DISK_MIB => {
            Good(format!("{} MiB free for {}", available >> 20, data_dir.display()))
        }
        Ok(([_, available, _], _)) => Warning {
            found: format!("{} MiB free for {}", available >> 20, data_dir.display()),
            remedy: format!("free {MIN_DISK_MIB} MiB, or choose another --data-dir: images need room"),
        },
        Err(e) => bad(e.to_string(), "choose another --data-dir"),
    }
}

fn port(port: u16, flag: &str) -> Verdict {
    match TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)) {
        Ok(_) => Good(format!("{port} is free")),
        Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => bad(
            format!("{port} is in use"),
            format!("stop what listens there (`ss -ltnp`), or choose another with {flag}"),
        ),
        Err(e) => bad(format!("{port}: {e}"), format!("choose another with {flag}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_that_fails_is_missing_and_fails_the_check() {
        let probes = [
            Probe { name: "good", attempt: |_| Ok("fine"), remedy: "", at_start: false },
            Probe { name: "frobs", attempt: |_| bail!("no frob in here"), remedy: "load frob", at_start: false },
        ];
        let checks = probed(&probes, Path::new("/no/such/place"));
        assert!(matches!(&checks[0], ("good", Good(found)) if found == "fine"));
        let Bad { found, remedy } = &checks[1].1 else { panic!("frobs work") };
        assert_eq!((checks[1].0, found.as_str(), remedy.as_str()), ("frobs", "no frob in here", "load frob"));
        assert!(tell(&checks).unwrap_err().to_string().starts_with("1 of 2 checks failed"));
        assert!(tell(&checks[..1]).is_ok());
    }
}
