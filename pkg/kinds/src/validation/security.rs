//! Security contexts of pods and containers: ids, seccomp, AppArmor, sysctls, Windows options.

use super::check::{descending_path, ids, in_range, one_of_if_set};
use crate::access::Access;
use isopod_api::names;
use isopod_api::{FieldError, FieldErrors, Path};
use regex::Regex;
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::LazyLock;

const SYSCTL: &str = r"^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
static SYSCTL_NAME: LazyLock<Regex> = LazyLock::new(|| Regex::new(SYSCTL).expect("the pattern is a constant"));

pub fn container(sc: &Value, host_users: bool, path: &Path) -> FieldErrors {
    if sc.is_null() {
        return Vec::new();
    }
    let mut errs = ids(sc, &["runAsUser", "runAsGroup"], path);
    if let Some(mount) = sc.at("procMount").as_str() {
        errs.extend(one_of_if_set(sc, "procMount", &["Default", "Unmasked"], path));
        if host_users && mount == "Unmasked" {
            let m = "`hostUsers` must be false to use `Unmasked`";
            errs.push(FieldError::invalid(&path.child("procMount"), mount, m));
        }
    }
    errs.extend(seccomp(sc.at("seccompProfile"), &path.child("seccompProfile")));
    if sc.at("allowPrivilegeEscalation").as_bool() == Some(false) {
        if sc.flag("privileged") {
            let m = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            errs.push(FieldError::invalid(path, sc.clone(), m));
        }
        if sc.texts("capabilities.add").contains(&"CAP_SYS_ADMIN") {
            let m = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errs.push(FieldError::invalid(path, sc.clone(), m));
        }
    }
    errs.extend(windows_options(sc.at("windowsOptions"), &path.child("windowsOptions")));
    errs.extend(app_armor(sc.at("appArmorProfile"), &path.child("appArmorProfile")));
    errs
}

pub fn pod(sc: &Value, spec: &Value, path: &Path) -> FieldErrors {
    let mut errs = ids(sc, &["fsGroup", "runAsUser", "runAsGroup"], path);
    for (i, g) in sc.list("supplementalGroups").iter().enumerate() {
        let n = g.as_i64().unwrap_or(0);
        let p = path.child("supplementalGroups").index(i);
        errs.extend(names::user_id(n).into_iter().map(|m| FieldError::invalid(&p, n, m)));
    }
    errs.extend(sysctls(sc.list("sysctls"), spec, &path.child("sysctls")));
    errs.extend(one_of_if_set(sc, "fsGroupChangePolicy", &["Always", "OnRootMismatch"], path));
    errs.extend(seccomp(sc.at("seccompProfile"), &path.child("seccompProfile")));
    errs.extend(windows_options(sc.at("windowsOptions"), &path.child("windowsOptions")));
    errs.extend(app_armor(sc.at("appArmorProfile"), &path.child("appArmorProfile")));
    errs.extend(one_of_if_set(sc, "supplementalGroupsPolicy", &["Merge", "Strict"], path));
    errs.extend(one_of_if_set(sc, "seLinuxChangePolicy", &["MountOption", "Recursive"], path));
    errs
}

fn sysctls(list: &[Value], spec: &Value, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    let mut seen = BTreeSet::new();
    for (i, s) in list.iter().enumerate() {
        let (name, p) = (s.text("name"), path.index(i).child("name"));
        if name.is_empty() {
            errs.push(FieldError::required(&p, ""));
        } else if name.len() > 253 || !SYSCTL_NAME.is_match(name) {
            let m = format!("must have at most 253 characters and match regex {SYSCTL}");
            errs.push(FieldError::invalid(&p, name, m));
        } else if seen.contains(name) {
            errs.push(FieldError::duplicate(&p, name));
        }
        let dotted = name.replace('/', ".");
        let ipc =
            ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|x| dotted.starts_with(x)) || dotted == "kernel.sem";
        if spec.flag("hostNetwork") && dotted.starts_with("net.") {
            errs.push(FieldError::invalid(&p, name, "may not be specified when 'hostNetwork' is true"));
        } else if spec.flag("hostIPC") && ipc {
            errs.push(FieldError::invalid(&p, name, "may not be specified when 'hostIPC' is true"));
        }
        seen.insert(name);
    }
    errs
}

const PROFILES: [&str; 3] = ["Localhost", "RuntimeDefault", "Unconfined"];

fn seccomp(sp: &Value, path: &Path) -> FieldErrors {
    if sp.is_null() {
        return Vec::new();
    }
    let mut errs = Vec::new();
    let (kind, local, p) = (sp.text("type"), sp.at("localhostProfile"), path.child("localhostProfile"));
    match kind {
        "" => errs.push(FieldError::required(&path.child("type"), "type is required when seccompProfile is set")),
        k if !PROFILES.contains(&k) => errs.push(FieldError::not_supported(&path.child("type"), k, &PROFILES)),
        _ => {}
    }
    match (kind, local.as_str()) {
        ("Localhost", None) => {
            errs.push(FieldError::required(&p, "must be set when seccomp type is Localhost"));
        }
        ("Localhost", Some(l)) => errs.extend(descending_path(l, &p)),
        (_, Some(_)) => {
            errs.push(FieldError::invalid(&p, sp.clone(), "can only be set when seccomp type is Localhost"));
        }
        _ => {}
    }
    errs
}

