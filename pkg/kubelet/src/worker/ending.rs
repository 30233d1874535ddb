//! The end of a pod: containers stop, the sandbox stops, volumes go, the last status is written; when the pod is deleted its
//! records go too, and then its object.

use super::{Next, Worker};
use crate::log_file;
use crate::pod::PodExt;
use crate::state::annotation;
use crate::volumes;
use isopod_base::errors::Chain;
use isopod_client::{Delete, Preconditions};
use isopod_runtime::{RuntimeError, SandboxState};
use std::io;

impl Worker {
    /// `gone`: the API has no such pod any more.
    pub(super) async fn end(&mut self, gone: bool) -> Next {
        let ip = self.pod_ip();
        let running: Vec<_> = self.state.running().collect();
        self.probes.end(&self.pod, &running, &ip);
        self.drop_failed_kills();
        if !self.kill_all() {
            return self.report_ending(gone, false).await.sooner(self.kill_deadline());
        }
        if let Err(e) = self.stop_sandboxes().await {
            let message = format!("error killing pod: {}", Chain(&e));
            self.warn_once("FailedKillPod", message);
            return self.retry();
        }
        let removes = gone || self.pod.is_deleted();
        if let Err(e) = self.tear_down(removes).await {
            tracing::warn!(pod = %self.pod.display(), error = %e, "cannot take the pod's volumes away");
            return self.retry();
        }
        if removes && let Err(e) = self.remove_records().await {
            tracing::warn!(pod = %self.pod.display(), error = %Chain(&e), "cannot remove the pod's containers");
            return self.retry();
        }
        self.finished = true;
        self.shared.release(self.pod.uid());
        if gone {
            return Next::Done;
        }
        let next = self.report_ending(gone, true).await;
        if next != Next::Wait(None) || !self.pod.is_deleted() {
            return next;
        }
        self.delete_object().await
    }

    async fn report_ending(&mut self, gone: bool, terminal: bool) -> Next {
        if gone {
            return Next::Wait(None);
        }
        match self.report(terminal).await {
            // Not there: the API's event follows.
            Ok(_) => {
                self.failures = 0;
                Next::Wait(None)
            }
            Err(e) => {
                tracing::warn!(pod = %self.pod.display(), error = %Chain(&e), "cannot write the pod's status");
                self.retry()
            }
        }
    }

    async fn delete_object(&mut self) -> Next {
        let pod = &self.pod;
        let options = Delete {
            preconditions: Preconditions::uid(pod.uid()),
            grace_period_seconds: Some(0),
            ..Default::default()
        };
        match self.shared.pods.delete(pod.ns(), pod.pod_name(), &options).await {
            // The API's event ends the worker; finalizers may hold the object until then.
            Ok(_) => Next::Wait(None),
            Err(e) if e.is_not_found() || e.is_conflict() => Next::Wait(None),
            Err(e) => {
                tracing::warn!(pod = %pod.display(), error = %Chain(&e), "cannot delete the pod's object");
                self.retry()
            }
        }
    }

    async fn stop_sandboxes(&mut self) -> Result<(), RuntimeError> {
        for s in self.state.sandboxes.iter().filter(|s| s.state == SandboxState::Ready) {
            self.shared.runtime.stop_sandbox(&s.id).await?;
        }
        for s in &mut self.state.sandboxes {
            s.state = SandboxState::NotReady;
        }
        Ok(())
    }

    /// Volumes go with the last container. What containers left to say stays until the pod is deleted.
    async fn tear_down(&mut self, all: bool) -> io::Result<()> {
        if self.torn_down && !all {
            return Ok(());
        }
        let dir = self.shared.cfg.pod_dir(self.pod.uid());
        let mounter = self.shared.mounter.clone();
        let work = move || {
            if all {
                return volumes::tear_down(&*mounter, &dir);
            }
            volumes::tear_down(&*mounter, &dir.join("volume-subpaths"))?;
            volumes::tear_down(&*mounter, &dir.join("volumes"))
        };
        tokio::task::spawn_blocking(work).await.map_err(io::Error::other)??;
        self.torn_down = true;
        Ok(())
    }

    async fn remove_records(&mut self) -> Result<(), RuntimeError> {
        let runtime = &self.shared.runtime;
        for c in &self.state.containers {
            runtime.remove_container(&c.id).await?;
        }
        for s in &self.state.sandboxes {
            runtime.remove_sandbox(&s.id).await?;
        }
        let logs = self.shared.cfg.log_dir(self.pod.ns(), self.pod.pod_name(), self.pod.uid());
        match std::fs::remove_dir_all(&logs) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(RuntimeError::Io { context: format!("cannot remove {}", logs.display()), source })
            }
            _ => Ok(()),
        }
    }

    /// Keeps of each container the newest and the one before it, and removes sandboxes that nothing is left of.
    pub(super) async fn collect_garbage(&mut self) {
        let mut seen = std::collections::HashMap::<&str, u32>::new();
        let mut old = Vec::new();
        for c in &self.state.containers {
            let n = seen.entry(&c.config.name).or_default();
            *n += 1;
            if *n > 2 && c.state != isopod_runtime::ContainerState::Running {
                let said = c.config.annotations.get(annotation::TERMINATION_MESSAGE_FILE).cloned();
                old.push((c.id.clone(), c.log_path.clone(), said));
            }
        }
        for (id, log, said) in old {
            if let Err(e) = self.shared.runtime.remove_container(&id).await {
                tracing::debug!(container = id, error = %Chain(&e), "cannot remove an old container");
                continue;
            }
            if let Err(e) = log_file::remove(&log) {
                tracing::debug!(log = %log.display(), error = %e, "cannot remove an old log");
            }
            if let Some(file) = said {
                // Its pod's directory takes it along if this does not.
                let _ = std::fs::remove_file(file);
            }
            self.state.containers.retain(|c| c.id != id);
        }
        let used = |id: &str| self.state.containers.iter().any(|c| c.sandbox_id == id);
        let dead = self.state.sandboxes.iter().skip(1).filter(|s| s.state == SandboxState::NotReady && !used(&s.id));
        for id in dead.map(|s| s.id.clone()).collect::<Vec<_>>() {
            if self.shared.runtime.remove_sandbox(&id).await.is_ok() {
                self.state.sandboxes.retain(|s| s.id != id);
            }
        }
    }
}
