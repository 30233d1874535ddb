//! Debian's docker-registry on a free port of the loopback.

use crate::fixture::blobs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

pub struct Registry {
    child: Child,
    pub port: u16,
    dir: Arc<tempfile::TempDir>,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Registry {
    /// Plain HTTP, for everybody.
    pub fn start() -> Self {
        Self::serve(Arc::new(tempfile::tempdir().unwrap()), "", "")
    }

    /// Another one with the same images; further settings of `http`, and a section `auth`.
    pub fn guarded(&self, http: &str, auth: &str) -> Self {
        Self::serve(self.dir.clone(), http, auth)
    }

    /// The directory that lives as long as the registry.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn serve(dir: Arc<tempfile::TempDir>, http: &str, auth: &str) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = dir.path().join(format!("config-{port}.yml"));
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\nhttp: {{addr: \"127.0.0.1:{port}\"{http}}}\n{auth}\n",
            dir.path().join("store").display()
        );
        std::fs::write(&config, text).unwrap();
        let child = Command::new("docker-registry")
            .args(["serve", config.to_str().unwrap()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed");
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            std::thread::yield_now();
        }
        Registry { child, port, dir }
    }

    /// One HTTP request; answers the status and the `Location` header.
    fn request(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> (u16, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            self.port,
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut lines = BufReader::new(stream);
        let mut status = String::new();
        lines.read_line(&mut status).unwrap();
        let mut location = String::new();
        loop {
            let mut line = String::new();
            if lines.read_line(&mut line).unwrap() <= 2 {
                break;
            }
            if let Some(l) = line.to_ascii_lowercase().starts_with("location: ").then(|| line[10..].trim().to_owned()) {
                location = l;
            }
        }
        let _ = lines.read_to_end(&mut vec![]);
        (status.split(' ').nth(1).unwrap().parse().unwrap(), location)
    }

    /// Pushes the test image; its manifest's digest.
    pub fn push(&self, repository: &str, tag: &str) -> String {
        let (manifest, blobs) = blobs();
        for (hex, body) in blobs.iter().filter(|(hex, _)| **hex != manifest) {
            let (_, location) = self.request("POST", &format!("/v2/{repository}/blobs/uploads/"), "text/plain", b"");
            let path = location.split_once(&format!(":{}", self.port)).map_or(location.as_str(), |(_, p)| p);
            let join = if path.contains('?') { '&' } else { '?' };
            let put = format!("{path}{join}digest=sha256:{hex}");
            assert_eq!(self.request("PUT", &put, "application/octet-stream", body).0, 201);
        }
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let put = self.request("PUT", &format!("/v2/{repository}/manifests/{tag}"), kind, &blobs[&manifest]);
        assert_eq!(put.0, 201);
        // An index with this machine's platform and another's.
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let entry = |platform: &str| {
            serde_json::json!({
                "mediaType": kind, "digest": format!("sha256:{manifest}"), "size": blobs[&manifest].len(),
                "platform": {"os": "linux", "architecture": platform},
            })
        };
        let index_kind = "application/vnd.oci.image.index.v1+json";
        let index = serde_json::json!({
            "schemaVersion": 2, "mediaType": index_kind, "manifests": [entry(architecture)],
        });
        let put =
            self.request("PUT", &format!("/v2/{repository}/manifests/index"), index_kind, index.to_string().as_bytes());
        assert_eq!(put.0, 201);
        manifest
    }
}
