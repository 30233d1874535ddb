//! Which checks each standard consists of, by version.

use super::checks::{self, Check, Fault};
use super::policy::{Level, Standard};
use serde_json::Value;

struct Rule {
    level: Level,
    /// The version of Kubernetes 1 that it came with.
    from: u32,
    /// From this version on the restricted level has a stricter rule in its place.
    replaced: Option<u32>,
    check: Check,
}

const fn baseline(from: u32, check: Check) -> Rule {
    Rule { level: Level::Baseline, from, replaced: None, check }
}
const fn replaced(from: u32, check: Check) -> Rule {
    Rule { level: Level::Baseline, from: 0, replaced: Some(from), check }
}
const fn restricted(from: u32, check: Check) -> Rule {
    Rule { level: Level::Restricted, from, replaced: None, check }
}

/// In the order in which faults are told: the baseline first, each level by the names of upstream's checks.
const RULES: [Rule; 19] = [
    baseline(0, checks::app_armor),
    replaced(22, checks::capabilities_beyond_default),
    baseline(0, checks::host_namespaces),
    replaced(0, checks::host_paths),
    baseline(0, checks::host_ports),
    baseline(34, checks::probe_hosts),
    baseline(0, checks::privileged),
    replaced(35, checks::proc_mount),
    baseline(0, checks::se_linux),
    replaced(19, checks::seccomp),
    baseline(0, checks::sysctls),
    baseline(0, checks::windows_host_process),
    restricted(8, checks::privilege_escalation),
    restricted(22, checks::capabilities_not_dropped),
    restricted(35, checks::proc_mount_of_any),
    restricted(0, checks::volume_types),
    restricted(0, checks::root),
    restricted(23, checks::root_user),
    restricted(19, checks::seccomp_required),
];

/// What is wrong with a pod or a template by the standard.
pub fn faults(standard: Standard, pod: &Value) -> Vec<Fault> {
    let Standard { level, version } = standard;
    let holds = |rule: &&Rule| {
        let is_replaced = level == Level::Restricted && rule.replaced.is_some_and(|from| version.is_at_least(from));
        rule.level <= level && version.is_at_least(rule.from) && !is_replaced
    };
    RULES.iter().filter(holds).filter_map(|rule| (rule.check)(pod, version)).collect()
}

