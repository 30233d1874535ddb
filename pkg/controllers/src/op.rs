//! The steps of a plan: what a controller writes, as data, so that a plan can be tested without a server.

use isopod_client::events::{Kind, ObjectRef, Recorder};
use isopod_client::{Calls, Delete, Error, Patch, Preconditions, Propagation, Resource};
use kube::Client;
use serde_json::Value;
use std::fmt;

/// One write.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    Create {
        resource: Resource,
        namespace: String,
        object: Value,
    },
    Patch {
        resource: Resource,
        namespace: String,
        name: String,
        subresource: Option<&'static str>,
        patch: Patch,
        guard: Preconditions,
    },
    /// Reads, merges and writes back: most of upstream's roles may update but not patch.
    Modify {
        resource: Resource,
        namespace: String,
        name: String,
        subresource: Option<&'static str>,
        change: Value,
        guard: Preconditions,
    },
    /// Writes the whole object; it fails when the object is newer than its `metadata.resourceVersion`.
    Replace {
        resource: Resource,
        namespace: String,
        object: Value,
    },
    Delete {
        resource: Resource,
        namespace: String,
        name: String,
        options: Delete,
    },
    Event {
        about: ObjectRef,
        kind: Kind,
        reason: &'static str,
        message: String,
    },
}

impl Op {
    pub fn create(resource: Resource, namespace: &str, object: Value) -> Self {
        Op::Create { resource, namespace: namespace.to_owned(), object }
    }

    pub fn replace(resource: Resource, namespace: &str, object: Value) -> Self {
        Op::Replace { resource, namespace: namespace.to_owned(), object }
    }

    /// A change by merge patch, written by [`Calls::modify`].
    pub fn modify(resource: Resource, namespace: &str, name: &str, change: Value) -> Self {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        Op::Modify { resource, namespace, name, subresource: None, change, guard: Preconditions::default() }
    }

    pub fn patch(resource: Resource, namespace: &str, name: &str, patch: Patch) -> Self {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        Op::Patch { resource, namespace, name, subresource: None, patch, guard: Preconditions::default() }
    }

    /// A change of the status subresource.
    pub fn status(resource: Resource, namespace: &str, name: &str, body: Value) -> Self {
        Op::modify(resource, namespace, name, body).on_subresource("status")
    }

    pub fn on_subresource(mut self, sub: &'static str) -> Self {
        if let Op::Patch { subresource, .. } | Op::Modify { subresource, .. } = &mut self {
            *subresource = Some(sub);
        }
        self
    }

    /// Makes a patch fail on another object of the same name, or a delete.
    pub fn if_uid(mut self, uid: &str) -> Self {
        match &mut self {
            Op::Patch { guard, .. } | Op::Modify { guard, .. } => guard.uid = Some(uid.to_owned()),
            Op::Delete { options, .. } => options.preconditions.uid = Some(uid.to_owned()),
            _ => {}
        }
        self
    }

    /// Makes a patch or a delete fail when the object is newer than what was looked at.
    pub fn if_unchanged(mut self, resource_version: &str) -> Self {
        match &mut self {
            Op::Patch { guard, .. } | Op::Modify { guard, .. } => {
                guard.resource_version = Some(resource_version.to_owned())
            }
            Op::Delete { options, .. } => options.preconditions.resource_version = Some(resource_version.to_owned()),
            _ => {}
        }
        self
    }

    pub fn delete(resource: Resource, namespace: &str, name: &str) -> Self {
        Op::Delete { resource, namespace: namespace.to_owned(), name: name.to_owned(), options: Delete::default() }
    }

    pub fn propagate(mut self, how: Propagation) -> Self {
        if let Op::Delete { options, .. } = &mut self {
            options.propagation = Some(how);
        }
        self
    }

    pub fn event(about: &ObjectRef, kind: Kind, reason: &'static str, message: impl Into<String>) -> Self {
        Op::Event { about: about.clone(), kind, reason, message: message.into() }
    }

    pub(crate) async fn apply(&self, client: &Client, recorder: &Recorder) -> Result<Value, Error> {
        match self {
            Op::Create { resource, namespace, object } => {
                Calls::new(client.clone(), resource.clone()).create(namespace, object).await
            }
            Op::Patch { resource, namespace, name, subresource, patch, guard } => {
                let calls = Calls::new(client.clone(), resource.clone());
                calls.patch(namespace, name, *subresource, patch.clone(), guard).await
            }
            Op::Replace { resource, namespace, object } => {
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                Calls::new(client.clone(), resource.clone()).update(namespace, name, None, object).await
            }
            Op::Modify { resource, namespace, name, subresource, change, guard } => {
                let calls = Calls::new(client.clone(), resource.clone());
                calls.modify(namespace, name, *subresource, change, guard).await
            }
            Op::Delete { resource, namespace, name, options } => {
                match Calls::new(client.clone(), resource.clone()).delete(namespace, name, options).await {
                    // It is gone: that is what was wanted.
                    Err(e) if e.is_not_found() => Ok(Value::Null),
                    other => other,
                }
            }
            Op::Event { about, kind, reason, message } => {
                recorder.event(about, *kind, reason, message.clone());
                Ok(Value::Null)
            }
        }
    }

    /// `patch replicasets.apps ns/web-1`: for error messages.
    pub(crate) fn what(&self) -> String {
        let at = |ns: &str, name: &str| if ns.is_empty() { name.to_owned() } else { format!("{ns}/{name}") };
        match self {
            Op::Create { resource, namespace, object } => {
                let meta = &object["metadata"];
                let name = meta["name"].as_str().or(meta["generateName"].as_str()).unwrap_or_default();
                format!("create {} {}", resource.gvr.qualified(), at(namespace, name))
            }
            Op::Replace { resource, namespace, object } => {
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                format!("replace {} {}", resource.gvr.qualified(), at(namespace, name))
            }
            Op::Patch { resource, namespace, name, subresource, .. }
            | Op::Modify { resource, namespace, name, subresource, .. } => {
                let sub = subresource.map(|s| format!("/{s}")).unwrap_or_default();
                let verb = if matches!(self, Op::Patch { .. }) { "patch" } else { "modify" };
                format!("{verb} {}{sub} {}", resource.gvr.qualified(), at(namespace, name))
            }
            Op::Delete { resource, namespace, name, .. } => {
                format!("delete {} {}", resource.gvr.qualified(), at(namespace, name))
            }
            Op::Event { reason, .. } => format!("record the event {reason}"),
        }
    }
}

/// One line a step, the body as JSON: what table tests compare.
impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::Create { object, .. } | Op::Replace { object, .. } => write!(f, "{} {object}", self.what()),
            Op::Patch {
                patch: Patch::Merge(b) | Patch::Strategic(b) | Patch::Json(b) | Patch::Apply { object: b, .. },
                ..
            } => {
                write!(f, "{} {b}", self.what())
            }
            Op::Modify { change, .. } => write!(f, "{} {change}", self.what()),
            Op::Delete { options, .. } => {
                let how = options.propagation.map(|p| format!(" {}", p.as_str())).unwrap_or_default();
                let grace = options.grace_period_seconds.map(|g| format!(" grace={g}")).unwrap_or_default();
                write!(f, "{}{how}{grace}", self.what())
            }
            Op::Event { kind, reason, message, .. } => write!(f, "event {kind:?} {reason}: {message}"),
        }
    }
}
