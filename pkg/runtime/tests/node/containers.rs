//! A container's life: its process, log, root, user, and end.

use crate::fixture::{Node, shell};
use isopod_runtime::*;
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread")]
async fn a_container_runs_logs_and_ends() {
    let node = Node::with_image().await;
    let sandbox = node.run_sandbox("a").await;
    let script = "echo out; echo err >&2; hostname; echo $FROM_IMAGE $GIVEN; pwd; cat /etc/second; test ! -e /etc/removed && \
                  echo hidden; cat /etc/resolv.conf; exit 3";
    let mut config = shell("c", script);
    config.env = vec![("GIVEN".into(), "too".into())];
    let id = node.runtime.create_container(&sandbox, config).await.unwrap();
    assert_eq!(node.runtime.container(&id).await.unwrap().state, ContainerState::Created);
    node.runtime.start_container(&id).await.unwrap();
    let status = node.ended(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str(), status.signal), (3, "Error", None));
    assert!(status.created_at <= status.started_at && status.started_at <= status.finished_at);
    let log = std::fs::read_to_string(&status.log_path).unwrap();
    for line in ["stdout F out", "stderr F err", "stdout F a", "stdout F yes too", "stdout F /made/here", "F hidden"] {
        assert!(log.lines().any(|l| l.ends_with(line)), "{line:?} in {log}");
    }
    assert!(log.contains("of the second layer"), "{log}");
    node.runtime.remove_container(&id).await.unwrap();
    assert!(node.runtime.container(&id).await.is_err());
    node.runtime.remove_sandbox(&sandbox).await.unwrap();
    assert!(node.runtime.sandboxes().await.unwrap().is_empty());
    let left: Vec<_> =
        isopod_sys::mount::table().unwrap().into_iter().filter(|m| m.path.starts_with(node.path())).collect();
    assert_eq!(left.len(), 1, "only the private place is mounted: {left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_missing_is_told_as_runc_tells_it() {
    let node = Node::with_image().await;
    let sandbox = node.run_sandbox("a").await;
    for (program, want) in [
        ("nope", "exec: \"nope\": executable file not found in $PATH"),
        ("/bin/nope", "exec: \"/bin/nope\": stat /bin/nope: no such file or directory"),
    ] {
        let mut config = shell("c", "");
        config.command = vec![program.into()];
        let id = node.runtime.create_container(&sandbox, config).await.unwrap();
        let e = node.runtime.start_container(&id).await.unwrap_err();
        assert_eq!(e.to_string(), want);
        let status = node.runtime.container(&id).await.unwrap();
        assert_eq!(
            (status.state, status.exit_code, status.reason.as_str()),
            (ContainerState::Exited, 128, "StartError")
        );
        node.runtime.remove_container(&id).await.unwrap();
    }
    let mut config = shell("c", "");
    config.security.run_as_username = Some("nobody".into());
    let e = node.runtime.create_container(&sandbox, config).await.unwrap_err();
    assert_eq!(e.to_string(), "unable to find user nobody: no matching entries in passwd file");
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_asks_first_and_kills_then() {
    let node = Node::with_image().await;
    let sandbox = node.run_sandbox("a").await;
    let polite = node
        .start(&sandbox, shell("polite", "trap 'echo bye; exit 7' TERM; echo up; while true; do sleep 0.05; done"))
        .await;
    let stubborn =
        node.start(&sandbox, shell("stubborn", "trap '' TERM; echo up; while true; do sleep 0.05; done")).await;
    for id in [&polite, &stubborn] {
        wait_for_log(&node, id, "up").await;
    }
    node.runtime.stop_container(&polite, Duration::from_secs(10)).await.unwrap();
    let status = node.runtime.container(&polite).await.unwrap();
    assert_eq!((status.exit_code, status.signal), (7, None));
    let began = Instant::now();
    node.runtime.stop_container(&stubborn, Duration::from_millis(300)).await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(300));
    let status = node.runtime.container(&stubborn).await.unwrap();
    assert_eq!((status.exit_code, status.signal), (137, Some(9)));
    // Both are stopped: again is nothing.
    node.runtime.stop_container(&stubborn, Duration::ZERO).await.unwrap();
}

