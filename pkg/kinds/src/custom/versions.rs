//! The versions of a custom resource: what each of them knows, and how an object of one becomes an object of another
//! (`apiextensions-apiserver/pkg/apiserver/conversion`).
//!
//! Invariant: an object is pruned by the schema of the version that it is in, and defaulted only by that of the version in which
//! it was sent or stored.

use super::jsonpath::{self, JsonPath};
use super::review::Webhook;
use crate::access::{Access, set};
use isopod_schema::types::Object;
use isopod_schema::{default, json, structural};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

/// One version of a definition, served or not.
struct Version {
    schema: Arc<Object>,
    /// `None`: no path; its value is always empty.
    selectable: Vec<Option<JsonPath>>,
}

/// What all versions of a resource know of one another.
pub struct Versions {
    pub group: String,
    /// The version that is written.
    pub stored: String,
    all: BTreeMap<String, Version>,
    /// `None`: nothing but the version's name changes.
    pub webhook: Option<Webhook>,
}

impl Versions {
    /// Of a definition that says which version is stored.
    pub(super) fn new(definition: &Value) -> Option<Self> {
        let stated = definition.list("spec.versions");
        let stored = stated.iter().find(|v| v.flag("storage"))?.text("name").to_owned();
        let all = stated.iter().map(|v| {
            let schema = Arc::new(structural::resource(v.at("schema.openAPIV3Schema")));
            let paths = v.list("selectableFields").iter().map(|f| f.text("jsonPath"));
            (v.text("name").to_owned(), Version { schema, selectable: paths.map(JsonPath::parse).collect() })
        });
        let group = definition.text("spec.group").to_owned();
        Some(Versions { group, stored, all: all.collect(), webhook: Webhook::new(definition) })
    }

    /// Whether an object may have to become one of another version.
    pub fn several(&self) -> bool {
        self.all.len() > 1
    }

    /// Whether the definition has the version.
    pub fn has(&self, version: &str) -> bool {
        self.all.contains_key(version)
    }

    pub fn schema(&self, version: &str) -> Option<&Arc<Object>> {
        self.all.get(version).map(|v| &v.schema)
    }

    pub fn api_version(&self, version: &str) -> String {
        format!("{}/{version}", self.group)
    }

    /// The version that an object says it is of.
    pub fn version_of<'a>(&self, object: &'a Value) -> &'a str {
        let api_version = object.text("apiVersion");
        api_version.strip_prefix(self.group.as_str()).and_then(|v| v.strip_prefix('/')).unwrap_or(api_version)
    }

    /// Values of the selectable fields of the object's version.
    pub(super) fn selectable(&self, object: &Value) -> Vec<String> {
        let text = |path: &Option<JsonPath>| match path.as_ref().and_then(|p| p.find(object).into_iter().next()) {
            None | Some(Value::Null) => String::new(),
            Some(value) => jsonpath::printed(value),
        };
        let version = self.all.get(self.version_of(object));
        version.map(|v| v.selectable.iter().map(text).collect()).unwrap_or_default()
    }

    /// What is read where these bytes are stored: the object in the version in which it was written, pruned and defaulted.
    pub(super) fn read(&self, bytes: &[u8]) -> Option<Value> {
        let stated = json::read(bytes).ok()?;
        let version = self.all.get(self.version_of(&stated)).or_else(|| self.all.get(&self.stored))?;
        let mut value = json::decode(bytes, &version.schema).ok()?.value;
        default::apply(&mut value, &version.schema);
        if value.int_or("metadata.generation", 0) == 0 {
            set(&mut value, "metadata.generation", 1);
        }
        Some(value)
    }

    /// What stays of an object that has become one of this version.
    pub fn prune(&self, object: &mut Value, version: &str) {
        let Some(schema) = self.schema(version) else { return };
        if let Ok(decoded) = json::decode_value(std::mem::take(object), schema) {
            *object = decoded.value;
        }
    }

    /// The conversion `None`: what the version's schema does not know is lost, everything else stays.
    pub fn rename(&self, object: &mut Value, version: &str) {
        object["apiVersion"] = self.api_version(version).into();
        self.prune(object, version);
    }
}
