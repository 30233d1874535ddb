//! A kubelet creates mirror pods, deletes and reports its own pods, and asks for tokens and certificates in their names.

use super::{Asker, Operation};
use crate::chain;
use isopod_api::{Gvr, Status};
use isopod_auth::Attributes;
use serde_json::Value;
use std::sync::Arc;

const MIRROR: &str = "kubernetes.io/config.mirror";

pub async fn whole(asker: &Asker<'_>) -> Result<(), Status> {
    let node = asker.node;
    match asker.request.operation {
        Operation::Create => mirror(asker).await,
        Operation::Delete if asker.old()["spec"]["nodeName"] != node => {
            asker.refuse(format!("node {node:?} can only delete pods with spec.nodeName set to itself"))
        }
        Operation::Delete | Operation::Connect => Ok(()),
        Operation::Update => asker
            .refuse(format!("unexpected operation \"UPDATE\", node {node:?} can only create and delete mirror pods")),
    }
}

async fn mirror(asker: &Asker<'_>) -> Result<(), Status> {
    let (node, pod) = (asker.node, asker.written());
    if pod["metadata"]["annotations"][MIRROR].is_null() {
        return asker
            .refuse(format!("pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"));
    }
    if pod["spec"]["nodeName"] != node {
        return asker.refuse(format!("node {node:?} can only create pods with spec.nodeName set to itself"));
    }
    let owners = pod["metadata"]["ownerReferences"].as_array().map(Vec::as_slice).unwrap_or_default();
    let owner = match owners {
        [one] if one["apiVersion"] == "v1" && one["kind"] == "Node" && one["name"] == node => one,
        [_, _, ..] => {
            return asker
                .refuse(format!("node {node:?} can only create pods with a single owner reference set to itself"));
        }
        _ => return asker.refuse(format!("node {node:?} can only create pods with an owner reference set to itself")),
    };
    if owner["controller"] != true {
        let why = format!("node {node:?} can only create pods with a controller owner reference set to itself");
        return asker.refuse(why);
    }
    if owner["blockOwnerDeletion"] == true {
        return asker.refuse(format!("node {node:?} must not set blockOwnerDeletion on an owner reference"));
    }
    let uid = uid(asker, "nodes", "", node).await?;
    if owner["uid"] != uid.as_str() {
        let given = owner["uid"].as_str().unwrap_or_default();
        return asker.refuse(format!("node {node} UID mismatch: expected {given} got {uid}"));
    }
    match references(&pod["spec"]) {
        Some(what) => asker.refuse(format!("node {node:?} can not create pods that reference {what}")),
        None => Ok(()),
    }
}

/// What a pod's spec refers to in the API, in the words of the refusal. A mirror pod refers to nothing: else a kubelet would get
/// to read whatever it names in one.
fn references(spec: &Value) -> Option<&'static str> {
    let has = |field: &str| spec[field].as_str().is_some_and(|s| !s.is_empty());
    if has("serviceAccountName") {
        return Some("serviceaccounts");
    }
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let containers: Vec<Value> =
        ["containers", "initContainers", "ephemeralContainers"].iter().flat_map(|f| list(&spec[*f])).collect();
    let from = |source: &str, key: &str| {
        containers.iter().any(|c| {
            list(&c["envFrom"]).iter().any(|e| e[source].is_object())
                || list(&c["env"]).iter().any(|e| e["valueFrom"][key].is_object())
        })
    };
    if !list(&spec["imagePullSecrets"]).is_empty() || from("secretRef", "secretKeyRef") {
        return Some("secrets");
    }
    if from("configMapRef", "configMapKeyRef") {
        return Some("configmaps");
    }
    if !list(&spec["resourceClaims"]).is_empty() {
        return Some("resourceclaims");
    }
    list(&spec["volumes"]).iter().find_map(volume_references)
}

fn volume_references(volume: &Value) -> Option<&'static str> {
    const SOURCES: [(&str, &str); 12] = [
        ("configMap", "configmaps (via configmap volumes)"),
        ("secret", "secrets (via secret volumes)"),
        ("csi", "csidrivers (via CSI volumes)"),
        ("glusterfs", "endpoints (via glusterFS volumes)"),
        ("persistentVolumeClaim", "persistentvolumeclaims"),
        ("ephemeral", "persistentvolumeclaims (via ephemeral volumes)"),
        ("azureFile", "secrets (via azureFile volumes)"),
        ("cephfs", "secrets"),
        ("flexVolume", "secrets"),
        ("iscsi", "secrets"),
        ("rbd", "secrets"),
        ("scaleIO", "secrets"),
    ];
    const PROJECTED: [(&str, &str); 5] = [
        ("configMap", "configmaps (via projected volumes)"),
        ("secret", "secrets (via projected volumes)"),
        ("serviceAccountToken", "serviceaccounts (via projected volumes)"),
        ("clusterTrustBundle", "clustertrustbundles"),
        ("podCertificate", "podcertificates"),
    ];
    // Of these, only a named secret is a reference.
    let secret_ref = |source: &str| !matches!(source, "cephfs" | "flexVolume" | "iscsi" | "rbd" | "scaleIO");
    let named = |source: &str| secret_ref(source) || volume[source]["secretRef"].is_object();
    let direct = SOURCES.iter().find(|(s, _)| volume[*s].is_object() && named(s));
    let projected = volume["projected"]["sources"].as_array().into_iter().flatten();
    direct
        .or_else(|| projected.into_iter().find_map(|p| PROJECTED.iter().find(|(s, _)| p[*s].is_object())))
        .map(|(_, words)| *words)
}

