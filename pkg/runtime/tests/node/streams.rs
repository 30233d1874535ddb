//! Exec, attach and port-forward.

use crate::containers::wait_for_log;
use crate::fixture::{Node, shell};
use isopod_runtime::*;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;

struct Client {
    stdin: Option<DuplexStream>,
    stdout: DuplexStream,
    stderr: DuplexStream,
    resize: mpsc::Sender<TerminalSize>,
}

fn streams(tty: bool) -> (Client, Streams) {
    let pair = || tokio::io::duplex(64 << 10);
    let ((in_ours, in_theirs), (out_ours, out_theirs), (err_ours, err_theirs)) = (pair(), pair(), pair());
    let (resize, sizes) = mpsc::channel(4);
    let theirs = Streams {
        stdin: Some(Box::new(in_theirs)),
        stdout: Some(Box::new(out_theirs)),
        stderr: (!tty).then(|| Box::new(err_theirs) as BoxWrite),
        tty,
        resize: Some(sizes),
    };
    (Client { stdin: Some(in_ours), stdout: out_ours, stderr: err_ours, resize }, theirs)
}

async fn read_until(from: &mut DuplexStream, text: &str) -> String {
    let mut seen = String::new();
    let read = async {
        let mut buffer = [0; 1024];
        while !seen.contains(text) {
            let n = from.read(&mut buffer).await.unwrap();
            assert!(n > 0, "{text:?} before the end of {seen:?}");
            seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
        }
    };
    if tokio::time::timeout(Duration::from_secs(20), read).await.is_err() {
        panic!("{text:?} in {seen:?}");
    }
    seen
}

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

