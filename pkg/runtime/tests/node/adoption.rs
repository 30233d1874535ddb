//! A runtime that starts anew finds its pods, and learns what happened while nobody listened.

use crate::containers::wait_for_log;
use crate::fixture::{Node, ended, shell};
use isopod_runtime::*;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn running_pods_are_adopted() {
    let node = Node::with_image().await;
    let sandbox = node.run_sandbox("a").await;
    let runs = node.start(&sandbox, shell("runs", "echo up; sleep 1000")).await;
    let gate = node.path().join("gate");
    std::fs::create_dir(&gate).unwrap();
    let mut config = shell("ends", "while test ! -e /gate/open; do sleep 0.02; done; exit 42");
    config.mounts = vec![Mount { host_path: gate.clone(), container_path: "/gate".into(), ..Default::default() }];
    let ends = node.start(&sandbox, config).await;
    wait_for_log(&node, &runs, "up").await;
    // Another runtime in the same directories: the first one hears no more than a dead one would tell.
    let exit_file = node.config.data_dir.join("containers").join(&ends).join("exit.json");
    std::fs::write(gate.join("open"), "").unwrap();
    while !exit_file.exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let again = IsopodRuntime::open(node.config.clone()).await.unwrap();
    let status = again.container(&ends).await.unwrap();
    assert_eq!((status.state, status.exit_code), (ContainerState::Exited, 42));
    let status = again.container(&runs).await.unwrap();
    assert_eq!(status.state, ContainerState::Running);
    assert_eq!(again.sandbox(&sandbox).await.unwrap().state, SandboxState::Ready);
    let got = again.exec_sync(&runs, vec!["/bin/echo".into(), "hi".into()], None).await.unwrap();
    assert_eq!(got.stdout, b"hi\n");
    let third = again.create_container(&sandbox, shell("third", "exit 1")).await.unwrap();
    again.start_container(&third).await.unwrap();
    assert_eq!(ended(&again, &third).await.exit_code, 1);
    again.stop_container(&runs, Duration::ZERO).await.unwrap();
    again.remove_sandbox(&sandbox).await.unwrap();
    assert!(again.containers().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_that_died_takes_its_pod_along() {
    let node = Node::with_image().await;
    let sandbox = node.run_sandbox("a").await;
    let id = node.start(&sandbox, shell("c", "echo up; sleep 1000")).await;
    wait_for_log(&node, &id, "up").await;
    let pid = node.runtime.container(&id).await.unwrap().pid;
    let shim = node.runtime.sandbox(&sandbox).await.unwrap().pid;
    isopod_sys::process::signal(shim, 9).unwrap();
    let status = node.ended(&id).await;
    assert_eq!(status.exit_code, 137);
    assert_eq!(node.runtime.sandbox(&sandbox).await.unwrap().state, SandboxState::NotReady);
    while isopod_sys::process::alive(pid) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(matches!(node.runtime.exec_sync(&id, vec!["true".into()], None).await, Err(RuntimeError::NotRunning(_))));
    node.runtime.remove_sandbox(&sandbox).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn cleaning_up_leaves_nothing() {
    let node = Node::with_image().await;
    let sandbox = node.run_sandbox("a").await;
    let id = node.start(&sandbox, shell("c", "echo up; sleep 1000")).await;
    wait_for_log(&node, &id, "up").await;
    let pid = node.runtime.container(&id).await.unwrap().pid;
    let (data, state, group) = (&node.config.data_dir, &node.config.state_dir, &node.config.cgroup_root);
    cleanup(data, state, group).unwrap();
    assert!(!data.exists() && !state.exists() && !isopod_sys::process::alive(pid));
    let left: Vec<_> =
        isopod_sys::mount::table().unwrap().into_iter().filter(|m| m.path.starts_with(node.path())).collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(!isopod_sys::cgroup::Hierarchies::detect().unwrap().group(group).unwrap().exists());
    cleanup(data, state, group).unwrap();
}

/// The kernel takes the thread that starts a process for its parent: its end is the server's for this purpose.
#[tokio::test(flavor = "multi_thread")]
async fn a_shim_that_nobody_knows_dies_with_the_server() {
    use isopod_shim_protocol::{Ready, Request, Response, ShimConfig, read, write};
    use std::io::BufRead;
    use std::os::unix::net::UnixStream;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};

    let node = Node::new().await;
    let start = |name: &str, known: bool| {
        let dir = node.path().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        let config = ShimConfig {
            sandbox_id: name.into(),
            cgroup: format!("{}/shims", node.cgroup_root()),
            parent: std::process::id() as i32,
            ..Default::default()
        };
        std::fs::write(dir.join("shim.json"), serde_json::to_vec(&config).unwrap()).unwrap();
        let program = node.path().join("shim");
        std::fs::write(&program, zstd::decode_all(node.config.shim).unwrap()).unwrap();
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        std::thread::spawn(move || {
            let mut child = Command::new(program).arg("serve").arg(&dir).stdout(Stdio::piped()).spawn().unwrap();
            let mut line = String::new();
            std::io::BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
            assert!(matches!(serde_json::from_str(&line).unwrap(), Ready::Serving { .. }), "{line}");
            if known {
                let mut shim = UnixStream::connect(dir.join("shim.sock")).unwrap();
                write(&mut shim, &Request::State).unwrap();
                assert!(matches!(read(&mut shim).unwrap(), Some(Response::State { .. })));
            }
            child
        })
        .join()
        .unwrap()
    };
    let mut unknown = start("unknown", false);
    assert_eq!(unknown.wait().unwrap().signal(), Some(9));
    let mut known = start("known", true);
    assert!(known.try_wait().unwrap().is_none(), "it serves on");
    known.kill().unwrap();
    known.wait().unwrap();
}
