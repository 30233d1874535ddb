//! One cached object: its served bytes and the small index that selectors look at.

use crate::cache::message::Message;
use crate::cache::parts;
use crate::encode::splice;
use crate::metadata;
use bytes::Bytes;
use isopod_api::selector::{FieldSelector, FieldTerm, LabelSelector, Labels};
use isopod_kinds::Kind;
use isopod_schema::json;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use tokio::sync::OnceCell;

/// An object at one revision.
#[derive(Debug)]
pub struct Entry {
    /// `<namespace>/<name>`, or `<name>`.
    pub key: Box<str>,
    /// JSON with `resourceVersion`: of a built-in kind in the stored version, of a custom one in that of [`Self::is_of`].
    pub body: Bytes,
    digits: Range<u32>,
    /// The body in protobuf, of kinds that are served in the stored version.
    pub message: Message,
    labels: Box<[(Box<str>, Box<str>)]>,
    /// Values of [`Kind::selectable`].
    fields: Box<[Box<str>]>,
    /// The version of the object, of kinds whose objects are not all of one.
    version: Option<Box<str>>,
    views: Views<Entry>,
}

/// One thing in other versions, each made when it is asked for first.
pub struct Views<T>(OnceLock<Box<Mutex<Vec<View<T>>>>>);

/// A version and what the thing is in it.
type View<T> = (Box<str>, Arc<OnceCell<Arc<T>>>);

impl<T> Default for Views<T> {
    fn default() -> Self {
        Views(OnceLock::new())
    }
}

impl<T> std::fmt::Debug for Views<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Views")
    }
}

impl<T> Views<T> {
    pub fn cell(&self, version: &str) -> Arc<OnceCell<Arc<T>>> {
        let mut all = self.0.get_or_init(Box::default).lock();
        if let Some((_, cell)) = all.iter().find(|(v, _)| **v == *version) {
            return cell.clone();
        }
        let cell = Arc::<OnceCell<Arc<T>>>::default();
        all.push((version.into(), cell.clone()));
        cell
    }
}

/// Bytes in the store that are not an object.
#[derive(Debug, thiserror::Error)]
#[error("the stored object {key:?} cannot be read")]
pub struct Unreadable {
    key: String,
    #[source]
    source: Option<serde_json::Error>,
}

/// The place of what selectors of labels look at.
const LABELS: &str = "metadata.labels";

impl Entry {
    /// Takes stored bytes in.
    pub fn new(kind: &Kind, key: &str, stored: &[u8], revision: i64) -> Result<Self, Unreadable> {
        match kind.hooks.on_read(stored).filter(|_| kind.schema.custom) {
            Some(read) => Self::of_value(kind, key, &read, revision),
            None => Self::of_bytes(kind, key, stored, None, revision),
        }
    }

    /// As [`Self::new`], of a kind whose objects are read as they are stored: the bytes were made of `object`.
    pub fn of_object(kind: &Kind, key: &str, stored: &[u8], object: &Value, revision: i64) -> Result<Self, Unreadable> {
        Self::of_bytes(kind, key, stored, Some(object), revision)
    }

    /// As the object is now, whatever is stored.
    fn of_value(kind: &Kind, key: &str, object: &Value, revision: i64) -> Result<Self, Unreadable> {
        Self::of_bytes(kind, key, &splice::stored(object), Some(object), revision)
    }

    fn of_bytes(
        kind: &Kind,
        key: &str,
        stored: &[u8],
        object: Option<&Value>,
        revision: i64,
    ) -> Result<Self, Unreadable> {
        let unreadable = |source| Unreadable { key: key.to_owned(), source };
        let parsed: Value;
        let value = match object {
            Some(object) => object,
            None => {
                parsed = indexed(kind, stored).map_err(|e| unreadable(Some(e)))?;
                &parsed
            }
        };
        let labels = Option::<BTreeMap<Box<str>, Box<str>>>::deserialize(&value["metadata"]["labels"]);
        let labels = labels.map_err(|e| unreadable(Some(e)))?.unwrap_or_default();
        let (body, digits) = splice::with_revision(stored, revision).ok_or_else(|| unreadable(None))?;
        let fields = match kind.selectable.is_empty() {
            true => Box::default(),
            false => kind.hooks.selectable(value).into_iter().map(String::into_boxed_str).collect(),
        };
        let versions = kind.hooks.versions().filter(|v| v.several());
        let version = versions.zip(object).map(|(versions, object)| versions.version_of(object).into());
        Ok(Entry {
            key: key.into(),
            body,
            digits,
            message: Message::default(),
            labels: labels.into_iter().collect(),
            fields,
            version,
            views: Views::default(),
        })
    }

    /// The same object with other bytes, which carry no revision: the answer of a dry run.
    pub fn unstored(other: &Entry, body: Bytes) -> Self {
        Entry {
            key: other.key.clone(),
            body,
            digits: 0..0,
            message: Message::default(),
            labels: other.labels.clone(),
            fields: other.fields.clone(),
            version: other.version.clone(),
            views: Views::default(),
        }
    }