pub fn status(asker: &Asker) -> Result<(), Status> {
    let (node, new, old) = (asker.node, asker.written(), asker.old());
    if asker.request.operation != Operation::Update {
        return Ok(());
    }
    if old["spec"]["nodeName"] != node {
        return asker
            .refuse(format!("node {node:?} can only update pod status for pods with spec.nodeName set to itself"));
    }
    if new["metadata"]["labels"] != old["metadata"]["labels"] {
        return asker.refuse(format!("node {node:?} cannot update labels through pod status"));
    }
    for (field, words) in [
        ("resourceClaimStatuses", "resource claim statues"),
        ("extendedResourceClaimStatus", "extended resource claim status"),
        ("nodeAllocatableResourceClaimStatuses", "node allocatable resource claim statuses"),
    ] {
        if new["status"][field] != old["status"][field] {
            return asker.refuse(format!("node {node:?} cannot update {words}"));
        }
    }
    Ok(())
}

/// A token is for a pod that runs on the node, and for an audience that the pod names or that the node is allowed.
pub async fn token(asker: &Asker<'_>) -> Result<(), Status> {
    let spec = &asker.written()["spec"];
    let bound = &spec["boundObjectRef"];
    let name = bound["name"].as_str().unwrap_or_default();
    if bound["apiVersion"] != "v1" || bound["kind"] != "Pod" || name.is_empty() {
        return asker.refuse("node requested token not bound to a pod".into());
    }
    let uid = bound["uid"].as_str().unwrap_or_default();
    if uid.is_empty() {
        return asker.refuse("node requested token with a pod binding without a uid".into());
    }
    let pod = read(asker, "pods", &asker.request.intent.namespace, name).await?;
    if pod["metadata"]["uid"] != uid {
        return asker.refuse(format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        ));
    }
    if pod["spec"]["nodeName"] != asker.node {
        return asker.refuse("node requested token bound to a pod scheduled on a different node".into());
    }
    let audiences = spec["audiences"].as_array().map(Vec::as_slice).unwrap_or_default();
    let audience = match audiences {
        [] => "",
        [one] => one.as_str().unwrap_or_default(),
        _ => return asker.refuse("node may only request 0 or 1 audiences".into()),
    };
    let account = asker.request.intent.name.as_str();
    if names_audience(&pod, audience)
        || driver_has_audience(asker, &pod, audience).await?
        || allowed(asker, "request-serviceaccounts-token-audience", audience, account).await
    {
        return Ok(());
    }
    let user = &asker.request.intent.user.name;
    asker.refuse(format!("{user} is not authorized to request tokens for audience {audience:?}"))
}

fn names_audience(pod: &Value, audience: &str) -> bool {
    sources(pod).any(|s| {
        let token = &s["serviceAccountToken"];
        token.is_object() && token["audience"].as_str().unwrap_or_default() == audience
    })
}

/// The sources of a pod's projected volumes.
fn sources(pod: &Value) -> impl Iterator<Item = &Value> {
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    volumes.flat_map(|v| v["projected"]["sources"].as_array().into_iter().flatten())
}

