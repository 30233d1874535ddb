//! Renews the certificates that this server shows, and the administrator's, before their time is over. Listeners and clients
//! take the new ones at the next handshake; nothing is started again.

use crate::admin_config::Held;
use isopod_base::clock::Clock;
use isopod_base::errors::Chain;
use isopod_base::supervisor::Supervisor;
use isopod_pki::{Own, ServerPki};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The longest time without a look: a machine may sleep meanwhile, or its clock be set.
const DAY: Duration = Duration::from_secs(86_400);
/// So long before its end it is told that an authority ends. All that trusts it has its certificate, so that it is renewed at starts
/// only, when twice as much is left: no server is told that has been started since.
const ENDING: i64 = 365 * 86_400;
/// When to try again what failed.
const AGAIN: Duration = Duration::from_secs(600);

pub fn start(pki: Arc<ServerPki>, kubeconfig: Arc<Held>, clock: Clock, parts: &Supervisor) {
    // From now on it counts among what is shown.
    if let Err(e) = pki.shown(Own::Admin) {
        tracing::error!(error = %Chain(&e), "the administrator's certificate will not be renewed");
    }
    let stop = parts.token();
    parts.keep("renewal of certificates", move || run(pki.clone(), kubeconfig.clone(), clock.clone(), stop.clone()));
}

async fn run(pki: Arc<ServerPki>, kubeconfig: Arc<Held>, clock: Clock, stop: CancellationToken) {
    loop {
        let now = clock.now();
        let work = {
            let (pki, kubeconfig) = (pki.clone(), kubeconfig.clone());
            // It writes files.
            tokio::task::spawn_blocking(move || renew(&pki, &kubeconfig, now.as_second()))
        };
        let pause = match work.await {
            Ok(Ok(())) => until_next(&pki, now.as_second()),
            Ok(Err(e)) => {
                tracing::error!(error = %Chain(e.as_ref()), "cannot renew the certificates; trying again");
                AGAIN
            }
            // It panicked: the supervisor starts this anew.
            Err(_) => return,
        };
        tokio::select! {
            () = clock.sleep_until(now + pause) => {}
            () = stop.cancelled() => return,
        }
    }
}

fn renew(pki: &ServerPki, kubeconfig: &Held, now: i64) -> anyhow::Result<()> {
    for authority in pki.ending(now + ENDING) {
        tracing::warn!(authority, "the authority ends within a year: start Isopod again, which renews it");
    }
    for own in pki.renew(now)? {
        tracing::info!(certificate = ?own, "renewed");
    }
    // Not only when it was just renewed: to write it may have failed then.
    kubeconfig.renew(&pki.shown(Own::Admin)?.identity())
}

fn until_next(pki: &ServerPki, now: i64) -> Duration {
    let left = pki.next_renewal().map_or(i64::MAX, |at| at.saturating_sub(now));
    Duration::from_secs(u64::try_from(left).unwrap_or(0).max(1)).min(DAY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin_config::AdminConfig;
    use crate::paths::Paths;
    use isopod_pki::ServerNames;

    #[tokio::test]
    async fn certificates_are_renewed_in_time() {
        isopod_pki::tls::install_provider();
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path()).unwrap();
        let pki = Arc::new(ServerPki::load_or_create(&paths.tls(), &ServerNames::default()).unwrap());
        let path = dir.path().join("kubeconfig");
        let file = AdminConfig { path: &path, mode: 0o600, server: "https://127.0.0.1:6443" };
        let held = Arc::new(file.write(&paths, &pki).unwrap());
        let first = std::fs::read_to_string(&path).unwrap();
        let serving = pki.shown(Own::Serving).unwrap();
        let (clock, parts) = (Clock::fake(jiff::Timestamp::now()), Supervisor::new());
        let (expires, day) = (serving.expires(), 86_400);
        start(pki.clone(), held.clone(), clock.clone(), &parts);
        renew(&pki, &held, clock.now().as_second() + 274 * day).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), first, "not before its time");
        clock.advance(276 * DAY);
        let renewed = async {
            while serving.expires() == expires || std::fs::read_to_string(&path).unwrap() == first {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), renewed).await.expect("renewed");
        assert!((serving.expires() - expires - 276 * day).abs() < 60);
        parts.shutdown().await;
    }
}