/// All faults in one sentence.
pub fn text(faults: &[Fault]) -> String {
    let one = |f: &Fault| if f.detail.is_empty() { f.reason.clone() } else { format!("{} ({})", f.reason, f.detail) };
    faults.iter().map(one).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::super::policy::Version;
    use super::*;
    use serde_json::json;

    fn check(level: Level, minor: Option<u32>, pod: &Value, want: &str) {
        let got = text(&faults(Standard { level, version: Version(minor) }, pod));
        assert_eq!(got, want, "{level:?} {minor:?} {pod}");
    }

    #[test]
    fn a_plain_pod_is_baseline_and_not_restricted() {
        let pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}});
        check(Level::Privileged, None, &pod, "");
        check(Level::Baseline, None, &pod, "");
        check(
            Level::Restricted,
            None,
            &pod,
            "allowPrivilegeEscalation != false (containers \"a\", \"b\" must set securityContext.allowPrivilegeEscalation=false), \
             unrestricted capabilities (containers \"a\", \"b\" must set securityContext.capabilities.drop=[\"ALL\"]), \
             runAsNonRoot != true (pod or containers \"a\", \"b\" must set securityContext.runAsNonRoot=true), \
             seccompProfile (pod or containers \"a\", \"b\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")",
        );
        check(
            Level::Restricted,
            Some(7),
            &pod,
            "runAsNonRoot != true (pod or containers \"a\", \"b\" must set securityContext.runAsNonRoot=true)",
        );
        let good =
            json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}});
        let pod = json!({"spec": {"securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "a", "securityContext": good}], "volumes": [{"name": "v", "emptyDir": {}}]}});
        check(Level::Restricted, None, &pod, "");
    }

    #[test]
    fn each_baseline_rule() {
        let container = |context: Value| json!({"spec": {"containers": [{"name": "a", "securityContext": context}]}});
        let of_pod = |context: Value| json!({"spec": {"securityContext": context, "containers": []}});
        for (pod, minor, want) in [
            (
                container(json!({"privileged": true})),
                None,
                "privileged (container \"a\" must not set securityContext.privileged=true)",
            ),
            (
                json!({"spec": {"hostNetwork": true, "hostIPC": true}}),
                None,
                "host namespaces (hostNetwork=true, hostIPC=true)",
            ),
            (
                json!({"spec": {"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}}),
                None,
                "hostPath volumes (volume \"v\")",
            ),
            (
                json!({"spec": {"containers": [{"name": "a", "ports": [{"hostPort": 8}, {"hostPort": 70}]}]}}),
                None,
                "hostPort (container \"a\" uses hostPorts 70, 8)",
            ),
            (
                container(json!({"capabilities": {"add": ["NET_RAW", "CHOWN"]}})),
                None,
                "non-default capabilities (container \"a\" must not include \"NET_RAW\" in securityContext.capabilities.add)",
            ),
            (
                json!({"spec": {"containers": [{"name": "a", "livenessProbe": {"httpGet": {"host": "h"}}}]}}),
                None,
                "probe or lifecycle host (container \"a\" uses probe or lifecycle host \"h\")",
            ),
            (
                json!({"spec": {"containers": [{"name": "a", "livenessProbe": {"httpGet": {"host": "h"}}}]}}),
                Some(33),
                "",
            ),
            (
                container(json!({"procMount": "Unmasked"})),
                None,
                "procMount (container \"a\" must not set securityContext.procMount to \"Unmasked\")",
            ),
            (
                json!({"spec": {"hostUsers": false, "containers": [{"name": "a", "securityContext": {"procMount": "Unmasked"}}]}}),
                None,
                "",
            ),
            (
                container(json!({"seLinuxOptions": {"type": "container_engine_t", "user": "u"}})),
                Some(30),
                "seLinuxOptions (container \"a\" set forbidden securityContext.seLinuxOptions: type \"container_engine_t\"; user may not be set)",
            ),
            (container(json!({"seLinuxOptions": {"type": "container_engine_t"}})), None, ""),
            (
                of_pod(json!({"seccompProfile": {"type": "Unconfined"}})),
                None,
                "seccompProfile (pod must not set securityContext.seccompProfile.type to \"Unconfined\")",
            ),
            (
                of_pod(json!({"sysctls": [{"name": "kernel.msgmax"}, {"name": "net.ipv4.tcp_rmem"}]})),
                None,
                "forbidden sysctls (kernel.msgmax)",
            ),
            (
                of_pod(json!({"sysctls": [{"name": "net.ipv4.tcp_rmem"}]})),
                Some(31),
                "forbidden sysctls (net.ipv4.tcp_rmem)",
            ),
            (
                of_pod(json!({"windowsOptions": {"hostProcess": true}})),
                None,
                "hostProcess (pod must not set securityContext.windowsOptions.hostProcess=true)",
            ),
            (
                json!({"metadata": {"annotations": {"container.apparmor.security.beta.kubernetes.io/a": "unconfined"}}, "spec": {
                    "securityContext": {"appArmorProfile": {"type": "Unconfined"}}}}),
                None,
                "forbidden AppArmor profiles (pod and annotation must not set AppArmor profile type to \"Unconfined\", \"container.apparmor.security.beta.kubernetes.io/a=\"unconfined\"\")",
            ),
        ] {
            check(Level::Baseline, minor, &pod, want);
        }
    }

    #[test]
    fn each_restricted_rule() {
        let fine = json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": true,
            "seccompProfile": {"type": "Localhost"}});
        let with = |context: Value, spec: Value| {
            let mut all = fine.clone();
            all.as_object_mut().unwrap().extend(context.as_object().unwrap().clone());
            let mut pod = json!({"spec": {"containers": [{"name": "a", "securityContext": all}]}});
            pod["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
            pod
        };
        let none = || json!({});
        for (pod, minor, want) in [
            (with(none(), none()), None, ""),
            (
                with(json!({"capabilities": {"drop": ["ALL"], "add": ["CHOWN"]}}), none()),
                None,
                "unrestricted capabilities (container \"a\" must not include \"CHOWN\" in securityContext.capabilities.add)",
            ),
            (
                with(none(), json!({"volumes": [{"name": "v", "nfs": {}}, {"name": "w", "hostPath": {}}]})),
                None,
                "restricted volume types (volumes \"v\", \"w\" use restricted volume types \"hostPath\", \"nfs\")",
            ),
            (
                with(json!({"runAsNonRoot": false}), none()),
                None,
                "runAsNonRoot != true (container \"a\" must not set securityContext.runAsNonRoot=false)",
            ),
            (with(json!({"runAsNonRoot": false}), json!({"hostUsers": false})), None, ""),
            (with(json!({"runAsUser": 0}), none()), None, "runAsUser=0 (container \"a\" must not set runAsUser=0)"),
            (with(json!({"runAsUser": 0}), none()), Some(22), ""),
            (
                with(json!({"procMount": "Unmasked"}), json!({"hostUsers": false})),
                None,
                "procMount (container \"a\" must not set securityContext.procMount to \"Unmasked\")",
            ),
            (
                with(json!({"seccompProfile": {"type": "Unconfined"}}), none()),
                None,
                "seccompProfile (container \"a\" must not set securityContext.seccompProfile.type to \"Unconfined\")",
            ),
            (
                json!({"spec": {"os": {"name": "windows"}, "securityContext": {"runAsNonRoot": true}, "containers": [{"name": "a"}]}}),
                None,
                "",
            ),
        ] {
            check(Level::Restricted, minor, &pod, want);
        }
    }
}
