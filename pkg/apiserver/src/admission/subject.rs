//! A request as webhooks and policies see it.

use super::Request;
use super::matching::View;
use crate::encode::decode::{self, FieldValidation};
use crate::ownership::Served;
use crate::pipeline::{self, Intent};
use isopod_api::{Gvk, Gvr, Status};
use isopod_schema::managed::Versions;
use isopod_schema::types::Object;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Kinds that nobody is asked about: what configures admission can always be mended.
const EXEMPT: [&str; 6] = [
    "ValidatingWebhookConfiguration",
    "MutatingWebhookConfiguration",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "MutatingAdmissionPolicy",
    "MutatingAdmissionPolicyBinding",
];

/// Whether webhooks and policies are asked about this request in the course of the pipeline. About the types that only
/// subresources have, they are asked where those come in.
pub fn concerned(request: &Request<'_>) -> bool {
    let intent = request.intent;
    let kind = &intent.kind;
    let exempt = kind.gvk.group == "admissionregistration.k8s.io" && EXEMPT.contains(&kind.gvk.kind.as_str());
    let sub = kind.subresources.iter().find(|s| s.name == intent.subresource);
    let foreign = sub.and_then(|s| s.gvk.as_ref()).is_some_and(|gvk| *gvk != kind.gvk);
    !exempt && !intent.webhooks_asked && (!foreign || request.gvk.is_some())
}

pub struct Subject<'a> {
    pub request: &'a Request<'a>,
    pub operation: &'static str,
    /// The type of the object: the kind's own, or the subresource's.
    pub gvk: Gvk,
    /// Of a Namespace: itself.
    pub namespace: String,
    pub name: String,
    pub old: Option<&'a Value>,
    versions: Served,
}

impl<'a> Subject<'a> {
    pub fn new(request: &'a Request<'a>, new: Option<&Value>) -> Self {
        let intent = request.intent;
        let mut name = intent.name.clone();
        if name.is_empty() {
            name = new.and_then(|n| n["metadata"]["name"].as_str()).unwrap_or_default().to_owned();
        }
        let is_namespace = intent.kind.gvk.group.is_empty() && intent.kind.resource == "namespaces";
        Subject {
            request,
            operation: request.operation.name(),
            gvk: request.gvk.clone().unwrap_or_else(|| intent.kind.gvk.clone()),
            namespace: if is_namespace { name.clone() } else { intent.namespace.clone() },
            name,
            old: request.old,
            versions: Served::new(request.server, &intent.kind),
        }
    }

    pub fn intent(&self) -> &'a Intent {
        self.request.intent
    }

    pub fn subresource(&self) -> &'a str {
        &self.request.intent.subresource
    }

    pub fn is_namespace(&self) -> bool {
        let kind = &self.intent().kind;
        kind.gvk.group.is_empty() && kind.resource == "namespaces"
    }

    /// The object in the version that is wanted.
    pub fn in_version(&self, object: Option<&Value>, view: &View) -> Option<Value> {
        let object = object?;
        if view.gvk == self.gvk {
            let mut object = object.clone();
            object["apiVersion"] = self.gvk.api_version().into();
            object["kind"] = self.gvk.kind.clone().into();
            return Some(object);
        }
        Some(self.versions.convert(object, &self.gvk.api_version(), &view.gvk.api_version()))
    }

    /// Gets what [`in_version`](Self::in_version) needs and only a conversion webhook can make.
    pub async fn convert(&self, new: Option<&Value>, view: &View) -> Result<(), Status> {
        if self.versions.asks() && self.gvk != view.gvk {
            let _ = (self.in_version(new, view), self.in_version(self.old, view));
            self.versions.get_missing(self.request.server).await?;
        }
        Ok(())
    }

    /// The schema of what is seen.
    pub fn schema(&self, view: &View) -> Result<Arc<Object>, Status> {
        let schema = match &self.request.gvk {
            Some(gvk) => isopod_schema::facts::builtin().object_of(gvk),
            None => {
                let registry = self.request.server.registry.load();
                registry.kind(&view.gvk.api_version(), &view.gvk.kind).map(|k| k.schema.clone())
            }
        };
        schema.ok_or_else(|| Status::internal(format!("no schema of {}", view.gvk.kind)))
    }

    /// A changed object as this server's: read as from a client, in the request's version, defaulted.
    pub async fn accept(&self, view: &View, changed: Value) -> Result<Value, Status> {
        let intent = self.intent();
        let schema = self.schema(view)?;
        let mut object = decode::value(changed, &view.gvk, &schema, FieldValidation::Ignore)?.value;
        if self.request.gvk.is_some() {
            return Ok(object);
        }
        if view.gvk != intent.kind.gvk {
            let convert = || self.versions.convert(&object, &view.gvk.api_version(), &intent.kind.gvk.api_version());
            let mut converted = convert();
            if self.versions.get_missing(self.request.server).await? {
                converted = convert();
            }
            object = converted;
        }
        pipeline::apply_defaults(&intent.kind, &mut object);
        Ok(object)
    }

    /// What `AdmissionRequest` says of the request besides its objects.
    pub fn describe(&self, view: &View) -> Value {
        let intent = self.intent();
        let mut request = json!({
            "kind": kind(&view.gvk),
            "resource": resource(&view.gvr),
            "requestKind": kind(&self.gvk),
            "requestResource": resource(&intent.kind.gvr()),
            "operation": self.operation,
            "userInfo": self.user(),
            "dryRun": intent.dry_run,
            "options": intent.options,
        });
        for (key, value) in [
            ("subResource", self.subresource()),
            ("requestSubResource", self.subresource()),
            ("name", &self.name),
            ("namespace", &self.namespace),
        ] {
            if !value.is_empty() {
                request[key] = value.into();
            }
        }
        request
    }

    fn user(&self) -> Map<String, Value> {
        let user = &self.intent().user;
        let mut who = Map::new();
        if !user.name.is_empty() {
            who.insert("username".into(), user.name.clone().into());
        }
        if !user.uid.is_empty() {
            who.insert("uid".into(), user.uid.clone().into());
        }
        if !user.groups.is_empty() {
            who.insert("groups".into(), json!(user.groups));
        }
        if !user.extra.is_empty() {
            who.insert("extra".into(), json!(user.extra));
        }
        who
    }
}

fn kind(gvk: &Gvk) -> Value {
    json!({"group": gvk.group, "version": gvk.version, "kind": gvk.kind})
}

fn resource(gvr: &Gvr) -> Value {
    json!({"group": gvr.group, "version": gvr.version, "resource": gvr.resource})
}
