//! Reading a `Pod`: its parts with upstream's notion of what is missing.

use isopod_client::events::ObjectRef;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, PodStatus};
use std::sync::LazyLock;

static NO_SPEC: LazyLock<PodSpec> = LazyLock::new(PodSpec::default);
static NO_STATUS: LazyLock<PodStatus> = LazyLock::new(PodStatus::default);

/// The parts of a pod that always have an answer.
pub trait PodExt {
    fn uid(&self) -> &str;
    fn ns(&self) -> &str;
    fn pod_name(&self) -> &str;
    fn spec(&self) -> &PodSpec;
    fn stat(&self) -> &PodStatus;
    fn phase(&self) -> &str;
    /// Succeeded or Failed.
    fn is_terminal(&self) -> bool;
    fn is_deleted(&self) -> bool;
    fn host_network(&self) -> bool;
    /// `name_namespace(uid)`, as upstream's messages name a pod.
    fn display(&self) -> String;
    fn reference(&self) -> ObjectRef;
    /// The reference of a container: `spec.containers{name}`.
    fn container_reference(&self, name: &str) -> ObjectRef;
    /// Finds a container of any kind; ephemeral ones as ordinary ones.
    fn container(&self, name: &str) -> Option<Container>;
}

impl PodExt for Pod {
    fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }
    fn ns(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or_default()
    }
    fn pod_name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }
    fn spec(&self) -> &PodSpec {
        self.spec.as_ref().unwrap_or(&NO_SPEC)
    }
    fn stat(&self) -> &PodStatus {
        self.status.as_ref().unwrap_or(&NO_STATUS)
    }
    fn phase(&self) -> &str {
        self.stat().phase.as_deref().unwrap_or_default()
    }
    fn is_terminal(&self) -> bool {
        matches!(self.phase(), "Succeeded" | "Failed")
    }
    fn is_deleted(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }
    fn host_network(&self) -> bool {
        self.spec().host_network == Some(true)
    }
    fn display(&self) -> String {
        format!("{}_{}({})", self.pod_name(), self.ns(), self.uid())
    }
    fn reference(&self) -> ObjectRef {
        ObjectRef {
            api_version: "v1".into(),
            kind: "Pod".into(),
            namespace: self.ns().into(),
            name: self.pod_name().into(),
            uid: self.uid().into(),
            resource_version: self.metadata.resource_version.clone().unwrap_or_default(),
            field_path: String::new(),
        }
    }
    fn container_reference(&self, name: &str) -> ObjectRef {
        let spec = self.spec();
        let among = |list: Option<&Vec<Container>>| list.is_some_and(|l| l.iter().any(|c| c.name == name));
        let field = if among(spec.init_containers.as_ref()) {
            "initContainers"
        } else if spec.containers.iter().any(|c| c.name == name) {
            "containers"
        } else {
            "ephemeralContainers"
        };
        self.reference().field(format!("spec.{field}{{{name}}}"))
    }
    fn container(&self, name: &str) -> Option<Container> {
        let spec = self.spec();
        let init = spec.init_containers.iter().flatten();
        if let Some(c) = init.chain(&spec.containers).find(|c| c.name == name) {
            return Some(c.clone());
        }
        spec.ephemeral_containers.iter().flatten().find(|c| c.name == name).map(ephemeral)
    }
}

/// An ephemeral container as an ordinary one: they differ only in their target.
pub fn ephemeral(c: &k8s_openapi::api::core::v1::EphemeralContainer) -> Container {
    Container {
        name: c.name.clone(),
        image: c.image.clone(),
        command: c.command.clone(),
        args: c.args.clone(),
        working_dir: c.working_dir.clone(),
        env: c.env.clone(),
        env_from: c.env_from.clone(),
        volume_mounts: c.volume_mounts.clone(),
        volume_devices: c.volume_devices.clone(),
        termination_message_path: c.termination_message_path.clone(),
        termination_message_policy: c.termination_message_policy.clone(),
        image_pull_policy: c.image_pull_policy.clone(),
        security_context: c.security_context.clone(),
        stdin: c.stdin,
        stdin_once: c.stdin_once,
        tty: c.tty,
        resources: c.resources.clone(),
        ..Default::default()
    }
}

/// An init container that runs beside the ordinary ones (KEP-753).
pub fn is_sidecar(c: &Container) -> bool {
    c.restart_policy.as_deref() == Some("Always")
}

pub fn init_containers(spec: &PodSpec) -> &[Container] {
    spec.init_containers.as_deref().unwrap_or_default()
}

/// `Always` when nothing is said, as the API server defaults it.
pub fn restart_policy(spec: &PodSpec) -> &str {
    spec.restart_policy.as_deref().unwrap_or("Always")
}

/// Whether a container that ended with `exit_code` is to run again: its own rules, its own policy, then the pod's.
pub fn restarts_after(c: &Container, spec: &PodSpec, exit_code: i32) -> bool {
    let by_policy = |policy: &str| match policy {
        "Always" => true,
        "OnFailure" => exit_code != 0,
        _ => false,
    };
    if let Some(own) = c.restart_policy.as_deref() {
        for rule in c.restart_policy_rules.iter().flatten() {
            let Some(codes) = &rule.exit_codes else { continue };
            let within = codes.values.iter().flatten().any(|v| *v == exit_code);
            if within == (codes.operator == "In") && rule.action == "Restart" {
                return true;
            }
        }
        return by_policy(own);
    }
    by_policy(restart_policy(spec))
}
