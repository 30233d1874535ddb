//! Resizes of the pod: grants what the node has room for, and brings running containers to what was granted.

use super::{Next, Worker};
use crate::allocation::Allocation;
use crate::pod::{PodExt, init_containers};
use crate::resize::{self, Change, InProgress, Pending};
use crate::resources;
use crate::state::annotation;
use isopod_base::errors::Chain;
use isopod_runtime::{ContainerState, ContainerStatus};
use k8s_openapi::api::core::v1::{Container, Pod};
use std::sync::Arc;

impl Worker {
    /// The pod with what the node grants it. A pod that was not admitted yet is granted what it wants when it is.
    pub(super) fn granted(&mut self, pod: Arc<Pod>) -> Arc<Pod> {
        let Some(granted) = &self.allocation else { return pod };
        let wanted = Allocation::wanted(&pod);
        if *granted == wanted {
            self.resize.pending = None;
            return pod;
        }
        if pod.is_deleted() || pod.is_terminal() {
            return Arc::new(granted.of(&pod));
        }
        match self.grant(&pod, wanted) {
            Ok(()) => {
                self.resize.pending = None;
                self.resize.in_progress =
                    Some(InProgress { error: String::new(), generation: pod.metadata.generation });
                let text = resize::event("Pod resize started", &pod, "");
                self.shared.recorder.normal(&pod.reference(), "ResizeStarted", text);
                pod
            }
            Err(message) => {
                let pending = Pending { message, generation: pod.metadata.generation };
                if self.resize.pending.as_ref().map(|p| p.generation) != Some(pending.generation) {
                    let text = resize::event("Pod resize Deferred", &pod, &pending.message);
                    self.shared.recorder.warning(&pod.reference(), "ResizeDeferred", text);
                }
                self.resize.pending = Some(pending);
                Arc::new(self.allocation.as_ref().map_or_else(|| (*pod).clone(), |a| a.of(&pod)))
            }
        }
    }

    fn grant(&mut self, pod: &Arc<Pod>, wanted: Allocation) -> Result<(), String> {
        let shared = self.shared.clone();
        let mut admitted = shared.admitted.lock();
        let others: Vec<Arc<Pod>> =
            admitted.iter().filter(|(uid, _)| *uid != pod.uid()).map(|(_, p)| p.clone()).collect();
        if let Some(node) = shared.node.get("", &shared.cfg.node_name) {
            crate::admission::fits(pod, &node, &others)?;
        }
        wanted.save(&shared.cfg.pod_dir(pod.uid())).map_err(|e| e.to_string())?;
        self.allocation = Some(wanted);
        if admitted.insert(pod.uid().to_owned(), pod.clone()).is_some() {
            drop(admitted);
            // It may have become smaller.
            shared.freed.send_modify(|n| *n += 1);
        }
        Ok(())
    }

    /// Writes down what an admitted pod got.
    pub(super) fn allocate(&mut self) {
        if self.allocation.is_some() {
            return;
        }
        let wanted = Allocation::wanted(&self.pod);
        if let Err(e) = wanted.save(&self.shared.cfg.pod_dir(self.pod.uid())) {
            tracing::warn!(pod = %self.pod.display(), error = %e, "cannot write down what the pod was granted");
        }
        self.allocation = Some(wanted);
    }

    /// Brings the named running containers, and the pod's control group, to what was granted; when to try again.
    pub(super) async fn resize(&mut self, names: &[String]) -> Next {
        let outcome = self.resize_in_place(names).await;
        let again = if outcome.is_err() { self.retry() } else { Next::Wait(None) };
        self.note_resize(outcome);
        again
    }

