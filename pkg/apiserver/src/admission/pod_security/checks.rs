//! The checks of the Pod Security Standards. Each looks at a pod, or at a template of one, and says what is wrong in upstream's
//! words.

use super::policy::Version;
use isopod_kinds::access::Access;
use serde_json::Value;
use std::collections::BTreeSet;

/// Why a pod does not keep a standard.
#[derive(Debug, PartialEq)]
pub struct Fault {
    pub reason: String,
    pub detail: String,
}

pub type Check = fn(&Value, Version) -> Option<Fault>;

fn fault(reason: &str, detail: String) -> Option<Fault> {
    Some(Fault { reason: reason.to_owned(), detail })
}

fn quoted<'a>(items: impl IntoIterator<Item = &'a str>) -> String {
    let items: Vec<&str> = items.into_iter().collect();
    if items.is_empty() { String::new() } else { format!("\"{}\"", items.join("\", \"")) }
}

fn plural<'a>(n: usize, one: &'a str, many: &'a str) -> &'a str {
    if n == 1 { one } else { many }
}

/// `container "a"`, `containers "a", "b"`.
fn named(names: &[&str]) -> String {
    format!("{} {}", plural(names.len(), "container", "containers"), quoted(names.iter().copied()))
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["spec.initContainers", "spec.containers", "spec.ephemeralContainers"].into_iter().flat_map(|l| pod.list(l))
}

/// The names of the containers of which `bad` is true.
fn bad_containers<'a>(pod: &'a Value, bad: impl FnMut(&&'a Value) -> bool) -> Vec<&'a str> {
    containers(pod).filter(bad).map(|c| c.text("name")).collect()
}

/// Who does it: the pod itself and some containers.
fn setters(by_pod: bool, by: &[&str]) -> String {
    let pod = by_pod.then(|| "pod".to_owned());
    let list: Vec<String> = pod.into_iter().chain((!by.is_empty()).then(|| named(by))).collect();
    list.join(" and ")
}

fn is_windows(pod: &Value) -> bool {
    pod.text("spec.os.name") == "windows"
}

/// Since 1.35, a pod with a user namespace of its own is freer.
fn has_own_users(pod: &Value, version: Version) -> bool {
    version.is_at_least(35) && pod.at("spec.hostUsers") == &Value::Bool(false)
}

pub fn app_armor(pod: &Value, _: Version) -> Option<Fault> {
    const ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";
    let mut values: BTreeSet<&str> = BTreeSet::new();
    let is_bad = |context: &Value| -> bool {
        let profile = context.at("appArmorProfile");
        profile.is_object() && !matches!(profile.text("type"), "RuntimeDefault" | "Localhost")
    };
    let by_pod = is_bad(pod.at("spec.securityContext"));
    if by_pod {
        values.insert(pod.text("spec.securityContext.appArmorProfile.type"));
    }
    let by = bad_containers(pod, |c| {
        let bad = is_bad(c.at("securityContext"));
        if bad {
            values.insert(c.text("securityContext.appArmorProfile.type"));
        }
        bad
    });
    let allowed = |v: &str| v.is_empty() || v == "runtime/default" || v.starts_with("localhost/");
    let annotations = pod.entries("metadata.annotations").into_iter().filter(|(k, _)| k.starts_with(ANNOTATION));
    let bad = annotations.filter_map(|(k, v)| v.as_str().filter(|v| !allowed(v)).map(|v| format!("{k}={v:?}")));
    let mut annotations: Vec<String> = bad.collect();
    annotations.sort_unstable();
    let mut who = setters(by_pod, &by);
    if !annotations.is_empty() {
        let word = plural(annotations.len(), "annotation", "annotations");
        who = if who.is_empty() { word.to_owned() } else { format!("{who} and {word}") };
    }
    if who.is_empty() {
        return None;
    }
    let all: Vec<&str> = values.into_iter().chain(annotations.iter().map(String::as_str)).collect();
    let reason = plural(all.len(), "forbidden AppArmor profile", "forbidden AppArmor profiles");
    fault(reason, format!("{who} must not set AppArmor profile type to {}", quoted(all)))
}

pub fn capabilities_beyond_default(pod: &Value, _: Version) -> Option<Fault> {
    const DEFAULT: [&str; 13] = [
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    ];
    let (by, added) = adding(pod, &DEFAULT);
    if by.is_empty() {
        return None;
    }
    let detail = format!("{} must not include {} in securityContext.capabilities.add", named(&by), quoted(added));
    fault("non-default capabilities", detail)
}

/// The containers that add capabilities beyond `allowed`, and these.
fn adding<'a>(pod: &'a Value, allowed: &[&str]) -> (Vec<&'a str>, BTreeSet<&'a str>) {
    let mut added = BTreeSet::new();
    let by = bad_containers(pod, |c| {
        let beyond: Vec<&str> =
            c.texts("securityContext.capabilities.add").into_iter().filter(|a| !allowed.contains(a)).collect();
        added.extend(beyond.iter().copied());
        !beyond.is_empty()
    });
    (by, added)
}

