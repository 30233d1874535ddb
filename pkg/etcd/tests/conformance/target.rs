//! This server in the test's process, on a port of its own.

use isopod_etcd::{AuthConfig, Config, Listener, Service, TokenOptions, serve};
use isopod_store::Store;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// What the cases need servers to differ in.
#[derive(Clone, Copy, Default)]
pub struct Settings {
    pub quota: Option<i64>,
    pub progress: Option<Duration>,
    /// `--auth-token`, and `--auth-token-ttl` in seconds.
    pub token: Option<&'static str>,
    pub token_ttl: Option<u64>,
    /// The etcd from which on the case holds.
    pub since: (u32, u32),
}

pub struct Target {
    pub url: String,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Target {
    pub async fn start(store: Arc<dyn Store>, settings: Settings) -> Self {
        // Cheap passwords: these guard nothing.
        let mut auth = AuthConfig { bcrypt_cost: 4, ..AuthConfig::default() };
        if let Some(token) = settings.token {
            auth.tokens = TokenOptions::parse(token).unwrap();
        }
        if let Some(seconds) = settings.token_ttl {
            auth.token_ttl = Duration::from_secs(seconds);
        }
        let mut config = Config { quota_backend_bytes: settings.quota.unwrap_or(0), auth, ..Config::default() };
        if let Some(interval) = settings.progress {
            config.watch_progress_notify_interval = interval;
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let service = Service::new(store, config).await.unwrap();
        let stop = CancellationToken::new();
        let task = tokio::spawn(serve(service, vec![Listener::Tcp(listener, None)], stop.clone()));
        Target { url, stop, task }
    }

    pub async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}
