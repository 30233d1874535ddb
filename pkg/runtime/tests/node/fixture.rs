//! A runtime with its own directories, gone with the test, and an image made of the machine's static busybox.

use isopod_runtime::*;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

pub const IMAGE: &str = "docker.io/library/box:test";

pub struct Node {
    pub runtime: Arc<IsopodRuntime>,
    pub config: RuntimeConfig,
    dir: tempfile::TempDir,
}

/// The shim that cargo built beside this test, compressed.
fn shim() -> &'static [u8] {
    static SHIM: OnceLock<Vec<u8>> = OnceLock::new();
    SHIM.get_or_init(|| {
        let own = std::env::current_exe().unwrap();
        let path = own.parent().unwrap().parent().unwrap().join("isopod-shim");
        let shim = std::fs::read(&path)
            .unwrap_or_else(|e| panic!("{}: {e}: run `cargo b -p isopod-shim` first", path.display()));
        zstd::encode_all(&shim[..], 1).unwrap()
    })
}

impl Node {
    pub async fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "these tests need root");
        let dir = tempfile::tempdir().unwrap();
        let cgroup_root =
            format!("/isopod-test-{}", dir.path().file_name().unwrap().to_string_lossy().replace('.', ""));
        let config = RuntimeConfig {
            data_dir: dir.path().join("data"),
            state_dir: dir.path().join("state"),
            cgroup_root,
            shim: shim(),
            network: None,
            registries: dir.path().join("registries.yaml"),
            seccomp_root: dir.path().join("seccomp"),
        };
        let runtime = IsopodRuntime::open(config.clone()).await.unwrap();
        Node { runtime, config, dir }
    }

    pub async fn with_image() -> Self {
        let node = Self::new().await;
        node.runtime.import_images(std::io::Cursor::new(archive())).await.unwrap();
        node
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn cgroup_root(&self) -> &str {
        &self.config.cgroup_root
    }

    pub fn sandbox(&self, name: &str) -> SandboxConfig {
        SandboxConfig {
            id: PodId { namespace: "test".into(), name: name.into(), uid: format!("uid-{name}"), attempt: 0 },
            hostname: name.into(),
            pid: NamespaceMode::Container,
            cgroup_parent: format!("{}/pod{name}", self.config.cgroup_root),
            log_directory: self.path().join("logs").join(name),
            ..Default::default()
        }
    }

    pub async fn run_sandbox(&self, name: &str) -> String {
        self.runtime.run_sandbox(self.sandbox(name)).await.unwrap()
    }

    pub async fn start(&self, sandbox: &str, config: ContainerConfig) -> String {
        let id = self.runtime.create_container(sandbox, config).await.unwrap();
        self.runtime.start_container(&id).await.unwrap();
        id
    }

    /// Waits on the runtime's events until the container has ended.
    pub async fn ended(&self, id: &str) -> ContainerStatus {
        ended(&self.runtime, id).await
    }

    /// Runs a shell script as a container of its own to its end; answers its status and log.
    pub async fn run(&self, sandbox: &str, config: ContainerConfig) -> (ContainerStatus, String) {
        let id = self.start(sandbox, config).await;
        let status = self.ended(&id).await;
        let log = text_of(&std::fs::read_to_string(&status.log_path).unwrap());
        (status, log)
    }
}

