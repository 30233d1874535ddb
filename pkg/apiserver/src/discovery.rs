//! Discovery in both forms: the old one (a document a group version) and the aggregated one (KEP-3352), from the registry and
//! from what servers elsewhere say of themselves.

use crate::ApiServer;
use crate::aggregation::Table;
use crate::aggregation::groups::{Document, Group, Source, Version, groups};
use crate::encode::negotiate::{self, Form, Media, OBJECTS};
use crate::encode::{self, body};
use crate::health;
use crate::nonresource;
use crate::registry::Registry;
use crate::request::Query;
use crate::zpages;
use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, HeaderValue, header};
use isopod_api::{Gvk, Status};
use isopod_kinds::Kind;
use serde_json::{Value, json};
use sha2::{Digest, Sha512};
use std::collections::BTreeMap;
use std::sync::Arc;

/// `reads`: the method is GET or HEAD. The list of groups does not look at the method, and what is not there is not found by any.
pub fn serve(
    server: &ApiServer,
    path: &str,
    reads: bool,
    headers: &HeaderMap,
    query: &Query,
) -> Result<Response, Status> {
    let registry = server.registry.load();
    let table = server.aggregation.table.load();
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    if let Some(version) = aggregated(headers).filter(|_| parts.len() == 1) {
        return Ok(aggregate(&registry, &table, parts[0] == "api", version, headers));
    }
    let known = registry.groups();
    let document = match parts[..] {
        ["api"] => core_versions(server),
        ["apis"] => group_list(&registry, &table),
        ["api", version] => resources(&registry, "", version)?,
        ["apis", group] => match group_document(&registry, &table, group) {
            Some(document) => document,
            None => return Ok(nonresource::not_found()),
        },
        ["apis", group, _] if !known.contains_key(group) => return Ok(nonresource::not_found()),
        ["apis", group, version] => resources(&registry, group, version)?,
        _ => return Err(Status::no_such_path()),
    };
    if !reads && parts[..] != ["apis"] {
        return Err(crate::verbs::not_allowed());
    }
    let routed = match parts[..] {
        ["apis", group, version] => is_builtin(&known, group, version),
        _ => parts[0] == "api",
    };
    if routed {
        negotiate::acceptable(headers, &OBJECTS)?;
    }
    let form = negotiate::form(headers, query, false)?;
    Ok(body::response(200, &form, encode::value(&document, &form)))
}

/// Whether upstream has a route of its own for the version's document: those of custom resources come and go.
fn is_builtin(known: &BTreeMap<&str, Vec<(&str, Vec<&Arc<Kind>>)>>, group: &str, version: &str) -> bool {
    let mut kinds = known.get(group).into_iter().flatten().filter(|(v, _)| *v == version).flat_map(|(_, kinds)| kinds);
    kinds.any(|kind| !kind.schema.custom)
}

/// The root's list of paths.
pub fn paths(server: &ApiServer) -> Vec<String> {
    let registry = server.registry.load();
    let mut all: Vec<String> =
        ["/.well-known/openid-configuration", "/api", "/api/v1", "/apis", "/apis/"].map(str::to_owned).to_vec();
    let table = server.aggregation.table.load();
    for Group { name, versions } in groups(&registry, &table, Document::List) {
        if !name.is_empty() {
            all.push(format!("/apis/{name}"));
            all.extend(versions.iter().map(|v| format!("/apis/{name}/{}", v.name)));
        }
    }
    all.extend(health::paths(server));
    all.extend(
        [
            "/metrics",
            "/metrics/slis",
            "/openapi/v2",
            "/openapi/v3",
            "/openapi/v3/",
            "/openid/v1/jwks",
            "/statusz",
            "/version",
        ]
        .map(str::to_owned),
    );
    all.extend(server.config.flags.is_some().then(|| zpages::FLAGZ.to_owned()));
    all.sort();
    all
}

