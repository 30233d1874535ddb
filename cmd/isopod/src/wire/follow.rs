//! Configuration files that may change while the server runs: looked at when something happens in their directory, and once a
//! minute, as upstream does.

use isopod_base::errors::Chain;
use isopod_sys::file_watch::DirectoryWatch;
use std::error::Error;
use std::future::Future;
use std::path::Path;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const PERIOD: Duration = Duration::from_secs(60);

/// Calls `look` until `stop`. It tells whether another configuration is in force now; an error leaves the old one in force.
pub async fn follow<F, Fut, E>(file: &Path, stop: CancellationToken, look: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Result<bool, E>>,
    E: Error + 'static,
{
    let directory = file.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let watch = DirectoryWatch::open(directory);
    if let Err(e) = &watch {
        tracing::warn!(file = %file.display(), error = %Chain(e), "cannot watch: it is looked at once a minute");
    }
    let mut said = None;
    loop {
        match look().await {
            Ok(changed) => {
                if changed {
                    tracing::info!(file = %file.display(), "the changed configuration is in force");
                    said = None;
                }
            }
            Err(e) => {
                let text = Chain(&e).to_string();
                if said.as_ref() != Some(&text) {
                    tracing::error!(file = %file.display(), error = text, "the configuration in force stays");
                }
                said = Some(text);
            }
        }
        let changed = async {
            // A watch that is broken is as good as none.
            match &watch {
                Ok(watch) => {
                    if watch.changed().await.is_err() {
                        std::future::pending::<()>().await;
                    }
                }
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            () = changed => {}
            () = tokio::time::sleep(PERIOD) => {}
            () = stop.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn a_change_is_seen_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.yaml");
        std::fs::write(&file, "a").unwrap();
        let (stop, looked) = (CancellationToken::new(), Arc::new(AtomicUsize::new(0)));
        let (seen, text) = tokio::sync::watch::channel(String::new());
        let following = {
            let (file, stop, looked) = (file.clone(), stop.clone(), looked.clone());
            tokio::spawn(async move {
                let look = || async {
                    looked.fetch_add(1, Ordering::SeqCst);
                    seen.send_replace(std::fs::read_to_string(&file).unwrap());
                    Ok::<_, Infallible>(true)
                };
                follow(&file, stop, look).await;
            })
        };
        let mut text = text;
        text.wait_for(|t| t == "a").await.unwrap();
        // As an editor does, and as a kubelet renews mounted files.
        std::fs::write(dir.path().join("new"), "b").unwrap();
        std::fs::rename(dir.path().join("new"), &file).unwrap();
        text.wait_for(|t| t == "b").await.unwrap();
        stop.cancel();
        following.await.unwrap();
        assert!(looked.load(Ordering::SeqCst) >= 2);
    }
}
