//! What the runtime has of one pod: its sandboxes and containers, newest first.

use isopod_runtime::{ContainerState, ContainerStatus, SandboxStatus};

/// Labels by which sandboxes and containers are known to belong to a pod (CRI's names).
pub mod label {
    pub const POD_NAME: &str = "io.kubernetes.pod.name";
    pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
    pub const POD_UID: &str = "io.kubernetes.pod.uid";
    pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
}

/// Annotations in which a container remembers what its pod said when it was made.
pub mod annotation {
    pub const TERMINATION_MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
    pub const TERMINATION_MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
    /// Where that path is on the host.
    pub const TERMINATION_MESSAGE_FILE: &str = "isopod.io/termination-message-file";
    /// Seconds that the pod's containers have to stop.
    pub const POD_GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";
    /// The requests and limits that it runs with, as JSON.
    pub const RESOURCES: &str = "isopod.io/resources";
    /// The image's digest reference, for `imageID`.
    pub const IMAGE_REF: &str = "isopod.io/image-ref";
}

#[derive(Clone, Debug, Default)]
pub struct PodState {
    pub sandboxes: Vec<SandboxStatus>,
    pub containers: Vec<ContainerStatus>,
}

impl PodState {
    pub fn new(mut sandboxes: Vec<SandboxStatus>, mut containers: Vec<ContainerStatus>) -> Self {
        sandboxes.sort_by_key(|s| std::cmp::Reverse((s.created_at, s.config.id.attempt)));
        containers.sort_by_key(|c| std::cmp::Reverse((c.created_at, c.config.attempt)));
        PodState { sandboxes, containers }
    }

    pub fn sandbox(&self) -> Option<&SandboxStatus> {
        self.sandboxes.first()
    }

    /// The newest container of this name, in whatever sandbox.
    pub fn latest(&self, name: &str) -> Option<&ContainerStatus> {
        self.containers.iter().find(|c| c.config.name == name)
    }

    /// The newest container of this name in the newest sandbox.
    pub fn active(&self, name: &str) -> Option<&ContainerStatus> {
        let sandbox = &self.sandbox()?.id;
        self.containers.iter().find(|c| c.config.name == name && c.sandbox_id == *sandbox)
    }

    pub fn running(&self) -> impl Iterator<Item = &ContainerStatus> {
        self.containers.iter().filter(|c| c.state == ContainerState::Running)
    }
}
