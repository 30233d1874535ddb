//! Objects as other API servers stored them: turned into what this one stores.
//!
//! Upstream's server stores built-in kinds as protobuf, in whichever version its release chose; this one stores JSON. Addresses
//! and ports that services hold lie elsewhere, too: they are claimed here as if the services had been created.
//!
//! Invariant: an object comes over whole or not at all; one that cannot is named, with the reason.

mod definition;

use crate::allocate::service;
use crate::encode::{splice, type_of};
use crate::pipeline;
use bytes::Bytes;
use isopod_api::{GroupVersion, Gvk};
use isopod_kinds::{Kind, table};
use isopod_schema::types::Object;
use isopod_schema::{facts, json, proto};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const ROOT: &str = "/registry/";
/// How values begin that upstream's server has encrypted.
const ENCRYPTED: &[u8] = b"k8s:enc:";

/// Why a stored object cannot be taken over.
#[derive(Debug, thiserror::Error)]
pub enum Foreign {
    #[error(
        "it is encrypted: turn encryption off where it was stored and rewrite the secrets (k3s: `k3s secrets-encrypt \
         disable`, then `reencrypt`)"
    )]
    Encrypted,
    #[error("it is stored as {api_version} {kind}, which is not known here: rewrite it with a newer release first")]
    Version { api_version: String, kind: String },
    #[error("its fields are not those of {0}")]
    Fields(Gvk),
    #[error("it is neither JSON nor Kubernetes' protobuf")]
    Form,
    #[error("its protobuf cannot be read")]
    Protobuf(#[from] proto::ProtoError),
    #[error("its JSON cannot be read: {0}")]
    Json(String),
}

/// Takes objects over, one after another.
pub struct Adoption {
    kinds: Vec<Arc<Kind>>,
    /// The kinds as they are stored, by the prefix of their keys.
    stored: BTreeMap<String, Arc<Kind>>,
    keys: BTreeSet<String>,
    claims: BTreeMap<String, Bytes>,
}

impl Default for Adoption {
    fn default() -> Self {
        let kinds = table::builtin();
        let of_storage = kinds.iter().filter(|k| k.gvk == k.storage.gvk);
        let stored = of_storage.map(|k| (k.storage.keys.clone(), k.clone())).collect();
        Adoption { kinds, stored, keys: BTreeSet::new(), claims: BTreeMap::new() }
    }
}

impl Adoption {
    /// The object's bytes as this server stores them. `None`: the key is not that of an object.
    pub fn object(&mut self, key: &str, value: &[u8]) -> Result<Option<Bytes>, Foreign> {
        let Some(path) = key.strip_prefix(ROOT) else { return Ok(None) };
        match self.kind(key) {
            Some(kind) => {
                let object = self.built_in(&kind, value)?;
                self.claim(&kind, key, &object);
                Ok(Some(splice::stored(&object)))
            }
            None => custom(path, value),
        }
    }

    /// What services hold beside their objects, and nobody has brought along: keys and values.
    pub fn claims(self) -> impl Iterator<Item = (String, Bytes)> {
        let keys = self.keys;
        self.claims.into_iter().filter(move |(key, _)| !keys.contains(key))
    }

    fn kind(&self, key: &str) -> Option<Arc<Kind>> {
        let parts = |kind: &Kind| if kind.namespaced { 2 } else { 1 };
        let fits = |(prefix, kind): &(&String, &Arc<Kind>)| {
            key.strip_prefix(prefix.as_str()).is_some_and(|rest| rest.split('/').count() == parts(kind))
        };
        self.stored.iter().find(fits).map(|(_, kind)| kind.clone())
    }

    fn built_in(&self, kind: &Kind, value: &[u8]) -> Result<Value, Foreign> {
        let (mut object, gvk) = decode(value)?;
        let stored = &kind.storage.gvk;
        if gvk != *stored {
            match self.kinds.iter().find(|k| k.gvk == gvk && k.storage.prefix == kind.storage.prefix) {
                Some(version) => version.hooks.to_storage(&mut object),
                // Another version of the same fields: whatever else is in it would be lost.
                None if gvk.group == stored.group && gvk.kind == stored.kind => {
                    let same = json::decode_value(object, &kind.schema).map_err(|e| Foreign::Json(e.to_string()))?;
                    if !same.unknown.is_empty() {
                        return Err(Foreign::Fields(stored.clone()));
                    }
                    object = same.value;
                }
                None => return Err(Foreign::Fields(stored.clone())),
            }
        }
        if let Some(fields) = object.as_object_mut() {
            fields.insert("apiVersion".into(), stored.api_version().into());
            fields.insert("kind".into(), stored.kind.clone().into());
        }
        json::canonicalize(&mut object, &kind.schema);
        pipeline::apply_defaults(kind, &mut object);
        Ok(object)
    }

    fn claim(&mut self, kind: &Kind, key: &str, object: &Value) {
        match (kind.gvk.group.as_str(), kind.resource.as_str()) {
            ("", "services") => self.claims.extend(service::held(object)),
            ("networking.k8s.io", "ipaddresses") => {
                self.keys.insert(key.to_owned());
            }
            _ => {}
        }
    }
}

