//! Which capabilities a container's process has.

use crate::types::SecurityContext;
use std::collections::BTreeSet;

/// What a container has unless told otherwise: Docker's and containerd's list.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// In the order of their numbers.
const ALL: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

#[derive(Debug, thiserror::Error)]
#[error("unknown capability {0:?}")]
pub struct UnknownCapability(String);

/// The names with `CAP_`, sorted. `ALL` may be added or dropped; single names then have the last word, as in CRI.
pub fn granted(security: &SecurityContext) -> Result<BTreeSet<String>, UnknownCapability> {
    let known = known();
    if security.privileged {
        return Ok(known.iter().map(|c| format!("CAP_{c}")).collect());
    }
    let (add, drop) = (names(&security.add_capabilities)?, names(&security.drop_capabilities)?);
    let all = |list: &[String]| list.iter().any(|c| c == "ALL");
    let mut set: BTreeSet<String> = DEFAULT.iter().map(|c| (*c).to_owned()).collect();
    if all(&add) {
        set = known.iter().map(|c| (*c).to_owned()).collect();
    }
    if all(&drop) {
        set.clear();
    }
    set.extend(add.iter().filter(|c| *c != "ALL").cloned());
    set.retain(|c| !drop.contains(c));
    Ok(set.into_iter().filter(|c| known.contains(&c.as_str())).map(|c| format!("CAP_{c}")).collect())
}

/// Those that the kernel knows and this process may hand on (the runtime itself may run confined).
fn known() -> Vec<&'static str> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bounding = status.lines().find_map(|l| u64::from_str_radix(l.strip_prefix("CapBnd:")?.trim(), 16).ok());
    let held = bounding.unwrap_or(u64::MAX);
    ALL.iter().enumerate().filter(|(bit, _)| held >> bit & 1 == 1).map(|(_, name)| *name).collect()
}

fn names(list: &[String]) -> Result<Vec<String>, UnknownCapability> {
    let name = |text: &String| {
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("CAP_").unwrap_or(&upper).to_owned();
        if name == "ALL" || ALL.contains(&name.as_str()) { Ok(name) } else { Err(UnknownCapability(text.clone())) }
    };
    list.iter().map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(add: &[&str], drop: &[&str]) -> Vec<String> {
        let list = |l: &[&str]| l.iter().map(|s| (*s).to_owned()).collect();
        let s = SecurityContext { add_capabilities: list(add), drop_capabilities: list(drop), ..Default::default() };
        granted(&s).unwrap().into_iter().collect()
    }

    #[test]
    fn adding_and_dropping() {
        assert_eq!(with(&[], &[]).len(), DEFAULT.len());
        assert_eq!(with(&["NET_BIND_SERVICE"], &["ALL"]), ["CAP_NET_BIND_SERVICE"]);
        assert!(with(&["cap_net_admin"], &[]).contains(&"CAP_NET_ADMIN".into()));
        assert!(!with(&["ALL"], &["SYS_ADMIN"]).contains(&"CAP_SYS_ADMIN".into()));
        assert_eq!(with(&["ALL"], &[]).len(), known().len());
        let unknown = SecurityContext { add_capabilities: vec!["FLY".into()], ..Default::default() };
        assert!(granted(&unknown).is_err());
    }
}
