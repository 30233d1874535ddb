//! One cached object: its served bytes and the small index that selectors look at.

use crate::encode::splice;
use bytes::Bytes;
use isopod_api::selector::{FieldSelector, LabelSelector, Labels};
use isopod_kinds::Kind;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::Range;

/// An object at one revision.
#[derive(Debug)]
pub struct Entry {
    /// `<namespace>/<name>`, or `<name>`.
    pub key: Box<str>,
    /// JSON in the stored version, with `resourceVersion`.
    pub body: Bytes,
    digits: Range<u32>,
    labels: Box<[(Box<str>, Box<str>)]>,
    /// Values of [`Kind::selectable`].
    fields: Box<[Box<str>]>,
}

/// Bytes in the store that are not an object.
#[derive(Debug, thiserror::Error)]
#[error("the stored object {key:?} cannot be read")]
pub struct Unreadable {
    key: String,
    #[source]
    source: Option<serde_json::Error>,
}

#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    metadata: HeadMeta,
}

#[derive(Deserialize, Default)]
struct HeadMeta {
    #[serde(default)]
    labels: Option<BTreeMap<Box<str>, Box<str>>>,
}

impl Entry {
    /// Takes stored bytes in.
    pub fn new(kind: &Kind, key: &str, stored: &[u8], revision: i64) -> Result<Self, Unreadable> {
        let unreadable = |source| Unreadable { key: key.to_owned(), source };
        let read = if kind.schema.custom { kind.hooks.on_read(stored) } else { None };
        let read = read.map(|value| splice::stored(&value));
        let stored = read.as_deref().unwrap_or(stored);
        let head: Head = serde_json::from_slice(stored).map_err(|e| unreadable(Some(e)))?;
        let (body, digits) = splice::with_revision(stored, revision).ok_or_else(|| unreadable(None))?;
        let fields = if kind.selectable.is_empty() {
            Box::default()
        } else {
            let value: Value = serde_json::from_slice(stored).map_err(|e| unreadable(Some(e)))?;
            kind.hooks.selectable(&value).into_iter().map(String::into_boxed_str).collect()
        };
        let labels = head.metadata.labels.unwrap_or_default().into_iter().collect();
        Ok(Entry { key: key.into(), body, digits, labels, fields })
    }

    /// The same object with other bytes, which carry no revision: the answer of a dry run.
    pub fn unstored(other: &Entry, body: Bytes) -> Self {
        Entry { key: other.key.clone(), body, digits: 0..0, labels: other.labels.clone(), fields: other.fields.clone() }
    }

    pub fn name(&self) -> &str {
        self.key.rsplit_once('/').map_or(&self.key, |(_, name)| name)
    }

    pub fn namespace(&self) -> &str {
        self.key.rsplit_once('/').map_or("", |(namespace, _)| namespace)
    }

    /// The body as if written at `revision`: what a DELETED event carries.
    pub fn body_at(&self, revision: i64) -> Bytes {
        splice::at_revision(&self.body, &self.digits, revision)
    }

    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// About what it takes in memory.
    pub fn size(&self) -> usize {
        self.body.len() + self.key.len() + 160
    }
}

impl Labels for Entry {
    fn label(&self, key: &str) -> Option<&str> {
        self.labels.binary_search_by(|(k, _)| (**k).cmp(key)).ok().map(|i| &*self.labels[i].1)
    }
}

/// What a list or a watch wants to see.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Empty: all namespaces.
    pub namespace: String,
    pub labels: LabelSelector,
    pub fields: FieldSelector,
}

impl Filter {
    pub fn matches(&self, kind: &Kind, entry: &Entry) -> bool {
        let in_namespace = self.namespace.is_empty() || !kind.namespaced || entry.namespace() == self.namespace;
        in_namespace && self.labels.matches(entry) && self.fields.matches(|field| lookup(kind, entry, field))
    }

    /// Keys outside this prefix never match.
    pub fn key_prefix(&self, kind: &Kind) -> String {
        let exact = self.fields.exact("metadata.name");
        let namespace = if self.namespace.is_empty() {
            self.fields.exact("metadata.namespace").unwrap_or_default()
        } else {
            &self.namespace
        };
        match (kind.namespaced, namespace, exact) {
            (false, _, Some(name)) => name.to_owned(),
            (true, ns, Some(name)) if !ns.is_empty() => format!("{ns}/{name}"),
            (true, ns, None) if !ns.is_empty() => format!("{ns}/"),
            _ => String::new(),
        }
    }
}

fn lookup<'a>(kind: &Kind, entry: &'a Entry, field: &str) -> Option<&'a str> {
    match field {
        "metadata.name" => Some(entry.name()),
        "metadata.namespace" => Some(entry.namespace()),
        _ => {
            let i = kind.selectable.iter().position(|f| f == field)?;
            entry.fields.get(i).map(|v| &**v)
        }
    }
}