/// Whether a CSI driver whose volumes the pod mounts asks for tokens of that audience.
async fn driver_has_audience(asker: &Asker<'_>, pod: &Value, audience: &str) -> Result<bool, Status> {
    for volume in pod["spec"]["volumes"].as_array().into_iter().flatten() {
        let driver = match volume["csi"]["driver"].as_str() {
            Some(driver) => Some(driver.to_owned()),
            None => claimed_driver(asker, pod, volume).await?,
        };
        let Some(driver) = driver else { continue };
        let Some(driver) = asker.request.read("storage.k8s.io", "csidrivers", "", &driver).await? else {
            continue;
        };
        let requests = driver["spec"]["tokenRequests"].as_array().into_iter().flatten();
        if requests.into_iter().any(|r| r["audience"].as_str().unwrap_or_default() == audience) {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn claimed_driver(asker: &Asker<'_>, pod: &Value, volume: &Value) -> Result<Option<String>, Status> {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let claim = match volume["persistentVolumeClaim"]["claimName"].as_str() {
        Some(name) => name.to_owned(),
        None if volume["ephemeral"].is_object() => {
            format!("{}-{}", text(&pod["metadata"]["name"]), text(&volume["name"]))
        }
        None => return Ok(None),
    };
    let server = asker.request.server;
    let claim = server.read("", "persistentvolumeclaims", &asker.request.intent.namespace, &claim).await?;
    let Some(volume) = claim.and_then(|c| c["spec"]["volumeName"].as_str().map(str::to_owned)) else { return Ok(None) };
    let volume = server.read("", "persistentvolumes", "", &volume).await?;
    Ok(volume.and_then(|v| v["spec"]["csi"]["driver"].as_str().map(str::to_owned)))
}

/// A certificate is for a pod that runs on the node and mounts one of that signer.
pub async fn certificate(asker: &Asker<'_>) -> Result<(), Status> {
    if asker.request.operation != Operation::Create {
        return asker.refuse(format!("unexpected operation {:?}", asker.request.operation));
    }
    let (node, spec) = (asker.node, &asker.written()["spec"]);
    let text = |key: &str| spec[key].as_str().unwrap_or_default();
    let namespace = &asker.request.intent.namespace;
    let pod_name = format!("{namespace}/{}", text("podName"));
    if text("nodeName") != node {
        let given = text("nodeName");
        return asker.refuse(format!(
            "PodCertificateRequest.Spec.NodeName={given:?}, which is not the requesting node {node:?}"
        ));
    }
    let pod = read(asker, "pods", namespace, text("podName")).await?;
    let running = |key: &str| pod["spec"][key].as_str().unwrap_or_default();
    for (field, resource, space, name) in [
        ("nodeUID", "nodes", "", node),
        ("podUID", "pods", namespace, text("podName")),
        ("serviceAccountUID", "serviceaccounts", namespace, running("serviceAccountName")),
    ] {
        let actual = uid(asker, resource, space, name).await?;
        if text(field) != actual {
            let given = text(field);
            let why = format!(
                "PodCertificateRequest for pod {pod_name:?}: {field} is {given:?}, that of {name:?} is {actual:?}"
            );
            return Err(Status::internal(why));
        }
    }
    if running("nodeName") != node {
        let why = format!("pod {pod_name:?} is not running on node {node:?} named in the PodCertificateRequest");
        return asker.refuse(why);
    }
    if !pod["metadata"]["annotations"][MIRROR].is_null() {
        return asker.refuse(format!("pod {pod_name:?} is a mirror pod"));
    }
    let (account, signer) = (text("serviceAccountName"), text("signerName"));
    if account != running("serviceAccountName") {
        let actual = running("serviceAccountName");
        return asker.refuse(format!(
            "PodCertificateRequest for pod {pod_name:?} contains serviceAccountName ({account:?}) that differs from running pod ({actual:?})"
        ));
    }
    // A name with slashes is no name of a resource to RBAC.
    let munged = signer.replace('/', ":");
    if sources(&pod).any(|s| s["podCertificate"]["signerName"] == signer)
        || allowed(asker, "request-serviceaccounts-podcertificate-signer", &munged, account).await
    {
        return Ok(());
    }
    asker.refuse(format!("pod {pod_name:?} does not mount a podCertificate projected volume for signer {signer:?}"))
}

/// Whether the node may do that with the service account.
async fn allowed(asker: &Asker<'_>, verb: &str, resource: &str, account: &str) -> bool {
    let gvr = asker.request.intent.kind.gvr();
    let attributes = Attributes {
        user: asker.request.intent.user.clone(),
        verb: verb.into(),
        is_resource: true,
        group: gvr.group,
        version: gvr.version,
        resource: resource.into(),
        namespace: asker.request.intent.namespace.clone(),
        name: account.into(),
        ..Attributes::default()
    };
    chain::check(asker.request.server, &attributes).await.is_ok()
}

/// A core object that must exist.
async fn read(asker: &Asker<'_>, resource: &str, namespace: &str, name: &str) -> Result<Arc<Value>, Status> {
    let object = asker.request.read("", resource, namespace, name).await?;
    object.ok_or_else(|| Status::not_found(&Gvr::new("", "v1", resource), name))
}

async fn uid(asker: &Asker<'_>, resource: &str, namespace: &str, name: &str) -> Result<String, Status> {
    let object = read(asker, resource, namespace, name).await?;
    Ok(object["metadata"]["uid"].as_str().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn references_are_found_wherever_a_spec_may_hold_them() {
        let cases = [
            (json!({"containers": [{"name": "a"}], "volumes": [{"hostPath": {}}, {"iscsi": {}}]}), None),
            (json!({"serviceAccountName": "default"}), Some("serviceaccounts")),
            (json!({"imagePullSecrets": [{"name": "s"}]}), Some("secrets")),
            (json!({"initContainers": [{"envFrom": [{"secretRef": {"name": "s"}}]}]}), Some("secrets")),
            (json!({"containers": [{"env": [{"valueFrom": {"configMapKeyRef": {}}}]}]}), Some("configmaps")),
            (json!({"volumes": [{"iscsi": {"secretRef": {"name": "s"}}}]}), Some("secrets")),
            (
                json!({"volumes": [{"projected": {"sources": [{"downwardAPI": {}}, {"podCertificate": {}}]}}]}),
                Some("podcertificates"),
            ),
            (json!({"volumes": [{"persistentVolumeClaim": {}}]}), Some("persistentvolumeclaims")),
        ];
        for (spec, wanted) in cases {
            assert_eq!(references(&spec), wanted, "{spec}");
        }
    }
}
