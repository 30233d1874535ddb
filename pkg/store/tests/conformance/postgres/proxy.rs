//! A network between the store and Postgres that loses what a test wants lost.

use super::server::Cluster;
use isopod_store::postgres::PostgresOptions;
use parking_lot::Mutex;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    Nothing,
    /// The next COMMIT does not arrive, and the connection ends.
    Commit,
    /// The next COMMIT arrives; its answer does not.
    CommitAnswer,
    /// The connection ends for the store at the next COMMIT, which arrives a while later.
    LateCommit,
    /// Nothing arrives any more, and nobody is told.
    Everything,
}

pub struct Proxy {
    dir: tempfile::TempDir,
    loss: Arc<Mutex<Loss>>,
    stalled: watch::Sender<bool>,
}

/// As the store sends it: a simple query.
const COMMIT: &[u8] = b"Q\0\0\0\x0bCOMMIT\0";

impl Proxy {
    pub fn start(cluster: &Cluster) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join(".s.PGSQL.5432")).unwrap();
        let proxy = Proxy { dir, loss: Arc::new(Mutex::new(Loss::Nothing)), stalled: watch::Sender::new(false) };
        let (server, loss, stalled) = (cluster.socket(), Arc::clone(&proxy.loss), proxy.stalled.subscribe());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, server.clone(), Arc::clone(&loss), stalled.clone()));
            }
        });
        proxy
    }

    pub fn options(&self, schema: &str) -> PostgresOptions {
        let socket = self.dir.path().display().to_string().replace('/', "%2F");
        let url = format!("postgres://isopod@{socket}/postgres");
        PostgresOptions { schema: schema.into(), ..PostgresOptions::new(url) }
    }

    pub fn lose(&self, loss: Loss) {
        *self.loss.lock() = loss;
        self.stalled.send_replace(loss == Loss::Everything);
    }

    /// Has what was to be lost been lost?
    pub fn has_lost(&self) -> bool {
        *self.loss.lock() == Loss::Nothing
    }
}

async fn serve(client: UnixStream, server: PathBuf, loss: Arc<Mutex<Loss>>, stalled: watch::Receiver<bool>) {
    let Ok(server) = UnixStream::connect(server).await else { return };
    let ((from_client, mut to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let (cut, cut_here) = watch::channel(false);
    let forth = forward(from_client, to_server, loss, stalled.clone(), cut);
    tokio::spawn(forth);
    back(from_server, &mut to_client, stalled, cut_here).await;
}

async fn flows(stalled: &mut watch::Receiver<bool>) {
    let _ = stalled.wait_for(|stalled| !stalled).await;
}

async fn forward(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    loss: Arc<Mutex<Loss>>,
    mut stalled: watch::Receiver<bool>,
    cut: watch::Sender<bool>,
) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        flows(&mut stalled).await;
        if buffer[..n].ends_with(COMMIT) {
            let lost = std::mem::replace(&mut *loss.lock(), Loss::Nothing);
            if lost != Loss::Nothing {
                cut.send_replace(true);
                match lost {
                    Loss::CommitAnswer => to.write_all(&buffer[..n]).await.unwrap(),
                    Loss::LateCommit => {
                        tokio::time::sleep(Duration::from_millis(700)).await;
                        to.write_all(&buffer[..n]).await.unwrap();
                        tokio::time::sleep(Duration::from_millis(200)).await;
                    }
                    _ => {}
                }
                return;
            }
        }
        if to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}

/// Ends with the connection, or when it is cut.
async fn back(
    mut from: OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    mut stalled: watch::Receiver<bool>,
    mut cut: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n = tokio::select! {
            n = from.read(&mut buffer) => n,
            _ = cut.wait_for(|cut| *cut) => return,
        };
        flows(&mut stalled).await;
        match n {
            Ok(n @ 1..) if to.write_all(&buffer[..n]).await.is_ok() => {}
            _ => return,
        }
    }
}