    async fn resize_in_place(&mut self, names: &[String]) -> Result<(), String> {
        let pod = self.pod.clone();
        let Some(sandbox) = self.state.sandbox() else { return Ok(()) };
        let cfg = &self.shared.cfg;
        let (id, old) = (sandbox.id.clone(), resize::explicit(sandbox.config.resources.clone()));
        let new = resize::explicit(resources::pod_level(&pod, cfg.pod_pids_limit, cfg.cpu_cfs_quota));
        if names.is_empty() && old == new {
            return Ok(());
        }
        let containers: Vec<(Container, ContainerStatus)> =
            names.iter().filter_map(|name| Some((pod.container(name)?, self.state.latest(name)?.clone()))).collect();
        self.check_usage(&containers).await?;
        let runtime = self.shared.runtime.clone();
        let text = |e: isopod_runtime::RuntimeError| Chain(&e).to_string();
        // No child may have more than its parent: the parent has room for both, until all children have changed.
        if old != new {
            runtime.update_sandbox(&id, resize::roomy(&old, &new)).await.map_err(text)?;
        }
        for (c, status) in &containers {
            let limits = resources::container(&pod, c, self.shared.machine.memory, cfg.cpu_cfs_quota);
            let mut annotations = status.config.annotations.clone();
            annotations.insert(annotation::RESOURCES.to_owned(), resize::record(c));
            let limits = resize::explicit(limits);
            runtime.update_container(&status.id, limits.clone(), annotations.clone()).await.map_err(text)?;
            for known in self.state.containers.iter_mut().filter(|s| s.id == status.id) {
                (known.config.resources, known.config.annotations) = (limits.clone(), annotations.clone());
            }
        }
        if old != new {
            runtime.update_sandbox(&id, new).await.map_err(text)?;
        }
        Ok(())
    }

    /// Refuses memory limits below what is in use: the kernel would kill.
    async fn check_usage(&self, containers: &[(Container, ContainerStatus)]) -> Result<(), String> {
        let mut errors = Vec::new();
        for (c, status) in containers {
            let Some(limit) = resources::of(c, "memory").1.filter(|l| *l > 0) else { continue };
            let now = status.config.resources.memory_limit.filter(|l| *l > 0);
            if now.is_some_and(|now| limit >= now) {
                continue;
            }
            let stats = self.shared.runtime.container_stats(&status.id).await;
            match stats.map(|s| s.memory_usage) {
                Ok(usage) if usage >= limit.unsigned_abs() => errors.push(format!(
                    "attempting to set container {:?} memory limit ({limit}) below current usage ({usage})",
                    c.name
                )),
                Ok(_) => {}
                Err(_) => errors.push(format!("missing container {:?} memory usage", c.name)),
            }
        }
        match errors.len() {
            0 => Ok(()),
            1 => Err(format!("cannot decrease memory limits: {}", errors[0])),
            _ => Err(format!("cannot decrease memory limits: [{}]", errors.join(", "))),
        }
    }

    /// Says how the resize went: its error, or that it is over.
    pub(super) fn note_resize(&mut self, outcome: Result<(), String>) {
        let pod = self.pod.clone();
        if let Err(error) = outcome {
            let known = self.resize.in_progress.as_ref().is_some_and(|p| p.error == error);
            if !known {
                let text = resize::event("Pod resize error", &pod, &error);
                self.shared.recorder.warning(&pod.reference(), "ResizeError", text);
            }
            let generation = pod.metadata.generation;
            self.resize.in_progress.get_or_insert(InProgress { error: String::new(), generation }).error = error;
            return;
        }
        if self.is_resizing() {
            let generation = pod.metadata.generation;
            self.resize.in_progress.get_or_insert(InProgress { error: String::new(), generation });
        } else if self.resize.in_progress.take().is_some() {
            let text = resize::event("Pod resize completed", &pod, "");
            self.shared.recorder.normal(&pod.reference(), "ResizeCompleted", text);
        }
    }

    /// A running container has other resources than it was granted.
    fn is_resizing(&self) -> bool {
        let spec = self.pod.spec();
        init_containers(spec).iter().chain(&spec.containers).any(|c| {
            let running = self.state.latest(&c.name).filter(|s| s.state == ContainerState::Running);
            running.is_some_and(|s| resize::change(c, s) != Change::None)
        })
    }
}
