//! etcd's own command line: what it prints of this server is what it prints of a real etcd.
//!
//! It is `ISOPOD_TEST_ETCDCTL`, else `etcdctl` on the path.

use crate::raw::Raw;
use crate::referee;
use crate::target::{Settings, Target};
use isopod_store::memory::MemoryStore;
use serde_json::json;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;

/// Words; quotes keep what is in them together.
fn words(line: &str) -> Vec<String> {
    let mut out = Vec::new();
    for (i, part) in line.split('"').enumerate() {
        if i % 2 == 1 {
            out.push(part.to_owned());
        } else {
            out.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    out
}

struct Server {
    /// Without a scheme: with one, 3.4 makes an authority of it that HTTP/2 forbids, and this server refuses.
    address: String,
    /// What is this server's alone, and what stands for it.
    names: Vec<(String, &'static str)>,
}

impl Server {
    async fn new(url: &str) -> Self {
        let list = Raw::connect(url).await.call("Cluster/MemberList", &json!({})).await.unwrap();
        let id = list["members"][0]["ID"].as_u64().unwrap();
        let address = url.trim_start_matches("http://");
        let names = vec![
            (id.to_string(), "MEMBER"),
            (format!("{id:x}"), "MEMBER"),
            (url.to_owned(), "URL"),
            (address.to_owned(), "URL"),
        ];
        Server { address: address.to_owned(), names }
    }

    /// All that it prints, and how it ends.
    fn run(&self, program: &str, line: &str) -> String {
        let (command, input) = line.split_once('«').unwrap_or((line, ""));
        let mut child = Command::new(program)
            .args(["--endpoints", &self.address, "--command-timeout", "20s"])
            .args(words(command))
            .env("ETCDCTL_API", "3")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{program}: {e}: apt-get install etcd-client, or set ISOPOD_TEST_ETCD=skip"));
        child.stdin.take().unwrap().write_all(input.trim_start().replace("\\n", "\n").as_bytes()).unwrap();
        let out = child.wait_with_output().unwrap();
        let text = [&out.stdout[..], &out.stderr].map(String::from_utf8_lossy).concat();
        let mut text: String = text.lines().map(without_time).collect();
        for (name, placeholder) in &self.names {
            text = text.replace(name, placeholder);
        }
        format!("{text}exit {:?}", out.status.code())
    }
}

/// Logs of the client's retries tell the time and addresses in memory; ids of clusters and leases are chosen by each server.
fn without_time(line: &str) -> String {
    if line.starts_with("{\"level\"") {
        return String::new();
    }
    let mut out = line.to_owned();
    for (before, after) in [("\"cluster_id\":", ","), ("\"ClusterID\" : ", "\n"), ("\"raft_term\":", "}")] {
        if let Some(at) = out.find(before) {
            let from = at + before.len();
            let to = out[from..].find(after).map_or(out.len(), |n| from + n);
            out.replace_range(from..to, "N");
        }
    }
    if out.starts_with("\"RaftTerm\"") {
        return "RaftTerm\n".into();
    }
    if out.starts_with("lease ") && out.contains("granted") {
        return "lease granted\n".into();
    }
    if out.len() == 16 && out.bytes().all(|b| b.is_ascii_hexdigit()) {
        return "LEASE\n".into();
    }
    if out.starts_with("Finished defragmenting") {
        return "Finished defragmenting\n".into();
    }
    // The key of a lock ends with its lease.
    if let Some((name, _)) = out.split_once('/').filter(|(name, _)| *name == "l") {
        return format!("{name}/LEASE\n");
    }
    out.push('\n');
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn etcdctl_prints_the_same() {
    let Some(etcd) = referee::start(Settings { since: (3, 7), ..Settings::default() }).await else { return };
    let program = std::env::var("ISOPOD_TEST_ETCDCTL").unwrap_or_else(|_| "etcdctl".into());
    let memory = Target::start(Arc::new(MemoryStore::default()), Settings::default()).await;
    let (etcd, memory) = (Server::new(&etcd.url).await, Server::new(&memory.url).await);
    let script = include_str!("scripts/etcdctl.txt");
    let different = tokio::task::spawn_blocking(move || {
        let mut different = Vec::new();
        for line in script.lines().filter(|l| !l.starts_with('#')) {
            let (want, got) = (etcd.run(&program, line), memory.run(&program, line));
            if want != got {
                different.push(format!("{line}\n  etcd: {want}\n  ours: {got}"));
            }
        }
        different
    });
    let different = different.await.unwrap();
    assert!(different.is_empty(), "{}", different.join("\n"));
}