pub async fn wait_for_log(node: &Node, id: &str, text: &str) {
    let path = node.runtime.container(id).await.unwrap().log_path;
    let wait = async {
        while !std::fs::read_to_string(&path).unwrap_or_default().contains(text) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap_or_else(|_| panic!("{text:?} in the log"));
}

#[tokio::test(flavor = "multi_thread")]
async fn security_settings_hold() {
    let node = Node::with_image().await;
    let sandbox = node.run_sandbox("a").await;
    let id_script = "id -u; id -g; id -G; grep -E 'NoNewPrivs|Seccomp:|CapEff' /proc/self/status";
    let mut config = shell("user", id_script);
    config.security.run_as_username = Some("web".into());
    config.security.allow_privilege_escalation = Some(false);
    let (status, log) = node.run(&sandbox, config).await;
    assert_eq!(status.uid, 33);
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines[..3], ["33", "34", "34 50"], "{log}");
    assert!(
        log.contains("NoNewPrivs:\t1") && log.contains("Seccomp:\t2") && log.contains("CapEff:\t0000000000000000"),
        "{log}"
    );

    let root = "id -u; grep -E 'NoNewPrivs|Seccomp:|CapEff' /proc/self/status; touch /x || echo read-only; \
                unshare -n true 2>&1 || echo no-unshare; mount -t tmpfs t /tmp 2>&1 || echo no-mount; \
                test -e /proc/kcore && head -c1 /proc/kcore | wc -c; echo 0 > /proc/sysrq-trigger || echo ro-proc; \
                (echo 1 > /sys/fs/cgroup/pids/pids.max || echo 1 > /sys/fs/cgroup/pids.max) 2>&1 || echo ro-cgroup";
    let mut config = shell("root", root);
    config.security.read_only_root = true;
    let (_, log) = node.run(&sandbox, config).await;
    assert!(log.contains("NoNewPrivs:\t0") && log.contains("CapEff:\t00000000a80425fb"), "{log}");
    for line in ["read-only", "no-unshare", "no-mount", "0", "ro-proc", "ro-cgroup"] {
        assert!(log.lines().any(|l| l == line), "{line:?} in {log}");
    }

    let mut config = shell(
        "privileged",
        "grep CapEff /proc/self/status; mount -t tmpfs t /tmp && echo mounted; ls /dev/kmsg; grep Seccomp: /proc/self/status",
    );
    config.security.privileged = true;
    let (_, log) = node.run(&sandbox, config).await;
    assert!(log.contains("mounted") && log.contains("/dev/kmsg") && log.contains("Seccomp:\t0"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_are_only_those_allowed() {
    let node = Node::with_image().await;
    let sandbox = node.run_sandbox("a").await;
    // Any block device of the machine.
    let mut blocks = std::fs::read_dir("/sys/class/block").unwrap().flatten();
    let (device, number) = blocks
        .find_map(|b| {
            let device = std::path::Path::new("/dev").join(b.file_name());
            std::fs::File::open(&device).ok()?;
            let number = std::fs::read_to_string(b.path().join("dev")).ok()?.trim().replace(':', " ");
            Some((device, number))
        })
        .expect("a block device");
    // The node may be made; opening it is what the rules forbid.
    let script = format!(
        "echo x > /dev/null && echo null; head -c1 /dev/zero | wc -c; cd /tmp; busybox mknod disk b {number} && \
         (head -c0 disk 2>&1 && echo opened)"
    );
    let (_, log) = node.run(&sandbox, shell("plain", &script)).await;
    assert!(log.contains("null\n1\n") && log.contains("not permitted") && !log.contains("opened"), "{log}");
    let mut config = shell("given", "head -c0 /dev/mine && echo opened; (: >> /dev/mine) 2>&1");
    config.devices = vec![(device, "/dev/mine".into(), "r".into())];
    let (_, log) = node.run(&sandbox, config).await;
    assert!(log.contains("opened") && log.contains("not permitted"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_are_what_was_asked() {
    let node = Node::with_image().await;
    let host = node.path().join("volume");
    std::fs::create_dir(&host).unwrap();
    std::fs::write(host.join("file"), "from the host\n").unwrap();
    let mount = |to: &str, read_only| Mount {
        host_path: host.clone(),
        container_path: to.into(),
        read_only,
        ..Default::default()
    };
    let sandbox = node.run_sandbox("a").await;
    let mut config =
        shell("c", "cat /v/file; touch /ro/x || echo ro; touch /v/made; cat /v/inner; echo shared > /dev/shm/x");
    let file = Mount { host_path: host.join("file"), container_path: "/v/inner".into(), ..Default::default() };
    config.mounts = vec![file, mount("/v", false), mount("/ro", true), mount("/made/by/runtime", false)];
    let (_, log) = node.run(&sandbox, config).await;
    assert!(log.contains("from the host\n") && log.contains("ro\n"), "{log}");
    assert_eq!(log.matches("from the host").count(), 2);
    assert!(host.join("made").exists());
    let (_, log) = node.run(&sandbox, shell("other", "cat /dev/shm/x")).await;
    assert_eq!(log, "shared\n", "a pod's containers share /dev/shm");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bidirectional_mount_reaches_the_host() {
    let node = Node::with_image().await;
    let host = node.path().join("shared");
    std::fs::create_dir_all(host.join("inner")).unwrap();
    isopod_sys::mount::bind(&host, &host).unwrap();
    isopod_sys::mount::make_shared(&host).unwrap();
    let sandbox = node.run_sandbox("a").await;
    let mut config = shell("c", "mount -t tmpfs mine /v/inner && echo ok");
    config.security.privileged = true;
    config.mounts = vec![Mount {
        host_path: host.clone(),
        container_path: "/v".into(),
        propagation: Propagation::Bidirectional,
        ..Default::default()
    }];
    let (_, log) = node.run(&sandbox, config).await;
    let seen = isopod_sys::mount::is_mount_point(&host.join("inner")).unwrap();
    isopod_sys::mount::detach_below(&host).unwrap();
    isopod_sys::mount::detach(&host).unwrap();
    assert!(seen, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_are_shared_where_asked() {
    let node = Node::with_image().await;
    let alone = node.run_sandbox("alone").await;
    let (_, log) = node.run(&alone, shell("c", "echo $$")).await;
    assert_eq!(log, "1\n");
    let mut config = node.sandbox("shared");
    config.pid = NamespaceMode::Pod;
    let shared = node.runtime.run_sandbox(config).await.unwrap();
    let first = node.start(&shared, shell("first", "echo up; sleep 1000")).await;
    wait_for_log(&node, &first, "up").await;
    let (_, log) =
        node.run(&shared, shell("c", "echo $$; cat /proc/1/comm; grep -l sleep /proc/[0-9]*/comm | wc -l")).await;
    let lines: Vec<&str> = log.lines().collect();
    assert!(lines[0] != "1" && lines[1] == "isopod-pause" && lines[2] == "1", "{log}");
    // An ephemeral container in the processes of another.
    let target = node.start(&alone, shell("target", "echo up; sleep 1000")).await;
    let mut debug = shell("debug", "cat /proc/1/comm");
    debug.target_container_id = Some(target);
    let (_, log) = node.run(&alone, debug).await;
    assert_eq!(log, "sleep\n");
    node.runtime.stop_sandbox(&shared).await.unwrap();
    assert_eq!(node.runtime.container(&first).await.unwrap().exit_code, 137);
}
