//! `registries.yaml`, in k3s's shape: mirrors of registries, and how to speak to each. What it says and this does not know is
//! an error: a mistyped key must not turn verification or a mirror off in silence.

use super::Reference;
use isopod_schema::yaml;
use regex::Regex;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Registries {
    /// By registry (`docker.io`), or `*` for all without an entry.
    pub mirrors: BTreeMap<String, Mirror>,
    /// By the endpoint's host and port.
    pub configs: BTreeMap<String, RegistryConfig>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mirror {
    /// URLs, tried in order before the registry itself.
    #[serde(alias = "endpoints")]
    pub endpoint: Vec<String>,
    /// Regular expression → replacement (`$1` …), on repository names at these endpoints.
    pub rewrite: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistryConfig {
    pub auth: Auth,
    pub tls: Tls,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Auth {
    pub username: String,
    pub password: String,
    /// base64 of `username:password`.
    pub auth: String,
    pub identity_token: String,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Auth({:?}, …)", self.username)
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    pub ca_file: Option<PathBuf>,
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    pub insecure_skip_verify: bool,
}

/// One place to ask for an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub https: bool,
    /// Host and port.
    pub host: String,
    pub repository: String,
}

#[derive(Debug, thiserror::Error)]
pub enum RegistriesError {
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} is not a valid registries file; its keys are mirrors (endpoint, rewrite) and configs (auth, tls)")]
    Parse {
        path: PathBuf,
        #[source]
        source: ParseError,
    },
    #[error("the rewrite {0:?} is not a regular expression")]
    Rewrite(String, #[source] regex::Error),
    #[error("the endpoint {0:?} is not an http or https URL")]
    Endpoint(String),
}

/// Why a text is no registries file.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    #[error(transparent)]
    Yaml(#[from] yaml::YamlError),
    #[error(transparent)]
    Fields(#[from] serde_json::Error),
}

impl Registries {
    /// No file: no mirrors.
    pub fn load(path: &Path) -> Result<Self, RegistriesError> {
        let text = match std::fs::read_to_string(path) {
            Ok(t) => t,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(RegistriesError::Read { path: path.into(), source }),
        };
        Self::parse(&text).map_err(|source| RegistriesError::Parse { path: path.into(), source })
    }

    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let value = yaml::parse_strictly(text)?;
        Ok(serde_json::from_value::<Option<Self>>(value)?.unwrap_or_default())
    }

    /// Where to ask for an image, in order; the last is the registry itself.
    pub fn endpoints(&self, image: &Reference) -> Result<Vec<Endpoint>, RegistriesError> {
        let mirror = self.mirrors.get(&image.registry).or_else(|| self.mirrors.get("*"));
        let mut all = Vec::new();
        for url in mirror.iter().flat_map(|m| &m.endpoint) {
            let mut repository = image.repository.clone();
            for (pattern, replacement) in mirror.iter().flat_map(|m| &m.rewrite) {
                let regex = Regex::new(pattern).map_err(|e| RegistriesError::Rewrite(pattern.clone(), e))?;
                if regex.is_match(&repository) {
                    repository = regex.replace(&repository, replacement.as_str()).into_owned();
                    break;
                }
            }
            all.push(endpoint(url, &repository)?);
        }
        let host = match image.registry.as_str() {
            "docker.io" => "registry-1.docker.io",
            other => other,
        };
        // The registry itself speaks HTTPS, except on this machine.
        let own = Endpoint { https: !is_local(host), host: host.into(), repository: image.repository.clone() };
        if !all.contains(&own) {
            all.push(own);
        }
        Ok(all)
    }

    /// For an endpoint's host, or the image's registry.
    pub fn config(&self, host: &str, registry: &str) -> RegistryConfig {
        self.configs.get(host).or_else(|| self.configs.get(registry)).cloned().unwrap_or_default()
    }
}

fn endpoint(url: &str, repository: &str) -> Result<Endpoint, RegistriesError> {
    let bad = || RegistriesError::Endpoint(url.into());
    let (https, rest) = match (url.strip_prefix("https://"), url.strip_prefix("http://")) {
        (Some(rest), _) => (true, rest),
        (_, Some(rest)) => (false, rest),
        _ if !url.contains("://") => (true, url),
        _ => return Err(bad()),
    };
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    if host.is_empty() {
        return Err(bad());
    }
    let path = path.trim_matches('/');
    // A path below /v2 is a prefix of the repository.
    let prefix = path.strip_prefix("v2").unwrap_or(path).trim_matches('/');
    let repository = if prefix.is_empty() { repository.to_owned() } else { format!("{prefix}/{repository}") };
    Ok(Endpoint { https, host: host.into(), repository })
}

fn is_local(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name).trim_matches(['[', ']']);
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_come_first_and_are_rewritten() {
        let r = Registries::parse(
            "mirrors:\n  docker.io:\n    endpoint: [\"https://m.example/v2/proxy\", \"http://n.example:5000\"]\n    rewrite:\n      \
             \"^library/(.*)\": \"mirrored/$1\"\n  \"*\":\n    endpoint: [\"https://all.example\"]\nconfigs:\n  n.example:5000:\n    \
             auth: {username: u, password: p}\n    tls: {insecure_skip_verify: true}\n",
        )
        .unwrap();
        let ask = |name: &str| r.endpoints(&Reference::parse(name).unwrap()).unwrap();
        let e =
            |https, host: &str, repository: &str| Endpoint { https, host: host.into(), repository: repository.into() };
        assert_eq!(
            ask("busybox"),
            [
                e(true, "m.example", "proxy/mirrored/busybox"),
                e(false, "n.example:5000", "mirrored/busybox"),
                e(true, "registry-1.docker.io", "library/busybox"),
            ]
        );
        assert_eq!(ask("quay.io/a/b"), [e(true, "all.example", "a/b"), e(true, "quay.io", "a/b")]);
        assert!(r.config("n.example:5000", "docker.io").tls.insecure_skip_verify);
    }

    #[test]
    fn k3s_keys_are_known_and_others_are_named() {
        let all = "mirrors: {docker.io: {endpoint: [\"https://m\"], rewrite: {a: b}}}\nconfigs:\n  m:\n    \
                   auth: {username: u, password: p, auth: x, identity_token: t}\n    \
                   tls: {ca_file: /c, cert_file: /d, key_file: /k, insecure_skip_verify: true}\n";
        let r = Registries::parse(all).unwrap();
        assert_eq!(r.configs["m"].tls.key_file.as_deref(), Some(Path::new("/k")));
        for (text, word) in [
            ("mirror: {}", "mirror"),
            ("mirrors: {a: {endpint: []}}", "endpint"),
            ("configs: {a: {tsl: {}}}", "tsl"),
            ("configs: {a: {auth: {user: x}}}", "user"),
            ("configs: {a: {tls: {insecure_skip_verfy: true}}}", "insecure_skip_verfy"),
            ("mirrors: [", "line 1"),
        ] {
            let e = Registries::parse(text).unwrap_err().to_string();
            assert!(e.contains(word), "{text}: {e}");
        }
    }

    #[test]
    fn a_bad_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registries.yaml");
        assert!(Registries::load(&path).unwrap().mirrors.is_empty(), "no file, no mirrors");
        std::fs::write(&path, "mirror: {}\n").unwrap();
        let e = Registries::load(&path).unwrap_err().to_string();
        assert!(e.contains("registries.yaml") && e.contains("configs"), "{e}");
    }

    #[test]
    fn a_registry_on_this_machine_speaks_http() {
        let r = Registries::parse("").unwrap();
        for (name, https) in [("localhost:5000/a", false), ("127.0.0.1:5000/a", false), ("10.0.0.1:5000/a", true)] {
            assert_eq!(r.endpoints(&Reference::parse(name).unwrap()).unwrap()[0].https, https, "{name}");
        }
    }
}
