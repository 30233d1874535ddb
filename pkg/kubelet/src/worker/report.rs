//! The pod's status: generated, compared with what the API has, written when it differs; and termination messages.

use super::Worker;
use crate::log_file;
use crate::pod::PodExt;
use crate::state::annotation;
use crate::status::{self, Context};
use crate::status_patch;
use isopod_client::{Error, Patch, Preconditions};
use isopod_runtime::{ContainerState, ContainerStatus};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use std::io::Read;

/// The longest termination message from a file, and from the log (upstream's `MaxContainerTerminationMessage*`).
const MAX_MESSAGE: u64 = 4096;
const MAX_LOG_LINES: u64 = 80;
const MAX_LOG_BYTES: usize = 2048;

fn message(c: &ContainerStatus) -> String {
    let a = |key: &str| c.config.annotations.get(key).map(String::as_str).unwrap_or_default();
    let mut text = Vec::new();
    if let Ok(file) = std::fs::File::open(a(annotation::TERMINATION_MESSAGE_FILE)) {
        let _ = file.take(MAX_MESSAGE).read_to_end(&mut text);
    }
    if text.is_empty() && a(annotation::TERMINATION_MESSAGE_POLICY) == "FallbackToLogsOnError" && c.exit_code != 0 {
        return log_file::tail_text(&c.log_path, MAX_LOG_LINES, MAX_LOG_BYTES).unwrap_or_default();
    }
    String::from_utf8_lossy(&text).into_owned()
}

impl Worker {
    pub(super) fn read_messages(&mut self) {
        let ended = self.state.containers.iter().filter(|c| c.state == ContainerState::Exited);
        for c in ended {
            if !self.messages.contains_key(&c.id) {
                self.messages.insert(c.id.clone(), message(c));
            }
        }
        self.messages.retain(|id, _| self.state.containers.iter().any(|c| c.id == *id));
    }

    /// Generates the status and writes it if it differs. `terminal`: no container will run again. False: the pod is gone.
    pub(super) async fn report(&mut self, terminal: bool) -> Result<bool, Error> {
        let mut status = self.generate(terminal);
        if terminal && !matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
            // It never came to run, and never will (upstream's `TerminatePod`).
            status.phase = Some("Failed".into());
        }
        self.status = status;
        let new = status_patch::to_json(&self.status);
        let Some(patch) = status_patch::diff(&self.written, &new) else { return Ok(true) };
        let (pod, guard) = (&self.pod, Preconditions::uid(self.pod.uid()));
        let sent = self
            .shared
            .pods
            .patch::<Pod>(pod.ns(), pod.pod_name(), Some("status"), Patch::Strategic(patch), &guard)
            .await;
        match sent {
            Ok(_) => {
                self.written = new;
                Ok(true)
            }
            // Another pod of that name, or none.
            Err(e) if e.is_not_found() || e.is_conflict() => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn generate(&self, terminal: bool) -> PodStatus {
        let probes = |id: &str| self.probes.results(id);
        let cx = Context {
            old: &self.status,
            waiting: &self.waiting,
            probes: &probes,
            messages: &self.messages,
            host_ips: self.shared.host_ips(),
            verdict: self.verdict.as_ref(),
            resize: &self.resize,
            terminal,
            now: self.now(),
        };
        status::generate(&self.pod, &self.state, &cx)
    }
}
