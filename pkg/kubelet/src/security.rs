//! What a container may do: the pod's and its own security context, merged, as the runtime takes it. Pure.

use crate::pod::PodExt;
use isopod_runtime::{ImageStatus, SeccompProfile, SecurityContext};
use k8s_openapi::api::core::v1::{Container, Pod, SeccompProfile as ApiSeccomp};

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SecurityError {
    #[error("container has runAsNonRoot and image will run as root (pod: {pod:?}, container: {container})")]
    ImageRunsAsRoot { pod: String, container: String },
    #[error("container's runAsUser breaks non-root policy (pod: {pod:?}, container: {container})")]
    RunsAsRoot { pod: String, container: String },
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root (pod: {pod:?}, container: {container})"
    )]
    UserByName { user: String, pod: String, container: String },
}

fn seccomp(own: Option<&ApiSeccomp>, pod: Option<&ApiSeccomp>, privileged: bool, default: bool) -> SeccompProfile {
    if privileged {
        return SeccompProfile::Unconfined;
    }
    match own.or(pod) {
        Some(p) => match p.type_.as_str() {
            "RuntimeDefault" => SeccompProfile::RuntimeDefault,
            "Localhost" => SeccompProfile::Localhost(p.localhost_profile.clone().unwrap_or_default().into()),
            _ => SeccompProfile::Unconfined,
        },
        None if default => SeccompProfile::RuntimeDefault,
        None => SeccompProfile::Unconfined,
    }
}

pub fn of(
    pod: &Pod,
    c: &Container,
    image: &ImageStatus,
    seccomp_default: bool,
) -> Result<SecurityContext, SecurityError> {
    let of_pod = pod.spec().security_context.clone().unwrap_or_default();
    let own = c.security_context.clone().unwrap_or_default();
    let privileged = own.privileged == Some(true);
    let user = own.run_as_user.or(of_pod.run_as_user);
    let names = || (pod.display(), c.name.clone());
    if own.run_as_non_root.or(of_pod.run_as_non_root) == Some(true) {
        let (pod, container) = names();
        match (user, image.uid, image.username.as_str()) {
            (Some(0), _, _) => return Err(SecurityError::RunsAsRoot { pod, container }),
            (Some(_), _, _) | (None, Some(1..), _) => {}
            (None, Some(_), _) | (None, None, "") => return Err(SecurityError::ImageRunsAsRoot { pod, container }),
            (None, None, user) => return Err(SecurityError::UserByName { user: user.to_owned(), pod, container }),
        }
    }
    let caps = own.capabilities.unwrap_or_default();
    let mut groups = of_pod.supplemental_groups.unwrap_or_default();
    groups.extend(of_pod.fs_group);
    Ok(SecurityContext {
        privileged,
        run_as_user: user.or(image.uid),
        run_as_group: own.run_as_group.or(of_pod.run_as_group),
        run_as_username: (user.is_none() && image.uid.is_none() && !image.username.is_empty())
            .then(|| image.username.clone()),
        supplemental_groups: groups,
        strict_supplemental_groups: of_pod.supplemental_groups_policy.as_deref() == Some("Strict"),
        read_only_root: own.read_only_root_filesystem == Some(true),
        allow_privilege_escalation: own.allow_privilege_escalation,
        add_capabilities: caps.add.unwrap_or_default(),
        drop_capabilities: caps.drop.unwrap_or_default(),
        seccomp: seccomp(own.seccomp_profile.as_ref(), of_pod.seccomp_profile.as_ref(), privileged, seccomp_default),
        unmasked_proc: privileged || own.proc_mount.as_deref() == Some("Unmasked"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn run(pod: Value, own: Value, image: ImageStatus) -> Result<SecurityContext, SecurityError> {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"securityContext": pod, "containers": [{"name": "c", "securityContext": own}]}}))
        .unwrap();
        of(&pod, &pod.spec().containers[0], &image, false)
    }

    #[test]
    fn the_container_overrides_the_pod() {
        let s = run(
            json!({"runAsUser": 1, "runAsGroup": 2, "fsGroup": 3, "supplementalGroups": [4]}),
            json!({"runAsUser": 9, "capabilities": {"drop": ["ALL"]}}),
            ImageStatus::default(),
        )
        .unwrap();
        assert_eq!((s.run_as_user, s.run_as_group, s.supplemental_groups), (Some(9), Some(2), vec![4, 3]));
        assert_eq!((s.drop_capabilities, s.seccomp), (vec!["ALL".to_owned()], SeccompProfile::Unconfined));
        assert_eq!(
            run(json!({}), json!({"privileged": true}), ImageStatus::default()).unwrap().seccomp,
            SeccompProfile::Unconfined
        );
    }

    #[test]
    fn non_root_is_verified() {
        let non_root = || json!({"runAsNonRoot": true});
        let image = |uid, name: &str| ImageStatus { uid, username: name.into(), ..Default::default() };
        assert!(run(non_root(), json!({}), image(Some(1000), "")).is_ok());
        assert!(run(non_root(), json!({"runAsUser": 5}), image(None, "web")).is_ok());
        let text = |own: Value, i| run(non_root(), own, i).unwrap_err().to_string();
        assert_eq!(
            text(json!({}), image(None, "")),
            "container has runAsNonRoot and image will run as root (pod: \"p_n(u)\", container: c)"
        );
        assert!(text(json!({}), image(Some(0), "")).contains("image will run as root"));
        assert!(text(json!({"runAsUser": 0}), image(Some(5), "")).contains("breaks non-root policy"));
        assert!(text(json!({}), image(None, "web")).contains("non-numeric user (web)"));
    }
}
