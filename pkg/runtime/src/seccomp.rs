//! The default seccomp profile: the system calls that Docker's and containerd's allow, by architecture and capability.

use serde_json::{Value, json};
use std::collections::BTreeSet;

/// One name a word.
const ALLOWED: &str = include_str!("seccomp_allowed.txt");

/// What a capability allows on top.
const BY_CAPABILITY: [(&str, &str); 14] = [
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "CAP_SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount \
         open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare",
    ),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module init_module finit_module"),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace"),
    ("CAP_SYS_RAWIO", "iopl ioperm"),
    ("CAP_SYS_TIME", "settimeofday stime clock_settime clock_settime64"),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    ("CAP_SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("CAP_SYSLOG", "syslog"),
    ("CAP_BPF", "bpf"),
    ("CAP_PERFMON", "perf_event_open"),
];

#[cfg(target_arch = "x86_64")]
const ARCHITECTURES: &[&str] = &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"];
#[cfg(target_arch = "aarch64")]
const ARCHITECTURES: &[&str] = &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"];
#[cfg(target_arch = "riscv64")]
const ARCHITECTURES: &[&str] = &["SCMP_ARCH_RISCV64"];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
const ARCHITECTURES: &[&str] = &[];

#[cfg(target_arch = "x86_64")]
const OF_THE_ARCHITECTURE: &str = "arch_prctl modify_ldt";
#[cfg(target_arch = "aarch64")]
const OF_THE_ARCHITECTURE: &str = "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls";
#[cfg(target_arch = "riscv64")]
const OF_THE_ARCHITECTURE: &str = "riscv_flush_icache riscv_hwprobe";
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
const OF_THE_ARCHITECTURE: &str = "";

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
const AF_VSOCK: u64 = 40;
/// CLONE_NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET and NEWCGROUP.
const NAMESPACES: u64 = 0x7e02_0000;
/// `personality`'s values that change nothing dangerous.
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

fn allow(names: &[&str]) -> Value {
    json!({"names": names, "action": "SCMP_ACT_ALLOW"})
}

fn allow_if(name: &str, value: u64, two: u64, op: &str) -> Value {
    let argument = json!({"index": 0, "value": value, "valueTwo": two, "op": op});
    json!({"names": [name], "action": "SCMP_ACT_ALLOW", "args": [argument]})
}

/// The OCI `linux.seccomp` for a container with these capabilities (`CAP_…`).
pub fn default_profile(capabilities: &BTreeSet<String>) -> Value {
    let mut rules = vec![allow(&words(ALLOWED)), allow_if("socket", AF_VSOCK, 0, "SCMP_CMP_NE")];
    rules.extend(PERSONALITIES.iter().map(|p| allow_if("personality", *p, 0, "SCMP_CMP_EQ")));
    if !OF_THE_ARCHITECTURE.is_empty() {
        rules.push(allow(&words(OF_THE_ARCHITECTURE)));
    }
    for (capability, names) in BY_CAPABILITY {
        if capabilities.contains(capability) {
            rules.push(allow(&words(names)));
        }
    }
    if !capabilities.contains("CAP_SYS_ADMIN") {
        rules.push(allow_if("clone", NAMESPACES, 0, "SCMP_CMP_MASKED_EQ"));
        // Its flags are behind a pointer that a filter cannot read; told that it is missing, libraries take `clone`.
        rules.push(json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS}));
    }
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": EPERM,
        "architectures": ARCHITECTURES,
        "syscalls": rules,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_sorted_and_capabilities_open_more() {
        let list = words(ALLOWED);
        assert!(list.is_sorted_by(|a, b| a < b), "sorted and without repeats");
        let names = |capabilities: &[&str]| -> Vec<String> {
            let set = capabilities.iter().map(|c| (*c).to_owned()).collect();
            let profile = default_profile(&set);
            let rules = profile["syscalls"].as_array().unwrap().clone();
            let allowed = rules.iter().filter(|r| r["action"] == "SCMP_ACT_ALLOW" && r.get("args").is_none());
            allowed.flat_map(|r| r["names"].as_array().unwrap().clone()).map(|n| n.as_str().unwrap().into()).collect()
        };
        let none = names(&[]);
        for denied in ["mount", "unshare", "bpf", "reboot", "io_uring_setup", "keyctl", "init_module", "clone3"] {
            assert!(!none.iter().any(|n| n == denied), "{denied}");
        }
        assert!(none.iter().any(|n| n == "openat2"));
        assert!(names(&["CAP_SYS_ADMIN"]).iter().any(|n| n == "mount"));
    }
}
