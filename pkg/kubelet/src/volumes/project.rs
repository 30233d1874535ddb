//! The files of configMap, secret, downwardAPI and projected volumes.

use super::atomic::{File, Payload};
use super::{SetUp, VolumeError, certificate, trust_bundle};
use crate::downward;
use crate::pod::PodExt;
use k8s_openapi::api::core::v1::{
    ConfigMap, ConfigMapVolumeSource, DownwardAPIVolumeFile, DownwardAPIVolumeSource, KeyToPath, Pod,
    ProjectedVolumeSource, Secret, SecretVolumeSource,
};
use std::collections::BTreeMap;

const DEFAULT_MODE: i32 = 0o644;

fn file(data: impl Into<Vec<u8>>, mode: i32) -> File {
    File { data: data.into(), mode: (mode & 0o777) as u32, uid: None }
}

/// The keys that `items` choose, or all.
fn pick(
    data: &BTreeMap<String, Vec<u8>>,
    items: Option<&Vec<KeyToPath>>,
    mode: i32,
    optional: bool,
    missing: fn(String) -> VolumeError,
) -> Result<Payload, VolumeError> {
    let mut out = Payload::new();
    match items.filter(|i| !i.is_empty()) {
        None => out.extend(data.iter().map(|(k, v)| (k.into(), file(v.clone(), mode)))),
        Some(items) => {
            for item in items {
                match data.get(&item.key) {
                    Some(v) => {
                        out.insert(item.path.clone().into(), file(v.clone(), item.mode.unwrap_or(mode)));
                    }
                    None if optional => {}
                    None => return Err(missing(item.key.clone())),
                }
            }
        }
    }
    Ok(out)
}

fn map_data(m: &ConfigMap) -> BTreeMap<String, Vec<u8>> {
    let text = m.data.iter().flatten().map(|(k, v)| (k.clone(), v.clone().into_bytes()));
    text.chain(m.binary_data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone()))).collect()
}

fn secret_data(s: &Secret) -> BTreeMap<String, Vec<u8>> {
    s.data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone())).collect()
}

async fn from_config_map(
    name: &str,
    items: Option<&Vec<KeyToPath>>,
    mode: i32,
    optional: bool,
    cx: &mut SetUp<'_>,
) -> Result<Payload, VolumeError> {
    let found = cx.objects.config_map(name).await;
    let found = found.map_err(|source| VolumeError::Api { what: format!("configmap {name:?}"), source })?;
    match found {
        Some(m) => pick(&map_data(&m), items, mode, optional, VolumeError::NoConfigKey),
        None if optional => Ok(Payload::new()),
        None => Err(VolumeError::NoConfigMap(name.to_owned())),
    }
}

async fn from_secret(
    name: &str,
    items: Option<&Vec<KeyToPath>>,
    mode: i32,
    optional: bool,
    cx: &mut SetUp<'_>,
) -> Result<Payload, VolumeError> {
    let found = cx.objects.secret(name).await;
    let found = found.map_err(|source| VolumeError::Api { what: format!("secret {name:?}"), source })?;
    match found {
        Some(s) => pick(&secret_data(&s), items, mode, optional, VolumeError::NoSecretKey),
        None if optional => Ok(Payload::new()),
        None => Err(VolumeError::NoSecret(name.to_owned())),
    }
}

pub async fn config_map(source: &ConfigMapVolumeSource, cx: &mut SetUp<'_>) -> Result<Payload, VolumeError> {
    let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
    from_config_map(&source.name, source.items.as_ref(), mode, source.optional == Some(true), cx).await
}

pub async fn secret(source: &SecretVolumeSource, cx: &mut SetUp<'_>) -> Result<Payload, VolumeError> {
    let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
    let name = source.secret_name.as_deref().unwrap_or_default();
    from_secret(name, source.items.as_ref(), mode, source.optional == Some(true), cx).await
}

fn downward_files(
    pod: &Pod,
    items: &[DownwardAPIVolumeFile],
    mode: i32,
    cx: &SetUp<'_>,
) -> Result<Payload, VolumeError> {
    let mut out = Payload::new();
    for item in items {
        let text = if let Some(f) = &item.field_ref {
            downward::field(pod, &f.field_path, &cx.addresses)?
        } else if let Some(r) = &item.resource_field_ref {
            downward::resource(pod, None, r, cx.node)?
        } else {
            continue;
        };
        out.insert(item.path.clone().into(), file(text, item.mode.unwrap_or(mode)));
    }
    Ok(out)
}

pub fn downward(pod: &Pod, source: &DownwardAPIVolumeSource, cx: &SetUp<'_>) -> Result<Payload, VolumeError> {
    let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
    downward_files(pod, source.items.as_deref().unwrap_or_default(), mode, cx)
}

pub async fn projected(
    pod: &Pod,
    volume: &str,
    source: &ProjectedVolumeSource,
    cx: &mut SetUp<'_>,
) -> Result<Payload, VolumeError> {
    let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
    let mut out = Payload::new();
    for (index, part) in source.sources.iter().flatten().enumerate() {
        if let Some(m) = &part.config_map {
            out.extend(from_config_map(&m.name, m.items.as_ref(), mode, m.optional == Some(true), cx).await?);
        } else if let Some(s) = &part.secret {
            out.extend(from_secret(&s.name, s.items.as_ref(), mode, s.optional == Some(true), cx).await?);
        } else if let Some(d) = &part.downward_api {
            out.extend(downward_files(pod, d.items.as_deref().unwrap_or_default(), mode, cx)?);
        } else if let Some(t) = &part.service_account_token {
            let token = cx.tokens.get(pod, t, cx.now).await.map_err(VolumeError::Token)?;
            out.insert(t.path.clone().into(), private_file(pod, token, mode));
        } else if let Some(b) = &part.cluster_trust_bundle {
            let anchors = trust_bundle::anchors(b, cx.objects).await?;
            out.insert(b.path.clone().into(), private_file(pod, anchors, mode));
        } else if let Some(c) = &part.pod_certificate {
            let for_whom = certificate::Place { volume, index, node_uid: &cx.node_uid };
            let credential = cx.certificates.get(pod, &for_whom, c, cx.objects, cx.now).await?;
            let mut add = |path: &Option<String>, text: String| {
                if let Some(path) = path.as_ref().filter(|p| !p.is_empty()) {
                    out.insert(path.clone().into(), private_file(pod, text, mode));
                }
            };
            add(&c.credential_bundle_path, format!("{}{}", credential.key, credential.chain));
            add(&c.key_path, credential.key);
            add(&c.certificate_chain_path, credential.chain);
        } else {
            return Err(VolumeError::Unsupported);
        }
    }
    Ok(out)
}

/// Tokens, keys and anchors are for the pod's user or group only, where it has one (upstream's projected plugin).
fn private_file(pod: &Pod, text: String, mode: i32) -> File {
    let spec = pod.spec();
    let group = spec.security_context.as_ref().and_then(|s| s.fs_group);
    let pod_user = spec.security_context.as_ref().and_then(|s| s.run_as_user);
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let mut users = containers.map(|c| c.security_context.as_ref().and_then(|s| s.run_as_user).or(pod_user));
    let first = users.next().flatten();
    let common = first.filter(|u| users.all(|v| v == Some(*u))).and_then(|u| u32::try_from(u).ok());
    let mode = if group.is_some() || common.is_some() { 0o600 } else { mode };
    File { uid: common.filter(|_| group.is_none()), ..file(text, mode) }
}
