//! A container's environment: services, `envFrom`, `env`, in upstream's order of precedence. Pure; objects are fetched before.

use crate::downward::{self, Addresses, Allocatable, DownwardError};
use crate::expand::expand;
use crate::pod::PodExt;
use isopod_client::views::Service;
use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVar, Pod, Secret};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// The objects that a container's environment names; `None`: it does not exist.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    pub config_maps: HashMap<String, Option<Arc<ConfigMap>>>,
    pub secrets: HashMap<String, Option<Arc<Secret>>>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EnvError {
    #[error("configmap {0:?} not found")]
    NoConfigMap(String),
    #[error("secret {0:?} not found")]
    NoSecret(String),
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    NoKey { kind: &'static str, namespace: String, name: String, key: String },
    #[error(transparent)]
    Downward(#[from] DownwardError),
    #[error("environment variable {0:?} comes from a source that this kubelet does not know")]
    Source(String),
}

/// The config maps and secrets that a container's environment needs: (config maps, secrets).
pub fn needed(c: &Container) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut maps, mut secrets) = (BTreeSet::new(), BTreeSet::new());
    for from in c.env_from.iter().flatten() {
        maps.extend(from.config_map_ref.iter().map(|r| r.name.clone()));
        secrets.extend(from.secret_ref.iter().map(|r| r.name.clone()));
    }
    for source in c.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
        maps.extend(source.config_map_key_ref.iter().map(|r| r.name.clone()));
        secrets.extend(source.secret_key_ref.iter().map(|r| r.name.clone()));
    }
    (maps, secrets)
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    pub vars: Vec<(String, String)>,
    /// Keys of `envFrom` sources that cannot be names: the source and its keys.
    pub skipped: Vec<(String, Vec<String>)>,
}

pub struct Inputs<'a> {
    pub objects: &'a Objects,
    /// Services of the pod's namespace and `default/kubernetes`.
    pub services: &'a [Arc<Service>],
    pub addresses: &'a Addresses,
    pub node: Allocatable,
}

struct Vars {
    order: Vec<String>,
    values: HashMap<String, String>,
}

impl Vars {
    fn set(&mut self, name: &str, value: String) {
        if self.values.insert(name.to_owned(), value).is_none() {
            self.order.push(name.to_owned());
        }
    }
}

pub fn build(pod: &Pod, c: &Container, inputs: &Inputs<'_>) -> Result<Environment, EnvError> {
    let mut out = Environment::default();
    let mut vars = Vars { order: Vec::new(), values: HashMap::new() };
    let links = pod.spec().enable_service_links.unwrap_or(true);
    for (name, value) in service_vars(inputs.services, pod.ns(), links) {
        vars.set(&name, value);
    }
    for from in c.env_from.iter().flatten() {
        env_from(pod, from, inputs, &mut vars, &mut out.skipped)?;
    }
    for e in c.env.iter().flatten() {
        if let Some(value) = value_of(pod, c, e, inputs, &vars)? {
            vars.set(&e.name, value);
        }
    }
    let mut values = vars.values;
    out.vars = vars.order.into_iter().filter_map(|n| values.remove(&n).map(|v| (n, v))).collect();
    Ok(out)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Printable ASCII without `=` (KEP-4369).
fn is_env_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'=')
}

fn env_from(
    pod: &Pod,
    from: &k8s_openapi::api::core::v1::EnvFromSource,
    inputs: &Inputs<'_>,
    vars: &mut Vars,
    skipped: &mut Vec<(String, Vec<String>)>,
) -> Result<(), EnvError> {
    let prefix = from.prefix.as_deref().unwrap_or_default();
    let mut bad = Vec::new();
    let mut put = |key: &str, value: String| {
        let name = format!("{prefix}{key}");
        if is_env_name(&name) { vars.set(&name, value) } else { bad.push(name) }
    };
    let mut source = String::new();
    if let Some(r) = &from.config_map_ref {
        source = format!("configMap {}/{}", pod.ns(), r.name);
        match inputs.objects.config_maps.get(&r.name).and_then(Option::as_ref) {
            Some(m) => m.data.iter().flatten().for_each(|(k, v)| put(k, v.clone())),
            None if r.optional == Some(true) => {}
            None => return Err(EnvError::NoConfigMap(r.name.clone())),
        }
    }
    if let Some(r) = &from.secret_ref {
        source = format!("secret {}/{}", pod.ns(), r.name);
        match inputs.objects.secrets.get(&r.name).and_then(Option::as_ref) {
            Some(s) => s.data.iter().flatten().for_each(|(k, v)| put(k, text(&v.0))),
            None if r.optional == Some(true) => {}
            None => return Err(EnvError::NoSecret(r.name.clone())),
        }
    }
    if !bad.is_empty() {
        skipped.push((source, bad));
    }
    Ok(())
}