    /// An object that no store has and that carries neither a revision nor labels.
    pub fn made(key: &str, object: &Value) -> Self {
        Entry {
            key: key.into(),
            body: splice::stored(object),
            digits: 0..0,
            message: Message::default(),
            labels: Box::default(),
            fields: Box::default(),
            version: None,
            views: Views::default(),
        }
    }

    /// The same object in the version of `kind`, as a conversion has made it.
    pub fn converted(&self, kind: &Kind, object: &Value) -> Option<Arc<Self>> {
        Self::of_value(kind, &self.key, object, self.revision()).ok().map(Arc::new)
    }

    /// Whether the body is in the version of `kind`, or becomes so without a conversion of its own.
    pub fn is_of(&self, kind: &Kind) -> bool {
        self.version.as_deref().is_none_or(|v| v == kind.gvk.version)
    }

    /// Where the same object in another version is kept.
    pub fn view_cell(&self, version: &str) -> Arc<OnceCell<Arc<Entry>>> {
        self.views.cell(version)
    }

    /// The same object in another version, if it was asked for before.
    pub fn viewed(&self, version: &str) -> Option<Arc<Entry>> {
        self.view_cell(version).get().cloned()
    }

    pub fn revision(&self) -> i64 {
        let digits = self.body.get(self.digits.start as usize..self.digits.end as usize);
        digits.and_then(|d| std::str::from_utf8(d).ok()?.parse().ok()).unwrap_or_default()
    }

    /// The object without its revision, which conversions are not told.
    pub fn unrevised(&self) -> Value {
        let mut value = self.value();
        metadata::without_revision(&mut value);
        value
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
        json::read(&self.body).unwrap_or_default()
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

/// What of a stored object its index is made of, or more.
fn indexed(kind: &Kind, stored: &[u8]) -> Result<Value, serde_json::Error> {
    match kind.hooks.selected_from() {
        _ if kind.selectable.is_empty() => parts::read(stored, [LABELS]),
        Some(paths) => parts::read(stored, paths.iter().copied().chain([LABELS])),
        None => json::read(stored),
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

    /// Whether what no conversion can change matches.
    pub fn matches_name(&self, kind: &Kind, entry: &Entry) -> bool {
        let in_namespace = self.namespace.is_empty() || !kind.namespaced || entry.namespace() == self.namespace;
        let holds = |t: &FieldTerm| match t.field.as_str() {
            "metadata.name" => t.equal == (entry.name() == t.value),
            "metadata.namespace" => t.equal == (entry.namespace() == t.value),
            _ => true,
        };
        in_namespace && self.fields.terms.iter().all(holds)
    }

    /// What of it no conversion can change: the place and the name.
    pub fn of_names(&self) -> Self {
        let is_name = |t: &&FieldTerm| matches!(t.field.as_str(), "metadata.name" | "metadata.namespace");
        let terms = self.fields.terms.iter().filter(is_name).cloned().collect();
        Filter { namespace: self.namespace.clone(), labels: LabelSelector::default(), fields: FieldSelector { terms } }
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// An object that says something at every path that a kind selects by, under either name of an event's fields.
    fn full(kind: &Kind, twin: bool) -> Value {
        let mut object = json!({"metadata": {"name": "x", "labels": {"a": "b"}}, "rest": [{"of": "it"}]});
        for path in &kind.selectable {
            let path = if twin { path.replace("involvedObject", "regarding") } else { path.clone() };
            let mut at = &mut object;
            for part in path.split('.') {
                at = &mut at[part];
            }
            *at = match path.as_str() {
                "status.podIPs" => json!([{"ip": "192.0.2.7"}]),
                "source" => json!({"component": "kubelet"}),
                "spec.unschedulable" | "spec.hostNetwork" => true.into(),
                "status.replicas" => 3.into(),
                path => path.into(),
            };
        }
        object
    }

    #[test]
    fn the_index_is_made_of_what_selectors_look_at() {
        let kinds = isopod_kinds::table::builtin();
        let selectable = kinds.iter().filter(|k| !k.selectable.is_empty());
        let mut seen = 0;
        for (kind, twin) in selectable.flat_map(|k| [(k, false), (k, true)]) {
            let object = full(kind, twin);
            let entry = Entry::new(kind, "a/x", &splice::stored(&object), 7).unwrap();
            let of_all: Vec<Box<str>> =
                kind.hooks.selectable(&object).into_iter().map(String::into_boxed_str).collect();
            assert_eq!(&*entry.fields, &*of_all, "{}", kind.resource);
            assert_eq!((entry.label("a"), entry.label("b"), entry.revision()), (Some("b"), None, 7));
            seen += usize::from(of_all.iter().all(|v| !v.is_empty()));
        }
        assert!(seen > 8, "most objects say something at every path: {seen}");
    }

    #[test]
    fn what_is_no_object_is_found() {
        let kinds = isopod_kinds::table::builtin();
        for kind in kinds.iter().filter(|k| matches!(k.resource.as_str(), "pods" | "configmaps")) {
            let broken: [&[u8]; 5] =
                [b"", b"[]", b"{\"metadata\":", b"{\"metadata\":5}", b"{\"metadata\":{\"labels\":{\"a\":1}}}"];
            for bytes in broken {
                assert!(Entry::new(kind, "a/x", bytes, 1).is_err(), "{}", String::from_utf8_lossy(bytes));
            }
        }
    }
}
