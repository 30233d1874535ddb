//! Control groups: limits are set, measured, enforced and taken away again.

use crate::containers::wait_for_log;
use crate::fixture::{Node, shell};
use isopod_runtime::*;
use isopod_sys::cgroup::Hierarchies;

fn in_group(group: &str, v1: (&str, &str), v2: &str) -> String {
    let mounts = isopod_sys::mount::table().unwrap();
    let unified = Hierarchies::detect().unwrap().is_unified();
    let (file, mount) = match unified {
        true => (v2, mounts.iter().find(|m| m.fstype == "cgroup2")),
        false => (v1.1, mounts.iter().find(|m| m.fstype == "cgroup" && m.options.iter().any(|o| o == v1.0))),
    };
    let path = mount.unwrap().path.join(group.trim_start_matches('/')).join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_in_the_control_groups_and_change() {
    let node = Node::with_image().await;
    let mut pod = node.sandbox("a");
    pod.resources.memory_limit = Some(256 << 20);
    let parent = pod.cgroup_parent.clone();
    let sandbox = node.runtime.run_sandbox(pod).await.unwrap();
    assert_eq!(in_group(&parent, ("memory", "memory.limit_in_bytes"), "memory.max"), (256 << 20).to_string());
    let mut config = shell("c", "echo up; sleep 1000");
    config.resources = Resources {
        cpu_shares: Some(512),
        cpu_quota: Some(50_000),
        cpu_period: Some(100_000),
        memory_limit: Some(64 << 20),
        pids_limit: Some(50),
        oom_score_adj: Some(500),
        ..Default::default()
    };
    let id = node.start(&sandbox, config.clone()).await;
    wait_for_log(&node, &id, "up").await;
    let group = format!("{parent}/{id}");
    assert_eq!(in_group(&group, ("memory", "memory.limit_in_bytes"), "memory.max"), (64 << 20).to_string());
    assert_eq!(in_group(&group, ("pids", "pids.max"), "pids.max"), "50");
    let quota = in_group(&group, ("cpu", "cpu.cfs_quota_us"), "cpu.max");
    assert!(quota.starts_with("50000"), "{quota}");
    let pid = node.runtime.container(&id).await.unwrap().pid;
    assert_eq!(std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim(), "500");
    let stats = node.runtime.container_stats(&id).await.unwrap();
    assert!(
        stats.memory_usage > 0 && stats.memory_usage < 64 << 20 && stats.pids >= 1 && stats.cpu_usage > 0,
        "{stats:?}"
    );
    config.resources.memory_limit = Some(96 << 20);
    config.resources.pids_limit = Some(60);
    node.runtime.update_container(&id, config.resources, config.annotations).await.unwrap();
    assert_eq!(in_group(&group, ("memory", "memory.limit_in_bytes"), "memory.max"), (96 << 20).to_string());
    assert_eq!(in_group(&group, ("pids", "pids.max"), "pids.max"), "60");
    node.runtime.remove_sandbox(&sandbox).await.unwrap();
    let hierarchies = Hierarchies::detect().unwrap();
    assert!(!hierarchies.group(&parent).unwrap().exists(), "the pod's group is gone from every hierarchy");
    assert!(hierarchies.group(node.cgroup_root()).unwrap().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_takes_too_much_memory_is_told_so() {
    let node = Node::with_image().await;
    let sandbox = node.run_sandbox("a").await;
    let mut config = shell("c", "tail /dev/zero");
    config.command = vec!["/bin/tail".into(), "/dev/zero".into()];
    config.resources.memory_limit = Some(16 << 20);
    let id = node.start(&sandbox, config).await;
    let status = node.ended(&id).await;
    assert_eq!((status.reason.as_str(), status.exit_code), ("OOMKilled", 137));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_stays_small() {
    let node = Node::with_image().await;
    let sandbox = node.run_sandbox("a").await;
    let id = node.start(&sandbox, shell("c", "echo up; sleep 1000")).await;
    wait_for_log(&node, &id, "up").await;
    let pid = node.runtime.sandbox(&sandbox).await.unwrap().pid;
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = |name: &str| -> u64 {
        text.lines().find_map(|l| l.strip_prefix(name)?.trim().trim_end_matches(" kB").parse().ok()).unwrap()
    };
    // The program's own pages are shared by all shims; what each has for itself is the anonymous memory.
    let own = line("Anonymous:");
    assert!(own < 1024, "{own} kB of its own, {} kB with its share of the program", line("Pss:"));
}