fn core_versions(server: &ApiServer) -> Value {
    let address = format!("{}:{}", server.config.advertise_address, server.config.port);
    json!({"kind": "APIVersions", "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}]})
}

fn group(group: &Group) -> Value {
    let version = |v: &Version| json!({"groupVersion": format!("{}/{}", group.name, v.name), "version": v.name});
    let all: Vec<Value> = group.versions.iter().map(version).collect();
    json!({"name": group.name, "versions": all, "preferredVersion": all.first()})
}

fn group_list(registry: &Registry, table: &Table) -> Value {
    let all = groups(registry, table, Document::List);
    let groups: Vec<Value> = all.iter().filter(|g| !g.name.is_empty()).map(group).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

fn group_document(registry: &Registry, table: &Table, name: &str) -> Option<Value> {
    let all = groups(registry, table, Document::List);
    let mut document = group(all.iter().find(|g| g.name == name && !name.is_empty())?);
    document["kind"] = "APIGroup".into();
    document["apiVersion"] = "v1".into();
    Some(document)
}

fn resources(registry: &Registry, group: &str, version: &str) -> Result<Value, Status> {
    let groups = registry.groups();
    let kinds = groups.get(group).and_then(|vs| vs.iter().find(|(v, _)| *v == version)).map(|(_, kinds)| kinds);
    let kinds = kinds.ok_or_else(Status::no_such_path)?;
    let mut list = Vec::new();
    for kind in kinds {
        let mut resource = json!({"name": kind.resource, "singularName": kind.singular, "namespaced": kind.namespaced,
            "kind": kind.gvk.kind, "verbs": verbs(kind)});
        if !kind.short_names.is_empty() {
            resource["shortNames"] = json!(kind.short_names);
        }
        if !kind.categories.is_empty() {
            resource["categories"] = json!(kind.categories);
        }
        // Component statuses are asked for, not stored.
        if kind.verbs.iter().any(|v| v == "watch") {
            resource["storageVersionHash"] = storage_hash(kind).into();
        }
        list.push(resource);
        for sub in &kind.subresources {
            let gvk = sub.gvk.as_ref().unwrap_or(&kind.gvk);
            let name = format!("{}/{}", kind.resource, sub.name);
            let mut resource = json!({"name": name, "singularName": "", "namespaced": kind.namespaced, "kind": gvk.kind,
                "verbs": sub.verbs});
            if gvk.group_version() != kind.gvk.group_version() {
                resource["group"] = gvk.group.clone().into();
                resource["version"] = gvk.version.clone().into();
            }
            list.push(resource);
        }
    }
    list.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
    let gv = isopod_api::GroupVersion::new(group, version).to_string();
    let mut document = json!({"kind": "APIResourceList", "groupVersion": gv, "resources": list});
    if !group.is_empty() {
        document["apiVersion"] = "v1".into();
    }
    Ok(document)
}

/// The kinds that upstream v1.37 stores in an older version than it serves, so that the release before can read them. Clients know
/// the version by its hash alone.
const UPSTREAM_STORES: [(&str, &str); 5] = [
    ("CustomResourceDefinition", "v1beta1"),
    ("ClusterTrustBundle", "v1beta1"),
    ("PodCertificateRequest", "v1beta1"),
    ("DeviceTaintRule", "v1beta2"),
    ("StorageVersionMigration", "v1beta1"),
];

/// Tells clients when the stored version of a resource has changed.
fn storage_hash(kind: &Kind) -> String {
    use base64::Engine;
    let gvk = &kind.storage.gvk;
    let older = UPSTREAM_STORES.iter().find(|(kind, _)| *kind == gvk.kind).map(|(_, version)| *version);
    let version = older.unwrap_or(&gvk.version);
    let digest = sha2::Sha256::digest(format!("{}/{version}/{}", gvk.group, gvk.kind));
    base64::engine::general_purpose::STANDARD.encode(&digest[..8])
}

/// The version of aggregated discovery that the client takes.
fn aggregated(headers: &HeaderMap) -> Option<&'static str> {
    let accept = headers.get(header::ACCEPT)?.to_str().ok()?;
    accept.split(',').find_map(|clause| {
        let has = |p: &str| clause.split(';').any(|part| part.trim() == p);
        let ours = has("as=APIGroupDiscoveryList") && has("g=apidiscovery.k8s.io");
        let known = clause.trim().starts_with(negotiate::JSON) || clause.trim().starts_with(negotiate::PROTOBUF);
        if !ours || !known {
            return None;
        }
        // v2beta1 went in 1.35's time: clients that know only that get the old form.
        has("v=v2").then_some("v2")
    })
}

fn aggregate(registry: &Registry, table: &Table, core: bool, version: &'static str, headers: &HeaderMap) -> Response {
    let groups = groups(registry, table, Document::Aggregated);
    let items: Vec<Value> = groups.iter().filter(|g| g.name.is_empty() == core).filter_map(aggregate_group).collect();
    let api_version = format!("apidiscovery.k8s.io/{version}");
    let document = json!({"kind": "APIGroupDiscoveryList", "apiVersion": api_version, "metadata": {}, "items": items});
    let json_first = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).is_none_or(|accept| {
        let first = |media: &str| accept.find(&format!("{media};")).unwrap_or(usize::MAX);
        first(negotiate::JSON) <= first(negotiate::PROTOBUF)
    });
    let media = if json_first { Media::Json } else { Media::Protobuf };
    let form = Form { media, ..Default::default() };
    let bytes = encode::value(&document, &form);
    let etag = format!("\"{}\"", hex::encode_upper(Sha512::digest(&bytes)));
    let matches = headers.get(header::IF_NONE_MATCH).and_then(|v| v.to_str().ok()) == Some(etag.as_str());
    let mut response = if matches {
        let mut unchanged = Response::new(Body::empty());
        *unchanged.status_mut() = http::StatusCode::NOT_MODIFIED;
        unchanged
    } else {
        body::response(200, &form, bytes)
    };
    let content_type = format!("{};g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList", media.name());
    let headers = response.headers_mut();
    for (name, value) in [(header::CONTENT_TYPE, content_type), (header::ETAG, etag)] {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    }
    headers.insert(header::VARY, HeaderValue::from_static("Accept"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public"));
    response
}

/// `None`: nobody serves any version of it.
fn aggregate_group(group: &Group) -> Option<Value> {
    let entry = |v: &Version| match &v.source {
        Source::Here(kinds) => {
            let resources: Vec<Value> = kinds.iter().map(|k| aggregate_resource(k)).collect();
            Some(json!({"version": v.name, "resources": resources, "freshness": "Current"}))
        }
        Source::Elsewhere(service) => service.discovery(),
        Source::Nobody => None,
    };
    let versions: Vec<Value> = group.versions.iter().filter_map(entry).collect();
    let metadata = if group.name.is_empty() { json!({}) } else { json!({"name": group.name}) };
    (!versions.is_empty()).then(|| json!({"metadata": metadata, "versions": versions}))
}

fn aggregate_resource(kind: &Kind) -> Value {
    let gvk = &kind.gvk;
    let mut resource = json!({
        "resource": kind.resource,
        "responseKind": response_kind(gvk, kind),
        "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": kind.singular, "verbs": verbs(kind),
    });
    if !kind.short_names.is_empty() {
        resource["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        resource["categories"] = json!(kind.categories);
    }
    let subresources: Vec<Value> = kind
        .subresources
        .iter()
        .map(|s| {
            let shown = response_kind(s.gvk.as_ref().unwrap_or(gvk), kind);
            json!({"subresource": s.name, "verbs": s.verbs, "responseKind": shown})
        })
        .collect();
    if !subresources.is_empty() {
        resource["subresources"] = subresources.into();
    }
    resource
}

/// The verbs of a kind; one that is about to go is not written any more.
fn verbs(kind: &Kind) -> Vec<&String> {
    let ends = kind.hooks.is_terminating();
    kind.verbs.iter().filter(|v| !(ends && matches!(v.as_str(), "create" | "update" | "patch"))).collect()
}

/// Group and version stand here only where they are not the resource's own, but of custom resources always.
fn response_kind(gvk: &Gvk, of: &Kind) -> Value {
    let same = gvk.group_version() == of.gvk.group_version() && !of.schema.custom;
    let (group, version) = if same { ("", "") } else { (gvk.group.as_str(), gvk.version.as_str()) };
    json!({"group": group, "version": version, "kind": gvk.kind})
}