pub fn capabilities_not_dropped(pod: &Value, version: Version) -> Option<Fault> {
    if version.is_at_least(25) && is_windows(pod) {
        return None;
    }
    let keeping = bad_containers(pod, |c| !c.texts("securityContext.capabilities.drop").contains(&"ALL"));
    let (by, added) = adding(pod, &["NET_BIND_SERVICE"]);
    let mut details = Vec::new();
    if !keeping.is_empty() {
        details.push(format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", named(&keeping)));
    }
    if !by.is_empty() {
        details.push(format!("{} must not include {} in securityContext.capabilities.add", named(&by), quoted(added)));
    }
    if details.is_empty() { None } else { fault("unrestricted capabilities", details.join("; ")) }
}

pub fn host_namespaces(pod: &Value, _: Version) -> Option<Fault> {
    let shared = ["hostNetwork", "hostPID", "hostIPC"].into_iter().filter(|f| pod.at("spec").flag(f));
    let shared: Vec<String> = shared.map(|f| format!("{f}=true")).collect();
    if shared.is_empty() { None } else { fault("host namespaces", shared.join(", ")) }
}

pub fn host_paths(pod: &Value, _: Version) -> Option<Fault> {
    let volumes: Vec<&str> =
        pod.list("spec.volumes").iter().filter(|v| v.has("hostPath")).map(|v| v.text("name")).collect();
    if volumes.is_empty() {
        return None;
    }
    fault(
        "hostPath volumes",
        format!("{} {}", plural(volumes.len(), "volume", "volumes"), quoted(volumes.iter().copied())),
    )
}

pub fn host_ports(pod: &Value, _: Version) -> Option<Fault> {
    let mut ports = BTreeSet::new();
    let by = bad_containers(pod, |c| {
        let own = c.list("ports").iter().filter_map(|p| p.int("hostPort")).filter(|p| *p != 0);
        let before: Vec<String> = own.map(|p| p.to_string()).collect();
        let bad = !before.is_empty();
        ports.extend(before);
        bad
    });
    if by.is_empty() {
        return None;
    }
    let list = ports.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    let (uses, word) = (plural(by.len(), "uses", "use"), plural(ports.len(), "hostPort", "hostPorts"));
    fault("hostPort", format!("{} {uses} {word} {list}", named(&by)))
}

pub fn probe_hosts(pod: &Value, _: Version) -> Option<Fault> {
    const HANDLERS: [&str; 5] =
        ["livenessProbe", "readinessProbe", "startupProbe", "lifecycle.postStart", "lifecycle.preStop"];
    let mut hosts: BTreeSet<&str> = BTreeSet::new();
    let by: BTreeSet<&str> = bad_containers(pod, |c| {
        let all = HANDLERS.iter().flat_map(|h| [c.at(h).text("httpGet.host"), c.at(h).text("tcpSocket.host")]);
        let own: Vec<&str> = all.filter(|h| !h.is_empty()).collect();
        hosts.extend(own.iter().copied());
        !own.is_empty()
    })
    .into_iter()
    .collect();
    if by.is_empty() {
        return None;
    }
    let by: Vec<&str> = by.into_iter().collect();
    let word = plural(hosts.len(), "probe or lifecycle host", "probe or lifecycle hosts");
    let detail = format!("{} {} {word} {}", named(&by), plural(by.len(), "uses", "use"), quoted(hosts));
    fault("probe or lifecycle host", detail)
}

pub fn privileged(pod: &Value, _: Version) -> Option<Fault> {
    let by = bad_containers(pod, |c| c.flag("securityContext.privileged"));
    if by.is_empty() {
        return None;
    }
    fault("privileged", format!("{} must not set securityContext.privileged=true", named(&by)))
}

pub fn proc_mount(pod: &Value, version: Version) -> Option<Fault> {
    if has_own_users(pod, version) { None } else { proc_mount_of_any(pod, version) }
}

pub fn proc_mount_of_any(pod: &Value, _: Version) -> Option<Fault> {
    let mut kinds: BTreeSet<&str> = BTreeSet::new();
    let by = bad_containers(pod, |c| {
        let kind = c.at("securityContext.procMount").as_str().filter(|k| *k != "Default");
        kinds.extend(kind);
        kind.is_some()
    });
    if by.is_empty() {
        return None;
    }
    fault("procMount", format!("{} must not set securityContext.procMount to {}", named(&by), quoted(kinds)))
}

pub fn se_linux(pod: &Value, version: Version) -> Option<Fault> {
    let mut allowed = vec!["", "container_t", "container_init_t", "container_kvm_t"];
    if version.is_at_least(31) {
        allowed.push("container_engine_t");
    }
    let (mut types, mut user, mut role) = (BTreeSet::new(), false, false);
    let by_pod = {
        let options = pod.at("spec.securityContext.seLinuxOptions");
        note_se_linux(options, &allowed, &mut types, &mut user, &mut role)
    };
    let by = bad_containers(pod, |c| {
        note_se_linux(c.at("securityContext.seLinuxOptions"), &allowed, &mut types, &mut user, &mut role)
    });
    let who = setters(by_pod, &by);
    if who.is_empty() {
        return None;
    }
    let mut what = Vec::new();
    if !types.is_empty() {
        what.push(format!("{} {}", plural(types.len(), "type", "types"), quoted(types)));
    }
    if user {
        what.push("user may not be set".into());
    }
    if role {
        what.push("role may not be set".into());
    }
    fault("seLinuxOptions", format!("{who} set forbidden securityContext.seLinuxOptions: {}", what.join("; ")))
}

/// Notes what the options set that they must not; whether there is anything.
fn note_se_linux<'a>(
    options: &'a Value,
    allowed: &[&str],
    types: &mut BTreeSet<&'a str>,
    user: &mut bool,
    role: &mut bool,
) -> bool {
    let ty = options.text("type");
    let bad_type = !allowed.contains(&ty);
    if bad_type {
        types.insert(ty);
    }
    let (sets_user, sets_role) = (!options.text("user").is_empty(), !options.text("role").is_empty());
    *user |= sets_user;
    *role |= sets_role;
    bad_type || sets_user || sets_role
}