/// The object and what it says it is.
fn decode(value: &[u8]) -> Result<(Value, Gvk), Foreign> {
    if value.starts_with(ENCRYPTED) {
        return Err(Foreign::Encrypted);
    }
    let broken = |e: json::DecodeError| Foreign::Json(e.to_string());
    if value.starts_with(proto::envelope::PREFIX) {
        let frame = proto::envelope::unwrap(value)?;
        let (schema, gvk) = known(frame.api_version, frame.kind)?;
        return Ok((proto::envelope::open(value, &schema)?.1, gvk));
    }
    if value.first() != Some(&b'{') {
        return Err(Foreign::Form);
    }
    let mut parsed = json::parse(value).map_err(broken)?;
    let (mut api_version, mut kind) = type_of(&parsed);
    if (api_version.as_str(), kind.as_str()) == definition::OLD {
        definition::to_v1(&mut parsed);
        (api_version, kind) = type_of(&parsed);
    }
    let (schema, gvk) = known(api_version, kind)?;
    Ok((json::decode_value(parsed, &schema).map_err(broken)?.value, gvk))
}

/// The schema of what an object says it is.
fn known(api_version: String, kind: String) -> Result<(Arc<Object>, Gvk), Foreign> {
    let gvk = GroupVersion::parse(&api_version).map(|gv| same_fields(Gvk::new(gv.group, gv.version, kind.clone())));
    let known = gvk.and_then(|gvk| Some((facts::builtin().object_of(&gvk)?, gvk)));
    known.ok_or(Foreign::Version { api_version, kind })
}

/// Versions that are gone, of group, version and kind, with every field where `v1` has it: what an upgraded cluster may still have
/// stored. From the messages of `k8s.io/api` v0.37, field by field.
const SAME_FIELDS: [(&str, &str, &[&str]); 9] = [
    ("networking.k8s.io", "v1beta1", &["IPAddress", "ServiceCIDR", "IngressClass"]),
    ("flowcontrol.apiserver.k8s.io", "v1beta1", &["FlowSchema"]),
    ("flowcontrol.apiserver.k8s.io", "v1beta2", &["FlowSchema"]),
    ("flowcontrol.apiserver.k8s.io", "v1beta3", &["FlowSchema", "PriorityLevelConfiguration"]),
    ("storage.k8s.io", "v1beta1", &["CSIDriver", "CSINode", "CSIStorageCapacity", "VolumeAttributesClass"]),
    ("resource.k8s.io", "v1beta2", &["DeviceClass", "ResourceClaim", "ResourceClaimTemplate", "ResourceSlice"]),
    ("node.k8s.io", "v1beta1", &["RuntimeClass"]),
    ("certificates.k8s.io", "v1beta1", &["ClusterTrustBundle"]),
    ("rbac.authorization.k8s.io", "v1beta1", &["ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"]),
];

fn same_fields(gvk: Gvk) -> Gvk {
    let same = SAME_FIELDS.iter().any(|(group, version, kinds)| {
        gvk.group == *group && gvk.version == *version && kinds.contains(&gvk.kind.as_str())
    });
    if same { Gvk { version: "v1".into(), ..gvk } } else { gvk }
}

