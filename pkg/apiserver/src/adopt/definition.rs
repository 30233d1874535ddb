//! Definitions of custom resources in `apiextensions.k8s.io/v1beta1`, which is no longer served but is what upstream's server
//! still stores. What all versions have in common stands above them there.

use serde_json::{Map, Value, json};

pub(crate) const OLD: (&str, &str) = ("apiextensions.k8s.io/v1beta1", "CustomResourceDefinition");

/// Fields above the versions, and their names within them.
const SHARED: [(&str, &str); 4] = [
    ("validation", "schema"),
    ("subresources", "subresources"),
    ("additionalPrinterColumns", "additionalPrinterColumns"),
    ("selectableFields", "selectableFields"),
];

/// The same definition in v1.
pub(crate) fn to_v1(definition: &mut Value) {
    definition["apiVersion"] = "apiextensions.k8s.io/v1".into();
    let Some(spec) = definition["spec"].as_object_mut() else { return };
    let only = spec.remove("version").filter(|v| v.as_str().is_some_and(|name| !name.is_empty()));
    let shared: Vec<(&str, Value)> =
        SHARED.iter().filter_map(|(above, within)| Some((*within, spec.remove(*above)?))).collect();
    let versions = spec.entry("versions").or_insert_with(|| json!([]));
    if versions.as_array().is_none_or(Vec::is_empty) {
        *versions = only.map_or_else(|| json!([]), |name| json!([{"name": name, "served": true, "storage": true}]));
    }
    for version in versions.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
        version.extend(shared.iter().filter(|(_, v)| !v.is_null()).map(|(field, v)| ((*field).to_owned(), v.clone())));
        let columns = version.get_mut("additionalPrinterColumns").and_then(Value::as_array_mut);
        for column in columns.into_iter().flatten().filter_map(Value::as_object_mut) {
            if let Some(path) = column.remove("JSONPath") {
                column.insert("jsonPath".into(), path);
            }
        }
    }
    if let Some(conversion) = spec.get_mut("conversion").and_then(Value::as_object_mut) {
        webhook(conversion);
    }
    // Absent, it was true then and is false now.
    spec.entry("preserveUnknownFields").or_insert(true.into());
}

fn webhook(conversion: &mut Map<String, Value>) {
    let fields = [("webhookClientConfig", "clientConfig"), ("conversionReviewVersions", "conversionReviewVersions")];
    let webhook: Map<String, Value> =
        fields.iter().filter_map(|(old, new)| Some(((*new).to_owned(), conversion.remove(*old)?))).collect();
    if !webhook.is_empty() {
        conversion.insert("webhook".into(), webhook.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_versions_share_goes_into_each() {
        let mut old = json!({"apiVersion": OLD.0, "kind": OLD.1, "metadata": {"name": "gadgets.example.com"}, "spec": {
            "group": "example.com", "version": "v1", "scope": "Namespaced", "names": {"plural": "gadgets", "kind": "Gadget"},
            "validation": {"openAPIV3Schema": {"type": "object"}}, "subresources": {"status": {}},
            "additionalPrinterColumns": [{"name": "X", "type": "string", "JSONPath": ".spec.x"}],
            "versions": [{"name": "v1", "served": true, "storage": true}, {"name": "v2", "served": true, "storage": false}],
            "conversion": {"strategy": "Webhook", "webhookClientConfig": {"url": "https://x"}, "conversionReviewVersions": ["v1"]},
            "preserveUnknownFields": false}});
        to_v1(&mut old);
        let version = |name: &str, storage: bool| {
            json!({"name": name, "served": true, "storage": storage, "schema": {"openAPIV3Schema": {"type": "object"}},
                "subresources": {"status": {}},
                "additionalPrinterColumns": [{"name": "X", "type": "string", "jsonPath": ".spec.x"}]})
        };
        let want = json!({"group": "example.com", "scope": "Namespaced", "names": {"plural": "gadgets", "kind": "Gadget"},
            "versions": [version("v1", true), version("v2", false)], "preserveUnknownFields": false,
            "conversion": {"strategy": "Webhook", "webhook": {"clientConfig": {"url": "https://x"}, "conversionReviewVersions": ["v1"]}}});
        assert_eq!((&old["apiVersion"], &old["spec"]), (&json!("apiextensions.k8s.io/v1"), &want));
    }

    #[test]
    fn versions_of_their_own_stay() {
        let own = json!([{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}},
            "additionalPrinterColumns": [{"name": "X", "JSONPath": ".x"}]}]);
        let mut old = json!({"spec": {"versions": own, "conversion": {"strategy": "None"}}});
        to_v1(&mut old);
        assert_eq!(old["spec"]["versions"][0]["additionalPrinterColumns"][0]["jsonPath"], ".x");
        assert_eq!(old["spec"]["versions"][0]["schema"], own[0]["schema"]);
        assert_eq!(old["spec"]["preserveUnknownFields"], true);
        let mut oldest = json!({"spec": {"version": "v1alpha1"}});
        to_v1(&mut oldest);
        assert_eq!(oldest["spec"]["versions"], json!([{"name": "v1alpha1", "served": true, "storage": true}]));
    }
}