fn is_confined(profile: &Value) -> bool {
    matches!(profile.text("type"), "RuntimeDefault" | "Localhost")
}

pub fn seccomp(pod: &Value, version: Version) -> Option<Fault> {
    if !version.is_at_least(19) {
        return seccomp_annotations(pod);
    }
    let mut values = BTreeSet::new();
    let profile = pod.at("spec.securityContext.seccompProfile");
    let by_pod = profile.is_object() && !is_confined(profile);
    if by_pod {
        values.insert(profile.text("type"));
    }
    let by = bad_containers(pod, |c| {
        let profile = c.at("securityContext.seccompProfile");
        let bad = profile.is_object() && !is_confined(profile);
        if bad {
            values.insert(profile.text("type"));
        }
        bad
    });
    let who = setters(by_pod, &by);
    if who.is_empty() {
        return None;
    }
    fault("seccompProfile", format!("{who} must not set securityContext.seccompProfile.type to {}", quoted(values)))
}

fn seccomp_annotations(pod: &Value) -> Option<Fault> {
    let of_containers =
        containers(pod).map(|c| format!("container.seccomp.security.alpha.kubernetes.io/{}", c.text("name")));
    let keys = ["seccomp.security.alpha.kubernetes.io/pod".to_owned()].into_iter().chain(of_containers);
    let allowed = |v: &str| matches!(v, "runtime/default" | "docker/default") || v.starts_with("localhost/");
    let bad = keys.filter_map(|k| {
        let value = pod.entry("metadata.annotations", &k).as_str().filter(|v| !allowed(v))?;
        Some(format!("{k}={value:?}"))
    });
    let bad: BTreeSet<String> = bad.collect();
    if bad.is_empty() {
        return None;
    }
    let list = bad.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    fault("seccompProfile", format!("forbidden {} {list}", plural(bad.len(), "annotation", "annotations")))
}

