//! `DefaultStorageClass` and `DefaultIngressClass`: what names no class gets the newest one that is marked as default.

use super::{Operation, Plugin, Request};
use async_trait::async_trait;
use isopod_api::Status;
use isopod_kinds::access::{self, Access};
use serde_json::Value;
use std::cmp::Reverse;

const STORAGE_DEFAULT: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
const STORAGE_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
const INGRESS_DEFAULT: [&str; 1] = ["ingressclass.kubernetes.io/is-default-class"];
const INGRESS_CLASS: &str = "kubernetes.io/ingress.class";

/// A kind whose objects get a class.
pub struct DefaultClass {
    name: &'static str,
    resource: &'static str,
    /// Where an object names its class.
    field: &'static str,
    annotation: &'static str,
    /// Group and resource of the classes, and the annotations that mark the default.
    classes: (&'static str, &'static str),
    marks: &'static [&'static str],
}

pub const STORAGE: DefaultClass = DefaultClass {
    name: "DefaultStorageClass",
    resource: "persistentvolumeclaims",
    field: "spec.storageClassName",
    annotation: STORAGE_CLASS,
    classes: ("storage.k8s.io", "storageclasses"),
    marks: &STORAGE_DEFAULT,
};

pub const INGRESS: DefaultClass = DefaultClass {
    name: "DefaultIngressClass",
    resource: "ingresses.networking.k8s.io",
    field: "spec.ingressClassName",
    annotation: INGRESS_CLASS,
    classes: ("networking.k8s.io", "ingressclasses"),
    marks: &INGRESS_DEFAULT,
};

#[async_trait]
impl Plugin for DefaultClass {
    fn name(&self) -> &'static str {
        self.name
    }

    async fn mutate(&self, request: &Request<'_>, new: &mut Value) -> Result<(), Status> {
        if request.operation != Operation::Create || !request.is(self.resource) {
            return Ok(());
        }
        // An empty name is a name: it asks for no class.
        if new.has(self.field) || !new.entry("metadata.annotations", self.annotation).is_null() {
            return Ok(());
        }
        let (group, resource) = self.classes;
        let classes = request.read_all(group, resource, "").await?;
        if let Some(name) = default(classes.iter().map(|c| &**c), self.marks) {
            access::set(new, self.field, name);
        }
        Ok(())
    }
}

/// The newest class that is marked; of several, the first by name.
fn default<'a>(classes: impl Iterator<Item = &'a Value>, marks: &[&str]) -> Option<&'a str> {
    let marked = |c: &&Value| marks.iter().any(|m| c.entry_text("metadata.annotations", m) == "true");
    let order =
        |a: &Value| (Reverse(a.text("metadata.creationTimestamp").to_owned()), a.text("metadata.name").to_owned());
    classes.filter(marked).min_by_key(|c| order(c)).map(|c| c.text("metadata.name"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_newest_default_is_taken() {
        let class = |name: &str, minute: u32, mark: &str| {
            let created = format!("2026-01-01T00:0{minute}:00Z");
            json!({"metadata": {"name": name, "creationTimestamp": created, "annotations": {STORAGE_DEFAULT[0]: mark}}})
        };
        let classes = [class("a", 1, "true"), class("c", 2, "true"), class("b", 2, "true"), class("d", 3, "false")];
        assert_eq!(default(classes.iter(), STORAGE.marks), Some("b"));
        assert_eq!(default(classes.iter(), INGRESS.marks), None);
    }
}