fn script(text: &str) -> Vec<String> {
    vec!["/bin/sh".into(), "-c".into(), text.into()]
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_run_in_a_container() {
    let node = Node::with_image().await;
    let sandbox = node.run_sandbox("a").await;
    let mut config = shell("c", "echo up; sleep 1000");
    config.security.run_as_user = Some(33);
    let id = node.start(&sandbox, config).await;
    let got = node.runtime.exec_sync(&id, script("echo out; echo err >&2; id -u; pwd; exit 5"), None).await.unwrap();
    assert_eq!(got, ExecOutput { exit_code: 5, stdout: b"out\n33\n/made/here\n".to_vec(), stderr: b"err\n".to_vec() });
    // The same confinement as the container itself.
    let status = "grep -E 'Seccomp:|CapEff|CapBnd' /proc/self/status";
    let got = node.runtime.exec_sync(&id, script(status), None).await.unwrap();
    let text = String::from_utf8(got.stdout).unwrap();
    assert!(
        text.contains("Seccomp:\t2")
            && text.contains("CapEff:\t0000000000000000")
            && text.contains("CapBnd:\t00000000a80425fb"),
        "{text}"
    );
    // The same processes, control group and mounts.
    let got = node
        .runtime
        .exec_sync(&id, script("cat /proc/1/comm; cat /proc/self/cgroup; cat /etc/second"), None)
        .await
        .unwrap();
    let text = String::from_utf8(got.stdout).unwrap();
    assert!(text.starts_with("sleep\n") || text.starts_with("sh\n"), "{text}");
    assert!(text.contains("memory:/\n") || text.contains("0::/\n"), "{text}");
    let e = node.runtime.exec_sync(&id, words("nope -x"), None).await.unwrap_err();
    assert_eq!(e.to_string(), "exec: \"nope\": executable file not found in $PATH");
    let long = node.runtime.exec_sync(&id, script("yes | head -c 100000"), None).await.unwrap();
    assert_eq!((long.exit_code, long.stdout.len()), (0, 16 << 10));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_takes_too_long_is_killed() {
    let node = Node::with_image().await;
    let sandbox = node.run_sandbox("a").await;
    let mut config = shell("c", "");
    config.command = words("/bin/sleep 1000");
    let id = node.start(&sandbox, config).await;
    let limit = Duration::from_millis(200);
    let e = node.runtime.exec_sync(&id, words("sleep 777"), Some(limit)).await.unwrap_err();
    assert!(matches!(e, RuntimeError::ExecTimeout(l) if l == limit), "{e}");
    let left = node.runtime.exec_sync(&id, script("grep -l sleep /proc/[0-9]*/comm"), None).await.unwrap();
    assert_eq!(left.stdout, b"/proc/1/comm\n", "only the container's own process sleeps");
    node.runtime.stop_container(&id, Duration::ZERO).await.unwrap();
    assert!(matches!(node.runtime.exec_sync(&id, words("true"), None).await, Err(RuntimeError::NotRunning(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_fed_and_heard() {
    let node = Node::with_image().await;
    let sandbox = node.run_sandbox("a").await;
    let id = node.start(&sandbox, shell("c", "echo up; sleep 1000")).await;
    let (mut client, theirs) = streams(false);
    let runtime = node.runtime.clone();
    let target = id.clone();
    let run = tokio::spawn(async move { runtime.exec(&target, script("cat; echo done >&2; exit 4"), theirs).await });
    let stdin = client.stdin.as_mut().unwrap();
    stdin.write_all(b"through\n").await.unwrap();
    read_until(&mut client.stdout, "through\n").await;
    client.stdin = None;
    read_until(&mut client.stderr, "done\n").await;
    assert_eq!(run.await.unwrap().unwrap(), 4);
}

/// What a child says that outlives the command belongs to its output, too.
#[tokio::test(flavor = "multi_thread")]
async fn all_output_comes_before_the_exit_code() {
    let node = Node::with_image().await;
    let sandbox = node.run_sandbox("a").await;
    let id = node.start(&sandbox, shell("c", "echo up; sleep 1000")).await;
    let late = script("(sleep 3; echo late) & echo now; exit 4");
    let (mut client, theirs) = streams(false);
    let code = node.runtime.exec(&id, late.clone(), theirs).await.unwrap();
    let mut out = String::new();
    client.stdout.read_to_string(&mut out).await.unwrap();
    assert_eq!((code, out.as_str()), (4, "now\nlate\n"));
    // A probe does not wait so long, but has what was said.
    let got = node.runtime.exec_sync(&id, late, None).await.unwrap();
    assert_eq!((got.exit_code, got.stdout.as_slice()), (4, &b"now\n"[..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_has_a_terminal() {
    let node = Node::with_image().await;
    let sandbox = node.run_sandbox("a").await;
    let id = node.start(&sandbox, shell("c", "echo up; sleep 1000")).await;
    let (mut client, theirs) = streams(true);
    let runtime = node.runtime.clone();
    let target = id.clone();
    client.resize.send(TerminalSize { width: 91, height: 37 }).await.unwrap();
    let run = tokio::spawn(async move { runtime.exec(&target, words("/bin/sh"), theirs).await });
    let stdin = client.stdin.as_mut().unwrap();
    stdin.write_all(b"tty; until stty size | grep -q 37; do :; done; stty size; echo $TERM; exit 6\n").await.unwrap();
    let seen = read_until(&mut client.stdout, "37 91").await;
    assert!(seen.contains("/dev/pts/0"), "{seen}");
    let end = tokio::time::timeout(Duration::from_secs(20), run).await.expect("the shell exits");
    assert_eq!(end.unwrap().unwrap(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_clients_attach() {
    let node = Node::with_image().await;
    let sandbox = node.run_sandbox("a").await;
    let mut config = shell("c", "echo up; while read line; do echo got $line; done; echo end; exit 9");
    (config.stdin, config.stdin_once) = (true, true);
    let id = node.start(&sandbox, config).await;
    wait_for_log(&node, &id, "up").await;
    let mut clients = Vec::new();
    let mut tasks = Vec::new();
    for _ in 0..2 {
        let (client, mut theirs) = streams(false);
        if !clients.is_empty() {
            theirs.stdin = None;
        }
        let (runtime, target) = (node.runtime.clone(), id.clone());
        tasks.push(tokio::spawn(async move { runtime.attach(&target, theirs).await }));
        clients.push(client);
    }
    // Both hear of a line once both are attached.
    let mut first = clients[0].stdin.take().unwrap();
    let (mut a, mut b) = (String::new(), String::new());
    let mut n = 0;
    while !(a.contains("got") && b.contains("got")) {
        n += 1;
        first.write_all(format!("line{n}\n").as_bytes()).await.unwrap();
        a.push_str(&read_until(&mut clients[0].stdout, &format!("got line{n}")).await);
        let mut buffer = [0; 1024];
        if let Ok(Ok(m)) = tokio::time::timeout(Duration::from_millis(50), clients[1].stdout.read(&mut buffer)).await {
            b.push_str(&String::from_utf8_lossy(&buffer[..m]));
        }
    }
    // stdinOnce: the end of the client's stdin is the container's.
    drop(first);
    for client in &mut clients {
        read_until(&mut client.stdout, "end").await;
    }
    for task in tasks {
        tokio::time::timeout(Duration::from_secs(20), task)
            .await
            .expect("attach ends with the container")
            .unwrap()
            .unwrap();
    }
    assert_eq!(node.ended(&id).await.exit_code, 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_with_a_terminal_is_attached_to() {
    let node = Node::with_image().await;
    let sandbox = node.run_sandbox("a").await;
    let mut config = shell("c", "echo up; tty; read line; stty size; exit 8");
    (config.stdin, config.tty) = (true, true);
    let id = node.start(&sandbox, config).await;
    wait_for_log(&node, &id, "/dev/pts/0").await;
    let (mut client, theirs) = streams(true);
    client.resize.send(TerminalSize { width: 100, height: 50 }).await.unwrap();
    let (runtime, target) = (node.runtime.clone(), id.clone());
    let run = tokio::spawn(async move { runtime.attach(&target, theirs).await });
    // The size arrives before what is typed after it.
    tokio::task::yield_now().await;
    while !client.resize.capacity().eq(&4) {
        tokio::task::yield_now().await;
    }
    client.stdin.as_mut().unwrap().write_all(b"\n").await.unwrap();
    read_until(&mut client.stdout, "50 100").await;
    run.await.unwrap().unwrap();
    assert_eq!(node.ended(&id).await.exit_code, 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_of_a_pod_are_reached() {
    let node = Node::with_image().await;
    let sandbox = node.run_sandbox("a").await;
    let id = node.start(&sandbox, shell("c", "echo up; nc -l -p 8099 -e /bin/cat")).await;
    wait_for_log(&node, &id, "up").await;
    let connect = async {
        loop {
            if let Ok(c) = node.runtime.port_forward(&sandbox, 8099).await {
                return c;
            }
        }
    };
    let mut connection = tokio::time::timeout(Duration::from_secs(20), connect).await.expect("the server listens");
    connection.write_all(b"echo").await.unwrap();
    let mut back = [0; 4];
    connection.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"echo");
    assert!(node.runtime.port_forward(&sandbox, 9).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moved_log_is_begun_anew() {
    let node = Node::with_image().await;
    let sandbox = node.run_sandbox("a").await;
    let mut config = shell("c", "echo before; read line; echo after");
    config.stdin = true;
    let id = node.start(&sandbox, config).await;
    wait_for_log(&node, &id, "before").await;
    let path = node.runtime.container(&id).await.unwrap().log_path;
    std::fs::rename(&path, path.with_extension("old")).unwrap();
    node.runtime.reopen_log(&id).await.unwrap();
    let (mut client, theirs) = streams(false);
    let (runtime, target) = (node.runtime.clone(), id.clone());
    let run = tokio::spawn(async move { runtime.attach(&target, theirs).await });
    client.stdin.as_mut().unwrap().write_all(b"\n").await.unwrap();
    run.await.unwrap().unwrap();
    node.ended(&id).await;
    let log = std::fs::read_to_string(&path).unwrap();
    assert!(log.contains("after") && !log.contains("before"), "{log}");
}