fn app_armor(profile: &Value, path: &Path) -> FieldErrors {
    if profile.is_null() {
        return Vec::new();
    }
    let (local, p) = (profile.at("localhostProfile").as_str(), path.child("localhostProfile"));
    const NEEDED: &str = "must be set when AppArmor type is Localhost";
    match (profile.text("type"), local) {
        ("Localhost", None | Some("")) => vec![FieldError::required(&p, NEEDED)],
        ("Localhost", Some(l)) => {
            let mut errs = Vec::new();
            if l.trim() != l {
                errs.push(FieldError::invalid(&p, l, "must not be padded with whitespace"));
            }
            if l.len() > 4095 {
                errs.push(FieldError::too_long(&p, 4095));
            }
            errs
        }
        ("RuntimeDefault" | "Unconfined", None) => Vec::new(),
        ("RuntimeDefault" | "Unconfined", Some(l)) => {
            vec![FieldError::invalid(&p, l, "can only be set when AppArmor type is Localhost")]
        }
        ("", _) => vec![FieldError::required(&path.child("type"), "type is required when appArmorProfile is set")],
        (other, _) => vec![FieldError::not_supported(&path.child("type"), other, &PROFILES)],
    }
}

fn windows_options(w: &Value, path: &Path) -> FieldErrors {
    let mut errs = Vec::new();
    if let Some(name) = w.at("gmsaCredentialSpecName").as_str() {
        let p = path.child("gmsaCredentialSpecName");
        errs.extend(names::dns1123_subdomain(name).into_iter().map(|m| FieldError::invalid(&p, name, m)));
    }
    if let Some(spec) = w.at("gmsaCredentialSpec").as_str() {
        let p = path.child("gmsaCredentialSpec");
        if spec.is_empty() {
            errs.push(FieldError::invalid(&p, spec, "gmsaCredentialSpec cannot be an empty string"));
        } else if spec.len() > 64 * 1024 {
            errs.push(FieldError::invalid(&p, spec, "gmsaCredentialSpec size must be under 64 KiB"));
        }
    }
    if let Some(name) = w.at("runAsUserName").as_str() {
        let p = path.child("runAsUserName");
        errs.extend(windows_user(name).into_iter().map(|m| FieldError::invalid(&p, name, m)));
    }
    errs
}

fn windows_user(name: &str) -> Vec<String> {
    let parts: Vec<&str> = name.split('\\').collect();
    if name.is_empty() {
        return vec!["runAsUserName cannot be an empty string".into()];
    }
    if name.chars().any(|c| c.is_ascii_control()) {
        return vec!["runAsUserName cannot contain control characters".into()];
    }
    let (domain, user) = match parts[..] {
        [user] => (None, user),
        [domain, user] => (Some(domain), user),
        _ => return vec!["runAsUserName cannot contain more than one backslash".into()],
    };
    let mut msgs = Vec::new();
    if let Some(d) = domain {
        let netbios = !d.is_empty()
            && d.len() <= 15
            && !d.starts_with('.')
            && !d.contains(['\\', '/', ':', '*', '?', '"', '<', '>', '|']);
        let dns = d.split('.').all(|l| {
            let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
            l.len() <= 63
                && edge(l.chars().next())
                && edge(l.chars().last())
                && l.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        });
        if d.len() >= 256 {
            msgs.push("runAsUserName's Domain length must be under 256 characters".into());
        }
        if !netbios && !dns {
            msgs.push("runAsUserName's Domain doesn't match the NetBios nor the DNS format".into());
        }
    }
    if user.is_empty() {
        msgs.push("runAsUserName's User cannot be empty".into());
    } else if user.len() > 104 {
        msgs.push("runAsUserName's User length must not be longer than 104 characters".into());
    }
    if !user.is_empty() && user.chars().all(|c| c == '.' || c == ' ') {
        msgs.push("runAsUserName's User cannot contain only periods or spaces".into());
    }
    if user.contains(['"', '/', '\\', ':', ';', '|', '=', ',', '+', '*', '?', '<', '>', '@', '[', ']']) {
        msgs.push("runAsUserName's User cannot contain the following characters: \"/\\:;|=,+*?<>@[]".into());
    }
    msgs
}

/// `defaultUser`, `user` of volume files.
pub fn user_field(parent: &Value, field: &str, path: &Path) -> FieldErrors {
    in_range(parent, field, 0, i64::from(i32::MAX), path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn say(errs: FieldErrors) -> Vec<String> {
        errs.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn contexts() {
        let p = Path::new("sc");
        assert_eq!(
            say(container(&json!({"runAsUser": -1}), true, &p)),
            ["sc.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive"]
        );
        assert_eq!(
            say(container(&json!({"seccompProfile": {"type": "Localhost"}}), true, &p)),
            ["sc.seccompProfile.localhostProfile: Required value: must be set when seccomp type is Localhost"]
        );
        assert_eq!(
            say(container(&json!({"seccompProfile": {"type": "X"}}), true, &p)),
            [
                "sc.seccompProfile.type: Unsupported value: \"X\": supported values: \"Localhost\", \"RuntimeDefault\", \"Unconfined\""
            ]
        );
        let sc = json!({"sysctls": [{"name": "net.core.somaxconn"}, {"name": "A"}, {"name": "kernel.sem"}, {"name": "kernel.sem"}]});
        assert_eq!(say(pod(&sc, &json!({"hostNetwork": true}), &p)).len(), 3);
        assert_eq!(windows_user("a\\b\\c"), ["runAsUserName cannot contain more than one backslash"]);
        assert_eq!(windows_user("DOMAIN\\user"), [""; 0]);
    }
}