/// `None`: an optional source that is not there.
fn value_of(
    pod: &Pod,
    c: &Container,
    e: &EnvVar,
    inputs: &Inputs<'_>,
    vars: &Vars,
) -> Result<Option<String>, EnvError> {
    let Some(source) = &e.value_from else {
        let raw = e.value.as_deref().unwrap_or_default();
        return Ok(Some(expand(raw, &|name| vars.values.get(name).cloned())));
    };
    if let Some(f) = &source.field_ref {
        return Ok(Some(downward::field(pod, &f.field_path, inputs.addresses)?));
    }
    if let Some(r) = &source.resource_field_ref {
        return Ok(Some(downward::resource(pod, Some(c), r, inputs.node)?));
    }
    if let Some(r) = &source.config_map_key_ref {
        let optional = r.optional == Some(true);
        return match inputs.objects.config_maps.get(&r.name).and_then(Option::as_ref) {
            None if optional => Ok(None),
            None => Err(EnvError::NoConfigMap(r.name.clone())),
            Some(m) => {
                key("ConfigMap", pod, &r.name, &r.key, optional, m.data.as_ref().and_then(|d| d.get(&r.key)).cloned())
            }
        };
    }
    if let Some(r) = &source.secret_key_ref {
        let optional = r.optional == Some(true);
        return match inputs.objects.secrets.get(&r.name).and_then(Option::as_ref) {
            None if optional => Ok(None),
            None => Err(EnvError::NoSecret(r.name.clone())),
            Some(s) => {
                let value = s.data.as_ref().and_then(|d| d.get(&r.key)).map(|b| text(&b.0));
                key("Secret", pod, &r.name, &r.key, optional, value)
            }
        };
    }
    Err(EnvError::Source(e.name.clone()))
}

fn key(
    kind: &'static str,
    pod: &Pod,
    name: &str,
    key: &str,
    optional: bool,
    value: Option<String>,
) -> Result<Option<String>, EnvError> {
    if value.is_none() && !optional {
        return Err(EnvError::NoKey { kind, namespace: pod.ns().into(), name: name.into(), key: key.into() });
    }
    Ok(value)
}