/// Custom resources are JSON to every server, and are converted when they are read. Their keys begin with their group.
fn custom(path: &str, value: &[u8]) -> Result<Option<Bytes>, Foreign> {
    let Some((group, _)) = path.split_once('/').filter(|(group, _)| group.contains('.')) else { return Ok(None) };
    if value.starts_with(ENCRYPTED) {
        return Err(Foreign::Encrypted);
    }
    let object = json::read(value).map_err(|_| Foreign::Form)?;
    let (api_version, kind) = type_of(&object);
    let stated = GroupVersion::parse(&api_version).filter(|gv| gv.group == group && !kind.is_empty());
    if stated.is_none() || !object["metadata"].is_object() {
        return Err(Foreign::Version { api_version, kind });
    }
    Ok(Some(splice::stored(&object)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn protobuf(object: &Value) -> Vec<u8> {
        let (api_version, kind) = type_of(object);
        let gv = GroupVersion::parse(&api_version).unwrap();
        let schema = facts::builtin().object_of(&Gvk::new(gv.group, gv.version, kind)).unwrap();
        proto::envelope::seal(object, &schema)
    }

    fn adopted(key: &str, value: &[u8]) -> Value {
        let bytes = Adoption::default().object(key, value).unwrap().unwrap();
        assert!(bytes.starts_with(b"{\"apiVersion\":"), "lists are cut from this: {bytes:?}");
        serde_json::from_slice(&bytes).unwrap()
    }

    #[test]
    fn protobuf_becomes_json() {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "c", "namespace": "n", "uid": "u", "resourceVersion": "7"}, "data": {"a": "1"}});
        let stored = adopted("/registry/configmaps/n/c", &protobuf(&map));
        assert_eq!(stored["data"], json!({"a": "1"}));
        assert_eq!((&stored["kind"], &stored["metadata"]["uid"]), (&json!("ConfigMap"), &json!("u")));
        assert!(stored["metadata"].get("resourceVersion").is_none(), "it is the store's to say");
        assert_eq!(adopted("/registry/configmaps/n/c", &serde_json::to_vec(&map).unwrap()), stored, "as is JSON");
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}});
        assert_eq!(adopted("/registry/minions/n", &protobuf(&node))["kind"], "Node");
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}});
        adopted("/registry/namespaces/n", &protobuf(&namespace));
    }

    #[test]
    fn other_versions_are_converted() {
        let old = json!({"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "h", "namespace": "n"},
            "spec": {"scaleTargetRef": {"kind": "Deployment", "name": "d"}, "maxReplicas": 3, "targetCPUUtilizationPercentage": 60}});
        let stored = adopted("/registry/horizontalpodautoscalers/n/h", &protobuf(&old));
        assert_eq!(stored["apiVersion"], "autoscaling/v2");
        assert_eq!(stored["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 60, "{stored}");
        let cidr = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "c"},
            "spec": {"cidrs": ["10.43.0.0/16"]}});
        let sealed = protobuf(&cidr);
        let raw = proto::envelope::unwrap(&sealed).unwrap().raw;
        let older = proto::envelope::wrap("networking.k8s.io/v1beta1", "ServiceCIDR", raw);
        let stored = adopted("/registry/servicecidrs/c", &older);
        assert_eq!((&stored["apiVersion"], &stored["spec"]), (&cidr["apiVersion"], &cidr["spec"]));
        let unknown = proto::envelope::wrap("apps/v1beta9", "Deployment", b"");
        let e = Adoption::default().object("/registry/deployments/n/d", &unknown).unwrap_err().to_string();
        assert!(e.contains("apps/v1beta9 Deployment"), "{e}");
    }

    #[test]
    fn versions_with_the_same_fields_are_gone_ones_of_known_kinds() {
        for (group, version, kinds) in SAME_FIELDS {
            for kind in kinds {
                let of = |version: &str| facts::builtin().object_of(&Gvk::new(group, version, *kind));
                assert!(of("v1").is_some(), "{group}/v1 {kind}");
                assert!(of(version).is_none(), "{group}/{version} {kind} is known as it is");
            }
        }
    }

    #[test]
    fn services_hold_their_addresses_and_ports() {
        let service = |name: &str, ip: &str, port: u16| {
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "n"},
                "spec": {"type": "NodePort", "clusterIP": ip, "clusterIPs": [ip], "ports": [{"port": 80, "nodePort": port}]}})
        };
        let mut adoption = Adoption::default();
        for (name, ip, port) in [("a", "10.43.0.7", 30007), ("b", "10.43.0.8", 30008)] {
            adoption
                .object(&format!("/registry/services/specs/n/{name}"), &protobuf(&service(name, ip, port)))
                .unwrap();
        }
        let address = json!({"apiVersion": "networking.k8s.io/v1", "kind": "IPAddress", "metadata": {"name": "10.43.0.8"},
            "spec": {"parentRef": {"resource": "services", "namespace": "n", "name": "b"}}});
        adoption.object("/registry/ipaddresses/10.43.0.8", &protobuf(&address)).unwrap();
        let claims: BTreeMap<String, Bytes> = adoption.claims().collect();
        let keys: Vec<&str> = claims.keys().map(String::as_str).collect();
        let ports = "/registry/ranges/servicenodeports/";
        assert_eq!(keys, ["/registry/ipaddresses/10.43.0.7", &format!("{ports}30007"), &format!("{ports}30008")]);
        let made: Value = serde_json::from_slice(&claims[keys[0]]).unwrap();
        assert_eq!(made["spec"]["parentRef"], json!({"resource": "services", "namespace": "n", "name": "a"}));
        assert_eq!(claims[keys[1]], "n/a");
    }

    #[test]
    fn custom_resources_stay_json() {
        let gadget = br#"{"metadata":{"name":"g","namespace":"n"},"kind":"Gadget","apiVersion":"example.com/v1","spec":{"x":1.5}}"#;
        let stored = adopted("/registry/example.com/gadgets/n/g", gadget);
        assert_eq!(stored["spec"]["x"], 1.5);
        let mut adoption = Adoption::default();
        for key in
            ["/registry/masterleases/192.0.2.1", "/registry/ranges/serviceips", "/registry/health", "/bootstrap/1", "x"]
        {
            assert!(
                adoption.object(key, &protobuf(&json!({"apiVersion": "v1", "kind": "Pod"}))).unwrap().is_none(),
                "{key}"
            );
        }
        for (value, why) in [
            (&b"k8s:enc:aescbc:v1:x"[..], "secrets-encrypt"),
            (b"\xd9\xd9\xf7", "neither JSON"),
            (b"{", "neither JSON"),
        ] {
            let e = adoption.object("/registry/example.com/gadgets/n/g", value).unwrap_err().to_string();
            assert!(e.contains(why), "{e}");
        }
        let e = adoption.object("/registry/secrets/n/s", b"k8s:enc:secretbox:v1:x").unwrap_err();
        assert!(matches!(e, Foreign::Encrypted), "{e}");
    }
}
