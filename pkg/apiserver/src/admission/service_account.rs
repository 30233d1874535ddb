//! `ServiceAccount`: every pod runs as a service account of its namespace and has that account's token, the cluster's CA and
//! its namespace mounted, in one projected volume.

use super::{Operation, Plugin, Request};
use async_trait::async_trait;
use isopod_api::Status;
use serde_json::{Value, json};

const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const MIRROR: &str = "kubernetes.io/config.mirror";
/// The kubelet renews the token long before; the odd number tells these tokens from others, as upstream's.
const EXPIRATION: i64 = 3607;

pub struct ServiceAccount;

#[async_trait]
impl Plugin for ServiceAccount {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    async fn mutate(&self, request: &Request<'_>, new: &mut Value) -> Result<(), Status> {
        if !request.is("pods") || request.operation != Operation::Create {
            return Ok(());
        }
        if new["metadata"]["annotations"][MIRROR].is_string() {
            return refuse_secrets_of_mirror_pod(request, new);
        }
        let named =
            new["spec"]["serviceAccountName"].as_str().filter(|s| !s.is_empty()).unwrap_or("default").to_owned();
        new["spec"]["serviceAccountName"] = named.clone().into();
        let namespace = &request.intent.namespace;
        let account = request.read("", "serviceaccounts", namespace, &named).await?;
        let Some(account) = account else {
            let why =
                format!("error looking up service account {namespace}/{named}: serviceaccount {named:?} not found");
            return Err(request.forbidden(Some(new), why));
        };
        let wanted = new["spec"]["automountServiceAccountToken"]
            .as_bool()
            .or(account["automountServiceAccountToken"].as_bool())
            .unwrap_or(true);
        if wanted {
            mount(new);
        }
        let has_secrets = new["spec"]["imagePullSecrets"].as_array().is_some_and(|l| !l.is_empty());
        if let (false, Some(secrets)) = (has_secrets, account["imagePullSecrets"].as_array().filter(|l| !l.is_empty()))
        {
            new["spec"]["imagePullSecrets"] = secrets.clone().into();
        }
        Ok(())
    }
}

/// The mirror of a static pod cannot have what only the API server gives.
fn refuse_secrets_of_mirror_pod(request: &Request<'_>, new: &Value) -> Result<(), Status> {
    if new["spec"]["serviceAccountName"].as_str().is_some_and(|s| !s.is_empty()) {
        return Err(request.forbidden(Some(new), "a mirror pod may not reference service accounts"));
    }
    let volumes = new["spec"]["volumes"].as_array();
    if volumes.into_iter().flatten().any(|v| v["secret"].is_object()) {
        return Err(request.forbidden(Some(new), "a mirror pod may not reference secrets"));
    }
    let projected =
        volumes.into_iter().flatten().flat_map(|v| v["projected"]["sources"].as_array().into_iter().flatten());
    if projected.into_iter().any(|s| s["serviceAccountToken"].is_object()) {
        let why = "a mirror pod may not use ServiceAccountToken volume projections";
        return Err(request.forbidden(Some(new), why));
    }
    Ok(())
}

/// Adds the volume and mounts it wherever nothing else is mounted at its path.
fn mount(pod: &mut Value) {
    let existing = pod["spec"]["volumes"].as_array().into_iter().flatten();
    let existing =
        existing.filter_map(|v| v["name"].as_str()).find(|n| n.starts_with("kube-api-access-")).map(str::to_owned);
    let name = existing.clone().unwrap_or_else(|| crate::metadata::generate("kube-api-access-"));
    let mut used = false;
    for list in ["initContainers", "containers"] {
        let Some(containers) = pod["spec"][list].as_array_mut() else { continue };
        for container in containers {
            let mounts = container["volumeMounts"].as_array().cloned().unwrap_or_default();
            if mounts.iter().any(|m| m["mountPath"] == MOUNT_PATH) {
                continue;
            }
            let mut mounts = mounts;
            mounts.push(json!({"name": name, "readOnly": true, "mountPath": MOUNT_PATH}));
            container["volumeMounts"] = mounts.into();
            used = true;
        }
    }
    if used && existing.is_none() {
        let mut volumes = pod["spec"]["volumes"].as_array().cloned().unwrap_or_default();
        volumes.push(volume(&name));
        pod["spec"]["volumes"] = volumes.into();
    }
}

fn volume(name: &str) -> Value {
    json!({"name": name, "projected": {"defaultMode": 420, "sources": [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": EXPIRATION}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
    ]}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_mounted_once_a_container() {
        let mut pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b", "volumeMounts": [
            {"name": "mine", "mountPath": MOUNT_PATH}]}], "initContainers": [{"name": "i"}]}});
        mount(&mut pod);
        assert_eq!(pod["spec"]["volumes"].as_array().unwrap().len(), 1);
        assert_eq!(pod["spec"]["containers"][0]["volumeMounts"][0]["name"], pod["spec"]["volumes"][0]["name"]);
        assert_eq!(pod["spec"]["containers"][1]["volumeMounts"].as_array().unwrap().len(), 1);
        assert_eq!(pod["spec"]["initContainers"][0]["volumeMounts"][0]["mountPath"], MOUNT_PATH);
    }
}