pub async fn ended(runtime: &IsopodRuntime, id: &str) -> ContainerStatus {
    let mut events = runtime.subscribe();
    let wait = async {
        loop {
            let status = runtime.container(id).await.unwrap();
            if status.state == ContainerState::Exited {
                return status;
            }
            let _ = events.recv().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.expect("the container ends")
}

impl Drop for Node {
    fn drop(&mut self) {
        let done = cleanup(&self.config.data_dir, &self.config.state_dir, &self.config.cgroup_root);
        if !std::thread::panicking() {
            done.unwrap();
        }
    }
}

/// The lines of a CRI log without their time, stream and tag.
pub fn text_of(log: &str) -> String {
    log.lines().map(|l| format!("{}\n", l.splitn(4, ' ').nth(3).unwrap_or_default())).collect()
}

pub fn shell(name: &str, script: &str) -> ContainerConfig {
    ContainerConfig {
        name: name.into(),
        image: IMAGE.into(),
        command: vec!["/bin/sh".into(), "-c".into(), script.into()],
        log_path: PathBuf::from(format!("{name}/0.log")),
        ..Default::default()
    }
}

pub fn sha(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn entry(b: &mut tar::Builder<Vec<u8>>, path: &str, kind: tar::EntryType, mode: u32, body: &[u8], link: Option<&str>) {
    let mut h = tar::Header::new_gnu();
    h.set_entry_type(kind);
    h.set_mode(mode);
    h.set_size(body.len() as u64);
    match link {
        Some(to) => b.append_link(&mut h, path, to).unwrap(),
        None => b.append_data(&mut h, path, body).unwrap(),
    }
}

/// Two layers: busybox and users; the second removes a file of the first.
pub fn layers() -> Vec<Vec<u8>> {
    use tar::EntryType::{Directory, Regular, Symlink};
    let mut busybox = Vec::new();
    std::fs::File::open("/bin/busybox")
        .or_else(|_| std::fs::File::open("/usr/bin/busybox"))
        .expect("busybox-static is installed")
        .read_to_end(&mut busybox)
        .unwrap();
    let mut b = tar::Builder::new(vec![]);
    for dir in ["bin", "etc", "home", "home/web"] {
        entry(&mut b, dir, Directory, 0o755, b"", None);
    }
    entry(&mut b, "tmp", Directory, 0o1777, b"", None);
    entry(&mut b, "bin/busybox", Regular, 0o755, &busybox, None);
    let applets = "sh cat echo id sleep ls touch mount umount grep head wc stty tty kill ps env hostname chroot unshare nc \
                   dd tail true false mkdir readlink yes test seq";
    for applet in applets.split_whitespace() {
        entry(&mut b, &format!("bin/{applet}"), Symlink, 0o777, b"", Some("busybox"));
    }
    let passwd = b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/home/web:/bin/sh\n";
    entry(&mut b, "etc/passwd", Regular, 0o644, passwd, None);
    entry(&mut b, "etc/group", Regular, 0o644, b"root:x:0:\nweb:x:34:\nextra:x:50:web\n", None);
    entry(&mut b, "etc/removed", Regular, 0o644, b"x", None);
    let first = b.into_inner().unwrap();
    let mut b = tar::Builder::new(vec![]);
    entry(&mut b, "etc/.wh.removed", Regular, 0o644, b"", None);
    entry(&mut b, "etc/second", Regular, 0o644, b"of the second layer\n", None);
    vec![first, b.into_inner().unwrap()]
}

/// Manifest, config and layers by digest; the second layer is zstd, the first gzip.
pub fn blobs() -> (String, BTreeMap<String, Vec<u8>>) {
    let layers = layers();
    let mut gz = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
    std::io::Write::write_all(&mut gz, &layers[0]).unwrap();
    let packed = [gz.finish().unwrap(), zstd::encode_all(&layers[1][..], 1).unwrap()];
    let diff_ids: Vec<String> = layers.iter().map(|l| format!("sha256:{}", sha(l))).collect();
    let config = serde_json::to_vec(&serde_json::json!({
        "architecture": "any", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "config": {"Env": ["FROM_IMAGE=yes"], "Cmd": ["/bin/true"], "WorkingDir": "/made/here", "User": ""},
    }))
    .unwrap();
    let media = ["application/vnd.oci.image.layer.v1.tar+gzip", "application/vnd.oci.image.layer.v1.tar+zstd"];
    let layer = |i: usize| serde_json::json!({"mediaType": media[i], "digest": format!("sha256:{}", sha(&packed[i])), "size": packed[i].len()});
    let manifest = serde_json::to_vec(&serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                   "digest": format!("sha256:{}", sha(&config)), "size": config.len()},
        "layers": [layer(0), layer(1)],
    }))
    .unwrap();
    let all = [manifest.clone(), config].into_iter().chain(packed);
    (sha(&manifest), all.map(|b| (sha(&b), b)).collect())
}

/// An OCI archive.
pub fn archive() -> Vec<u8> {
    let (manifest, blobs) = blobs();
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": format!("sha256:{manifest}"),
        "size": blobs[&manifest].len(), "annotations": {"io.containerd.image.name": IMAGE},
    }]});
    let mut b = tar::Builder::new(vec![]);
    entry(&mut b, "oci-layout", tar::EntryType::Regular, 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#, None);
    entry(&mut b, "index.json", tar::EntryType::Regular, 0o644, index.to_string().as_bytes(), None);
    for (hex, body) in blobs {
        entry(&mut b, &format!("blobs/sha256/{hex}"), tar::EntryType::Regular, 0o644, &body, None);
    }
    b.into_inner().unwrap()
}
