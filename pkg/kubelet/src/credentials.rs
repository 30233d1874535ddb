//! Registry credentials from image pull secrets (`kubernetes.io/dockerconfigjson` and `kubernetes.io/dockercfg`).

use base64::Engine;
use isopod_runtime::RegistryAuth;
use k8s_openapi::api::core::v1::Secret;
use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    username: String,
    password: String,
    auth: String,
    identitytoken: String,
    registrytoken: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Config {
    auths: BTreeMap<String, Entry>,
}

/// The registry (with port) and the repository path of an image name.
pub fn registry_and_path(image: &str) -> (String, String) {
    let name = image.split('@').next().unwrap_or_default();
    match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => {
            (first.to_owned(), rest.to_owned())
        }
        Some(_) => ("index.docker.io".into(), name.to_owned()),
        None => ("index.docker.io".into(), format!("library/{name}")),
    }
}

/// `https://index.docker.io/v1/` and the like: host with port, and path.
fn key_parts(key: &str) -> (String, String) {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let (host, path) = bare.split_once('/').unwrap_or((bare, ""));
    let host = match host {
        "docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => "index.docker.io",
        h => h,
    };
    let path = path.trim_end_matches('/');
    // The API version is no part of a repository's name.
    let path = if matches!(path, "v1" | "v2") { "" } else { path };
    (host.to_owned(), path.to_owned())
}

/// Each label of the host may hold `*`.
fn host_matches(pattern: &str, host: &str) -> bool {
    let (p, p_port) = pattern.rsplit_once(':').unwrap_or((pattern, ""));
    let (h, h_port) = host.rsplit_once(':').unwrap_or((host, ""));
    let (ps, hs): (Vec<&str>, Vec<&str>) = (p.split('.').collect(), h.split('.').collect());
    p_port == h_port && ps.len() == hs.len() && ps.iter().zip(&hs).all(|(p, h)| glob(p, h))
}

fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((front, back)) => text
            .strip_prefix(front)
            .is_some_and(|rest| (0..=rest.len()).any(|i| rest.is_char_boundary(i) && glob(back, &rest[i..]))),
    }
}

fn entries(secret: &Secret) -> BTreeMap<String, Entry> {
    let data = |key: &str| secret.data.as_ref().and_then(|d| d.get(key)).map(|b| b.0.as_slice());
    match secret.type_.as_deref() {
        Some("kubernetes.io/dockerconfigjson") => {
            data(".dockerconfigjson").and_then(|d| serde_json::from_slice::<Config>(d).ok()).unwrap_or_default().auths
        }
        Some("kubernetes.io/dockercfg") => {
            data(".dockercfg").and_then(|d| serde_json::from_slice(d).ok()).unwrap_or_default()
        }
        _ => BTreeMap::new(),
    }
}

fn credentials(e: &Entry) -> Option<RegistryAuth> {
    let mut auth = RegistryAuth {
        username: e.username.clone(),
        password: e.password.clone(),
        identity_token: e.identitytoken.clone(),
        registry_token: e.registrytoken.clone(),
    };
    if !e.auth.is_empty() {
        let padded = e.auth.trim_end_matches('=');
        let bytes = base64::engine::general_purpose::STANDARD_NO_PAD.decode(padded).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        let (user, password) = text.split_once(':')?;
        auth.username = user.to_owned();
        auth.password = password.trim_end_matches('\0').to_owned();
    }
    Some(auth)
}

/// The credentials that fit the image, the most specific first.
pub fn lookup(image: &str, secrets: &[std::sync::Arc<Secret>]) -> Vec<RegistryAuth> {
    let (registry, path) = registry_and_path(image);
    let mut found = Vec::new();
    for secret in secrets {
        for (key, entry) in entries(secret) {
            let (host, prefix) = key_parts(&key);
            let under = prefix.is_empty()
                || path == prefix
                || path.starts_with(&format!("{prefix}/"))
                || path.starts_with(&format!("{prefix}:"));
            if host_matches(&host, &registry) && under {
                found.extend(credentials(&entry).map(|c| (prefix.len(), c)));
            }
        }
    }
    found.sort_by_key(|(specific, _)| std::cmp::Reverse(*specific));
    found.into_iter().map(|(_, c)| c).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;
    use serde_json::json;
    use std::sync::Arc;

    fn secret(kind: &str, key: &str, value: serde_json::Value) -> Arc<Secret> {
        let data = [(key.to_owned(), ByteString(value.to_string().into_bytes()))].into();
        Arc::new(Secret { type_: Some(format!("kubernetes.io/{kind}")), data: Some(data), ..Default::default() })
    }

    #[test]
    fn the_right_credentials_are_found() {
        let secrets = [
            secret(
                "dockerconfigjson",
                ".dockerconfigjson",
                json!({"auths": {
                    "reg.example:5000": {"auth": "dTpwOnc="},
                    "reg.example:5000/team": {"username": "team", "password": "x"},
                    "*.wild.example": {"username": "w", "password": "x"},
                    "https://index.docker.io/v1/": {"username": "hub", "password": "x"},
                }}),
            ),
            secret("dockercfg", ".dockercfg", json!({"old.example": {"username": "old", "password": "y"}})),
            secret("opaque", ".dockercfg", json!({"old.example": {"username": "no", "password": "y"}})),
        ];
        let users = |image: &str| lookup(image, &secrets).iter().map(|a| a.username.clone()).collect::<Vec<_>>();
        assert_eq!(users("reg.example:5000/app:1"), ["u"]);
        assert_eq!(lookup("reg.example:5000/app", &secrets)[0].password, "p:w");
        assert_eq!(users("reg.example:5000/team/app"), ["team", "u"]);
        assert_eq!(users("reg.example:5000/teamwork"), ["u"]);
        assert_eq!(users("a.wild.example/x"), ["w"]);
        assert!(users("a.b.wild.example/x").is_empty() && users("wild.example/x").is_empty());
        assert_eq!(users("nginx"), ["hub"]);
        assert_eq!(users("someone/nginx@sha256:00"), ["hub"]);
        assert_eq!(users("old.example/x"), ["old"]);
    }
}