/// The variables of services as Docker links named them, sorted by service (`pkg/kubelet/envvars`).
fn service_vars(services: &[Arc<Service>], namespace: &str, links: bool) -> Vec<(String, String)> {
    let mut by_name: std::collections::BTreeMap<&str, &Service> = Default::default();
    for s in services {
        let own = links && s.metadata.namespace == namespace;
        let master = s.metadata.namespace == "default" && s.metadata.name == "kubernetes";
        let has_ip = !matches!(s.spec.cluster_ip.as_str(), "" | "None");
        // A service of the pod's own namespace named like the master hides it.
        if has_ip && (own || (master && !by_name.contains_key("kubernetes"))) {
            by_name.insert(&s.metadata.name, s);
        }
    }
    let mut out = Vec::new();
    for (name, s) in by_name {
        let upper = |t: &str| t.to_uppercase().replace('-', "_");
        let prefix = upper(name);
        let ip = &s.spec.cluster_ip;
        let host = if ip.contains(':') { format!("[{ip}]") } else { ip.clone() };
        let Some(first) = s.spec.ports.first() else { continue };
        out.push((format!("{prefix}_SERVICE_HOST"), ip.clone()));
        out.push((format!("{prefix}_SERVICE_PORT"), first.port.to_string()));
        for p in s.spec.ports.iter().filter(|p| !p.name.is_empty()) {
            out.push((format!("{prefix}_SERVICE_PORT_{}", upper(&p.name)), p.port.to_string()));
        }
        for (i, p) in s.spec.ports.iter().enumerate() {
            let protocol = if p.protocol.is_empty() { "TCP" } else { &p.protocol };
            let url = format!("{}://{host}:{}", protocol.to_lowercase(), p.port);
            if i == 0 {
                out.push((format!("{prefix}_PORT"), url.clone()));
            }
            let port = format!("{prefix}_PORT_{}_{protocol}", p.port);
            out.push((port.clone(), url));
            out.push((format!("{port}_PROTO"), protocol.to_lowercase()));
            out.push((format!("{port}_PORT"), p.port.to_string()));
            out.push((format!("{port}_ADDR"), ip.clone()));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn run(container: Value, services: &[Value], maps: Value) -> Result<Environment, EnvError> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns"}, "spec": {"containers": [container]},
        }))
        .unwrap();
        let services: Vec<Arc<Service>> =
            services.iter().map(|s| Arc::new(serde_json::from_value(s.clone()).unwrap())).collect();
        let mut objects = Objects::default();
        for (name, data) in maps.as_object().unwrap() {
            let map = serde_json::from_value(json!({"data": data})).unwrap();
            objects.config_maps.insert(name.clone(), Some(Arc::new(map)));
        }
        let inputs = Inputs {
            objects: &objects,
            services: &services,
            addresses: &Addresses::default(),
            node: Allocatable::default(),
        };
        build(&pod, &pod.spec().containers[0], &inputs)
    }

    fn vars(e: &Environment) -> Vec<String> {
        e.vars.iter().map(|(k, v)| format!("{k}={v}")).collect()
    }

    #[test]
    fn later_sources_win_and_references_expand() {
        let c = json!({"name": "c",
            "envFrom": [{"configMapRef": {"name": "m"}}, {"prefix": "P_", "configMapRef": {"name": "m"}}],
            "env": [{"name": "A", "value": "own"}, {"name": "B", "value": "$(A)-$(P_A)-$(NONE)-$$(A)"},
                    {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                    {"name": "K", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "A"}}},
                    {"name": "O", "valueFrom": {"configMapKeyRef": {"name": "none", "key": "A", "optional": true}}}]});
        let got = run(c, &[], json!({"m": {"A": "map", "bad=": "x"}})).unwrap();
        assert_eq!(vars(&got), ["A=own", "P_A=map", "B=own-map-$(NONE)-$(A)", "NAME=p", "K=map"]);
        assert_eq!(got.skipped[0], ("configMap ns/m".to_owned(), vec!["bad=".to_owned()]));
    }

    #[test]
    fn missing_objects_are_named() {
        let from = |r: Value| json!({"name": "c", "env": [{"name": "A", "valueFrom": r}]});
        let cases = [
            (json!({"configMapKeyRef": {"name": "m", "key": "x"}}), "couldn't find key x in ConfigMap ns/m"),
            (json!({"configMapKeyRef": {"name": "q", "key": "x"}}), "configmap \"q\" not found"),
            (json!({"secretKeyRef": {"name": "s", "key": "x"}}), "secret \"s\" not found"),
        ];
        for (r, want) in cases {
            assert_eq!(run(from(r), &[], json!({"m": {}})).unwrap_err().to_string(), want);
        }
    }

    #[test]
    fn services_become_variables() {
        let web = json!({"metadata": {"name": "my-web", "namespace": "ns"}, "spec": {"clusterIP": "10.43.0.9",
            "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}});
        let api = json!({"metadata": {"name": "kubernetes", "namespace": "default"}, "spec": {"clusterIP": "10.43.0.1",
            "ports": [{"port": 443, "protocol": "TCP"}]}});
        let headless = json!({"metadata": {"name": "h", "namespace": "ns"}, "spec": {"clusterIP": "None", "ports": [{"port": 1}]}});
        let got = run(json!({"name": "c"}), &[web, api, headless], json!({})).unwrap();
        assert_eq!(
            vars(&got),
            [
                "KUBERNETES_SERVICE_HOST=10.43.0.1",
                "KUBERNETES_SERVICE_PORT=443",
                "KUBERNETES_PORT=tcp://10.43.0.1:443",
                "KUBERNETES_PORT_443_TCP=tcp://10.43.0.1:443",
                "KUBERNETES_PORT_443_TCP_PROTO=tcp",
                "KUBERNETES_PORT_443_TCP_PORT=443",
                "KUBERNETES_PORT_443_TCP_ADDR=10.43.0.1",
                "MY_WEB_SERVICE_HOST=10.43.0.9",
                "MY_WEB_SERVICE_PORT=80",
                "MY_WEB_SERVICE_PORT_HTTP=80",
                "MY_WEB_PORT=tcp://10.43.0.9:80",
                "MY_WEB_PORT_80_TCP=tcp://10.43.0.9:80",
                "MY_WEB_PORT_80_TCP_PROTO=tcp",
                "MY_WEB_PORT_80_TCP_PORT=80",
                "MY_WEB_PORT_80_TCP_ADDR=10.43.0.9",
            ]
        );
    }
}
