//! Which resources the server has, from its discovery documents.

use crate::calls::{call, call_as};
use crate::{Error, Resource, decode};
use http::Method;
use isopod_api::GroupVersion;
use kube::Client;
use serde::Deserialize;
use serde_json::Value;

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json;q=0.9";

/// One resource in one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovered {
    pub resource: Resource,
    /// `deployment`
    pub singular: String,
    pub kind: String,
    pub verbs: Vec<String>,
}

impl Discovered {
    pub fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }
}

/// Every resource, each in the version that its group prefers. Subresources are left out, and so is what its server does not tell at the moment.
pub async fn preferred(client: &Client) -> Result<Vec<Discovered>, Error> {
    Ok(discover(client).await?.0)
}

/// As [`preferred`], with the group versions of which nobody knows what is in them: their servers do not answer.
pub async fn discover(client: &Client) -> Result<(Vec<Discovered>, Vec<String>), Error> {
    let (all, stale) = every_version(client).await?;
    let mut found: Vec<Discovered> = Vec::new();
    for d in all {
        let known = |f: &Discovered| {
            f.resource.gvr.group == d.resource.gvr.group && f.resource.gvr.resource == d.resource.gvr.resource
        };
        // A group's versions come in its order of preference.
        if !found.iter().any(known) {
            found.push(d);
        }
    }
    Ok((found, stale))
}

/// Every resource in every version, as far as [`discover`] knows of it.
pub async fn every_version(client: &Client) -> Result<(Vec<Discovered>, Vec<String>), Error> {
    let (mut found, mut stale): (Vec<Discovered>, Vec<String>) = Default::default();
    for path in ["/api", "/apis"] {
        let document: Value = call_as(client, Method::GET, path, AGGREGATED, None).await?;
        if document["kind"] == "APIGroupDiscoveryList" {
            let (all, silent) = aggregated(document, path)?;
            found.extend(all);
            stale.extend(silent);
        } else {
            found.extend(each(client, &document).await?);
        }
    }
    Ok((found, stale))
}

/// The OpenAPI document, version 3, of a group version. `None`: it has none.
pub async fn openapi(client: &Client, group_version: &GroupVersion) -> Result<Option<Value>, Error> {
    let path = match group_version.group.as_str() {
        "" => format!("/openapi/v3/api/{group_version}"),
        _ => format!("/openapi/v3/apis/{group_version}"),
    };
    match call(client, Method::GET, &path, None).await {
        Err(e) if e.is_not_found() => Ok(None),
        answer => answer.map(Some),
    }
}

#[derive(Deserialize)]
struct Groups {
    items: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    #[serde(default)]
    metadata: Name,
    #[serde(default)]
    versions: Vec<Version>,
}

#[derive(Deserialize, Default)]
struct Name {
    #[serde(default)]
    name: String,
}

#[derive(Deserialize)]
struct Version {
    version: String,
    #[serde(default)]
    freshness: String,
    #[serde(default)]
    resources: Vec<Aggregated>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Aggregated {
    resource: String,
    #[serde(default)]
    singular_resource: String,
    scope: String,
    response_kind: Option<ResponseKind>,
    #[serde(default)]
    verbs: Vec<String>,
}

#[derive(Deserialize)]
struct ResponseKind {
    #[serde(default)]
    kind: String,
}

fn aggregated(document: Value, path: &str) -> Result<(Vec<Discovered>, Vec<String>), Error> {
    let groups: Groups =
        decode::from_value(&document).map_err(|source| Error::Decode { what: path.to_owned(), source })?;
    let (mut found, mut stale) = (Vec::new(), Vec::new());
    for group in groups.items {
        for version in group.versions {
            if version.freshness == "Stale" {
                // What was in it once cannot be asked for.
                stale.push(GroupVersion::new(&*group.metadata.name, &*version.version).to_string());
                continue;
            }
            for r in version.resources {
                found.push(Discovered {
                    resource: Resource {
                        gvr: isopod_api::Gvr::new(&*group.metadata.name, &*version.version, r.resource),
                        namespaced: r.scope == "Namespaced",
                    },
                    singular: r.singular_resource,
                    kind: r.response_kind.map(|k| k.kind).unwrap_or_default(),
                    verbs: r.verbs,
                });
            }
        }
    }
    Ok((found, stale))
}

/// Reads the document of each group version that an `APIVersions` or `APIGroupList` names.
async fn each(client: &Client, document: &Value) -> Result<Vec<Discovered>, Error> {
    let mut versions: Vec<String> = Vec::new();
    for v in document["versions"].as_array().into_iter().flatten() {
        versions.extend(v.as_str().map(str::to_owned));
    }
    for group in document["groups"].as_array().into_iter().flatten() {
        versions.extend(group["preferredVersion"]["groupVersion"].as_str().map(str::to_owned));
        for v in group["versions"].as_array().into_iter().flatten() {
            versions.extend(v["groupVersion"].as_str().map(str::to_owned));
        }
    }
    versions.dedup();
    let mut found = Vec::new();
    for api_version in versions {
        let Some(gv) = GroupVersion::parse(&api_version) else { continue };
        let path = if gv.group.is_empty() { format!("/api/{api_version}") } else { format!("/apis/{api_version}") };
        let list: Value = call(client, Method::GET, &path, None).await?;
        for r in list["resources"].as_array().into_iter().flatten() {
            let name = r["name"].as_str().unwrap_or_default();
            if name.is_empty() || name.contains('/') {
                continue;
            }
            found.push(Discovered {
                resource: Resource {
                    gvr: isopod_api::Gvr::new(&*gv.group, &*gv.version, name),
                    namespaced: r["namespaced"].as_bool().unwrap_or_default(),
                },
                singular: r["singularName"].as_str().unwrap_or_default().to_owned(),
                kind: r["kind"].as_str().unwrap_or_default().to_owned(),
                verbs: r["verbs"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(|v| v.as_str().map(str::to_owned))
                    .collect(),
            });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn reads_the_aggregated_form() {
        let document = json!({"kind": "APIGroupDiscoveryList", "items": [{"metadata": {"name": "apps"}, "versions": [{
            "version": "v1", "resources": [{"resource": "deployments", "singularResource": "deployment", "scope": "Namespaced", "verbs": ["get", "delete"],
            "responseKind": {"group": "apps", "version": "v1", "kind": "Deployment"}}]}]},
            {"metadata": {"name": "wardle.example.com"}, "versions": [{"version": "v1alpha1", "freshness": "Stale"}]}]});
        let (found, stale) = aggregated(document, "/apis").unwrap();
        assert_eq!(stale, ["wardle.example.com/v1alpha1"]);
        assert_eq!(found[0].resource, Resource::namespaced("apps", "v1", "deployments"));
        assert_eq!((found[0].kind.as_str(), found[0].singular.as_str()), ("Deployment", "deployment"));
        assert!(found[0].can("delete") && !found[0].can("watch"));
    }
}
