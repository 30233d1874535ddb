//! A real etcd of the test's own; it ends with its value.

use crate::target::Settings;
use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};
use isopod_pki::ServerPki;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub struct Referee {
    pub url: String,
    command: Command,
    child: Child,
    _dir: tempfile::TempDir,
}

impl Drop for Referee {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `None`: deselected.
fn program() -> Option<PathBuf> {
    match std::env::var("ISOPOD_TEST_ETCD") {
        Ok(v) if v == "skip" => return None,
        Ok(path) => return Some(path.into()),
        Err(_) => {}
    }
    let home = std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or(home)?.join("isopod/upstream");
    let built = std::fs::read_dir(cache).into_iter().flatten().flatten().map(|e| e.path().join("etcd"));
    // The newest by the name of its folder.
    Some(built.filter(|p| p.is_file()).max().unwrap_or_else(|| "etcd".into()))
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The version's first two numbers.
fn version(program: &Path) -> (u32, u32) {
    let out = Command::new(program).arg("--version").output().unwrap_or_else(|e| {
        panic!("{}: {e}: apt-get install etcd-server, or set ISOPOD_TEST_ETCD=skip", program.display())
    });
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let number = text.lines().find_map(|l| l.strip_prefix("etcd Version: ")).unwrap_or_default().to_owned();
    let mut parts = number.split('.').map(|n| n.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

/// `None`: deselected, or older than what the case is about.
pub async fn start(settings: Settings) -> Option<Referee> {
    let Some(program) = program() else {
        println!("etcd: deselected by ISOPOD_TEST_ETCD=skip");
        return None;
    };
    let version = version(&program);
    if version < settings.since {
        println!("etcd: {version:?} is older than {:?}: not asked", settings.since);
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let (port, peer) = (free_port(), free_port());
    let url = format!("http://127.0.0.1:{port}");
    let peer = format!("http://127.0.0.1:{peer}");
    let mut command = Command::new(&program);
    command
        .args(["--name", "referee", "--data-dir"])
        .arg(dir.path())
        .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("referee={peer}")])
        .args(["--quota-backend-bytes", &settings.quota.unwrap_or(0).to_string()])
        .args(["--bcrypt-cost", "4"])
        .env("ETCD_UNSUPPORTED_ARCH", std::env::consts::ARCH)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if let Some(interval) = settings.progress {
        command.arg(format!("--watch-progress-notify-interval={}ms", interval.as_millis()));
    }
    if let Some(token) = settings.token {
        command.args(["--auth-token", token]);
    }
    if let Some(seconds) = settings.token_ttl {
        command.args(["--auth-token-ttl", &seconds.to_string()]);
    }
    let child = command.spawn().expect("its version was just asked");
    let server = Referee { url, command, child, _dir: dir };
    server.wait(None).await;
    Some(server)
}

impl Referee {
    /// With SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// After [`Self::kill`]: on its data and at its address. Returns before it answers.
    pub fn start_again(&mut self) {
        self.child = self.command.spawn().unwrap();
    }

    /// `STOP` and `CONT`: it is silent meanwhile, and its connections stay.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    async fn wait(&self, tls: Option<TlsOptions>) {
        let deadline = Instant::now() + Duration::from_secs(30);
        let options = tls.map(|tls| ConnectOptions::new().with_tls(tls));
        loop {
            let answers = async { Client::connect([&self.url], options.clone()).await?.get("x", None).await };
            match answers.await {
                Ok(_) => return,
                Err(e) => assert!(Instant::now() < deadline, "etcd does not answer within 30 s: {e}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// One that asks its clients for certificates of `pki`, whose files it puts into `folder`.
pub async fn start_with_certificates(pki: &ServerPki, folder: &Path) -> Option<Referee> {
    let program = program()?;
    let file = |name: &str, pem: &str| {
        let path = folder.join(name);
        std::fs::write(&path, pem).unwrap();
        path
    };
    let dir = tempfile::tempdir().unwrap();
    let url = format!("https://127.0.0.1:{}", free_port());
    let peer = format!("http://127.0.0.1:{}", free_port());
    let mut command = Command::new(&program);
    command
        .args(["--name", "referee", "--bcrypt-cost", "4", "--client-cert-auth", "--data-dir"])
        .arg(dir.path())
        .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("referee={peer}")])
        .arg("--cert-file")
        .arg(file("etcd.crt", &pki.serving.cert_pem))
        .arg("--key-file")
        .arg(file("etcd.key", &pki.serving.key_pem))
        .arg("--trusted-ca-file")
        .arg(file("etcd-ca.crt", &pki.client_ca.cert_pem))
        .env("ETCD_UNSUPPORTED_ARCH", std::env::consts::ARCH)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let child = command.spawn().unwrap_or_else(|e| panic!("{}: {e}", program.display()));
    let server = Referee { url, command, child, _dir: dir };
    let tls = TlsOptions::new()
        .ca_certificate(Certificate::from_pem(&pki.server_ca.cert_pem))
        .identity(Identity::from_pem(&pki.admin.cert_pem, &pki.admin.key_pem));
    server.wait(Some(tls)).await;
    Some(server)
}