pub fn seccomp_required(pod: &Value, version: Version) -> Option<Fault> {
    if version.is_at_least(25) && is_windows(pod) {
        return None;
    }
    if let Some(wrong) = seccomp(pod, version) {
        return Some(wrong);
    }
    if pod.at("spec.securityContext.seccompProfile").is_object() {
        return None;
    }
    let by = bad_containers(pod, |c| !c.at("securityContext.seccompProfile").is_object());
    if by.is_empty() {
        return None;
    }
    let who = named(&by);
    let detail =
        format!("pod or {who} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"");
    fault("seccompProfile", detail)
}

pub fn sysctls(pod: &Value, version: Version) -> Option<Fault> {
    /// The version that allowed it first.
    const SAFE: [(&str, u32); 14] = [
        ("kernel.shm_rmid_forced", 0),
        ("net.ipv4.ip_local_port_range", 0),
        ("net.ipv4.tcp_syncookies", 0),
        ("net.ipv4.ping_group_range", 0),
        ("net.ipv4.ip_unprivileged_port_start", 0),
        ("net.ipv4.ip_local_reserved_ports", 27),
        ("net.ipv4.tcp_keepalive_time", 29),
        ("net.ipv4.tcp_fin_timeout", 29),
        ("net.ipv4.tcp_keepalive_intvl", 29),
        ("net.ipv4.tcp_keepalive_probes", 29),
        ("net.ipv4.tcp_rmem", 32),
        ("net.ipv4.tcp_wmem", 32),
        ("net.ipv4.tcp_slow_start_after_idle", 37),
        ("net.ipv4.tcp_notsent_lowat", 37),
    ];
    let is_safe = |name: &str| SAFE.iter().any(|(safe, since)| *safe == name && version.is_at_least(*since));
    let all = pod.list("spec.securityContext.sysctls").iter().map(|s| s.text("name"));
    let unsafe_ones: Vec<&str> = all.filter(|n| !is_safe(n)).collect();
    if unsafe_ones.is_empty() { None } else { fault("forbidden sysctls", unsafe_ones.join(", ")) }
}

pub fn windows_host_process(pod: &Value, _: Version) -> Option<Fault> {
    let by = bad_containers(pod, |c| c.flag("securityContext.windowsOptions.hostProcess"));
    let who = setters(pod.flag("spec.securityContext.windowsOptions.hostProcess"), &by);
    if who.is_empty() {
        return None;
    }
    fault("hostProcess", format!("{who} must not set securityContext.windowsOptions.hostProcess=true"))
}

pub fn privilege_escalation(pod: &Value, version: Version) -> Option<Fault> {
    if version.is_at_least(25) && is_windows(pod) {
        return None;
    }
    let by = bad_containers(pod, |c| c.at("securityContext.allowPrivilegeEscalation") != &Value::Bool(false));
    if by.is_empty() {
        return None;
    }
    let detail = format!("{} must set securityContext.allowPrivilegeEscalation=false", named(&by));
    fault("allowPrivilegeEscalation != false", detail)
}

pub fn volume_types(pod: &Value, _: Version) -> Option<Fault> {
    const ALLOWED: [&str; 9] = [
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "image",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ];
    let bad = pod.list("spec.volumes").iter().filter(|v| !ALLOWED.iter().any(|a| v.has(a)));
    let (mut volumes, mut types) = (Vec::new(), BTreeSet::new());
    for volume in bad {
        volumes.push(volume.text("name"));
        let source = volume.entries("").into_iter().find(|(k, v)| *k != "name" && !v.is_null());
        types.insert(source.map_or("unknown", |(k, _)| k));
    }
    if volumes.is_empty() {
        return None;
    }
    let n = volumes.len();
    let (volume, uses) = (plural(n, "volume", "volumes"), plural(n, "uses", "use"));
    let word = plural(types.len(), "restricted volume type", "restricted volume types");
    fault("restricted volume types", format!("{volume} {} {uses} {word} {}", quoted(volumes), quoted(types)))
}

pub fn root(pod: &Value, version: Version) -> Option<Fault> {
    if has_own_users(pod, version) {
        return None;
    }
    let of_pod = pod.at("spec.securityContext.runAsNonRoot");
    let by = bad_containers(pod, |c| c.at("securityContext.runAsNonRoot") == &Value::Bool(false));
    let who = setters(of_pod == &Value::Bool(false), &by);
    if !who.is_empty() {
        return fault("runAsNonRoot != true", format!("{who} must not set securityContext.runAsNonRoot=false"));
    }
    let silent = bad_containers(pod, |c| of_pod != &Value::Bool(true) && !c.has("securityContext.runAsNonRoot"));
    if silent.is_empty() {
        return None;
    }
    let detail = format!("pod or {} must set securityContext.runAsNonRoot=true", named(&silent));
    fault("runAsNonRoot != true", detail)
}

pub fn root_user(pod: &Value, version: Version) -> Option<Fault> {
    if has_own_users(pod, version) {
        return None;
    }
    let by = bad_containers(pod, |c| c.int("securityContext.runAsUser") == Some(0));
    let who = setters(pod.int("spec.securityContext.runAsUser") == Some(0), &by);
    if who.is_empty() { None } else { fault("runAsUser=0", format!("{who} must not set runAsUser=0")) }
}
