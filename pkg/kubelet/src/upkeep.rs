//! What is done now and then: logs are rotated, images that nobody uses are removed when the disk is full.

use crate::log_file;
use crate::node::bytes_to_free;
use crate::shared::Shared;
use isopod_base::errors::Chain;
use isopod_runtime::ContainerState;
use jiff::Timestamp;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Upstream's periods (`containerLogMonitorInterval`, `ImageGCPeriod`).
const LOGS: Duration = Duration::from_secs(10);
const IMAGES_EVERY: u32 = 30;

pub async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    let mut unused_since = HashMap::new();
    let mut round = 0u32;
    loop {
        tokio::select! {
            () = shared.clock.sleep(LOGS) => {}
            () = stop.cancelled() => return,
        }
        rotate_logs(&shared).await;
        round += 1;
        if round.is_multiple_of(IMAGES_EVERY) {
            collect_images(&shared, &mut unused_since).await;
        }
    }
}

pub async fn rotate_logs(shared: &Shared) {
    let Ok(containers) = shared.runtime.containers().await else { return };
    for c in containers.iter().filter(|c| c.state == ContainerState::Running) {
        let cfg = &shared.cfg;
        match log_file::rotate(&c.log_path, cfg.container_log_max_size, cfg.container_log_max_files, shared.clock.now())
        {
            Ok(true) => {
                if let Err(e) = shared.runtime.reopen_log(&c.id).await {
                    tracing::warn!(container = c.id, error = %Chain(&e), "cannot reopen a rotated log");
                }
            }
            Ok(false) => {}
            Err(e) => tracing::warn!(log = %c.log_path.display(), error = %e, "cannot rotate the log"),
        }
    }
}

/// Removes the images that were unused the longest until enough is free.
pub async fn collect_images(shared: &Shared, unused_since: &mut HashMap<String, Timestamp>) {
    let now = shared.clock.now();
    let (Ok(images), Ok(containers)) = (shared.runtime.images().await, shared.runtime.containers().await) else {
        return;
    };
    let used: HashSet<&str> = containers.iter().map(|c| c.config.image_id.as_str()).collect();
    unused_since.retain(|id, _| images.iter().any(|i| i.id == *id) && !used.contains(id.as_str()));
    for i in images.iter().filter(|i| !used.contains(i.id.as_str()) && !i.pinned) {
        unused_since.entry(i.id.clone()).or_insert(now);
    }
    let mut to_free = match bytes_to_free(shared).await {
        Ok(n) => n,
        Err(e) => return tracing::warn!(error = %Chain(&e), "cannot read the image disk's use"),
    };
    let mut candidates: Vec<_> = unused_since.iter().map(|(id, at)| (*at, id.clone())).collect();
    candidates.sort();
    for (since, id) in candidates {
        if to_free == 0 {
            break;
        }
        if now < since + shared.cfg.image_minimum_age {
            continue;
        }
        let size = images.iter().find(|i| i.id == id).map_or(0, |i| i.size);
        match shared.runtime.remove_image(&id).await {
            Ok(()) => {
                tracing::info!(image = id, "removed an unused image to free space");
                unused_since.remove(&id);
                to_free = to_free.saturating_sub(size);
            }
            Err(e) => tracing::warn!(image = id, error = %Chain(&e), "cannot remove an unused image"),
        }
    }
}
