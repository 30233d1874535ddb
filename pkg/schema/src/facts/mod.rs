//! The built-in schema: committed tables (`facts/*.tsv`, made by `hack/facts`) about the Go types of Kubernetes v1.37.
//!
//! Invariant: a definition is built only when something refers to it, so that the catalog costs little memory.

mod parse;

use crate::types::{Object, ObjectRef};
use isopod_api::Gvk;
use parse::{GVKS, KINDS, TYPES};
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

/// One served resource of v1.37.
#[derive(Debug)]
pub struct KindFact {
    pub gvk: Gvk,
    /// Plural name in paths.
    pub resource: String,
    pub singular: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    pub namespaced: bool,
    pub verbs: Vec<String>,
    /// Name, kind of its body where it is not the parent's, verbs.
    pub subresources: Vec<(String, Option<Gvk>, Vec<String>)>,
    /// Empty where the resource cannot be listed.
    pub list_kind: String,
    pub schema: Arc<Object>,
}

/// Where each definition stands in the table. Kept apart from [`Catalog`], whose construction builds definitions.
struct Index {
    refs: Vec<ObjectRef>,
    texts: Vec<&'static str>,
    by_name: HashMap<&'static str, u32>,
}

static INDEX: LazyLock<Index> = LazyLock::new(|| {
    let texts: Vec<&'static str> = parse::definitions(TYPES).collect();
    let refs = (0..texts.len() as u32).map(ObjectRef::builtin).collect();
    let by_name = texts.iter().zip(0..).map(|(text, row)| (parse::definition_name(text), row)).collect();
    Index { refs, texts, by_name }
});

impl Index {
    fn reference(&self, name: &str) -> Option<&ObjectRef> {
        self.by_name.get(name).map(|row| &self.refs[*row as usize])
    }
}

/// Builds the definition of one row of the table.
pub(crate) fn build(row: u32) -> Arc<Object> {
    let resolve = |name: &str| INDEX.reference(name).cloned().unwrap_or_else(ObjectRef::unset);
    Arc::new(parse::object(INDEX.texts[row as usize], &resolve))
}

/// All facts.
pub struct Catalog {
    kinds: Vec<KindFact>,
    by_gvk: HashMap<(&'static str, &'static str), &'static str>,
}

/// The facts of the built-in kinds.
pub fn builtin() -> &'static Catalog {
    static CATALOG: LazyLock<Catalog> = LazyLock::new(|| Catalog {
        kinds: parse::kinds(KINDS, &|name| INDEX.reference(name).map(|r| r.get().clone())),
        by_gvk: parse::rows(GVKS).filter_map(|row| row.get(..3).map(|c| ((c[0], c[1]), c[2]))).collect(),
    });
    &CATALOG
}

impl Catalog {
    /// The served kinds, in discovery's order of groups, then versions, then names.
    pub fn kinds(&self) -> &[KindFact] {
        &self.kinds
    }

    /// A definition by OpenAPI name: `io.k8s.api.core.v1.Container`.
    pub fn object(&self, name: &str) -> Option<Arc<Object>> {
        INDEX.reference(name).map(|r| r.get().clone())
    }

    /// The definition of a kind, also of those that are no resources (`Status`, `PodList`, `Scale` …). The options and
    /// `WatchEvent` are found in every group version, as upstream registers them.
    pub fn object_of(&self, gvk: &Gvk) -> Option<Arc<Object>> {
        let gv = gvk.api_version();
        let in_meta = |kind: &str| kind.ends_with("Options") || kind == "WatchEvent";
        let name = self
            .by_gvk
            .get(&(gv.as_str(), gvk.kind.as_str()))
            .or_else(|| in_meta(&gvk.kind).then(|| self.by_gvk.get(&("v1", gvk.kind.as_str()))).flatten())?;
        self.object(name)
    }

    /// Every kind that is known by group, version and kind, with its definition's name: `(apiVersion, kind, definition)`.
    pub fn gvks(&self) -> impl Iterator<Item = (&'static str, &'static str, &'static str)> + '_ {
        parse::rows(GVKS).filter_map(|row| row.get(..3).map(|c| (c[0], c[1], c[2])))
    }

    /// Names of all definitions, sorted.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        INDEX.texts.iter().map(|t| parse::definition_name(t))
    }

    /// The tables as they were compiled in: what a fingerprint of the built-in API is made of.
    pub fn tables(&self) -> [&'static str; 3] {
        [KINDS, GVKS, TYPES]
    }

    /// `x-kubernetes-unions` of a definition, as JSON text.
    pub fn unions(&self, name: &str) -> Option<&'static str> {
        let row = *INDEX.by_name.get(name)?;
        parse::definition_attribute(INDEX.texts[row as usize], "unions")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{ListType, Node};

    #[test]
    fn deployment_is_complete() {
        let c = builtin();
        let d = c.object_of(&Gvk::new("apps", "v1", "Deployment")).expect("served");
        assert_eq!(d.name, "io.k8s.api.apps.v1.Deployment");
        let Node::Object(spec) = &d.field("spec").expect("spec").node else { panic!("spec is an object") };
        let template = spec.get().field("template").expect("template");
        assert!(template.required && !template.pointer && template.tag == 3);
        let Node::Object(template) = &template.node else { panic!("template is an object") };
        let Node::Object(pod) = &template.get().field("spec").expect("spec").node else { panic!("an object") };
        let Node::List(containers) = &pod.get().field("containers").expect("containers").node else { panic!("a list") };
        assert_eq!(
            (containers.list_type, containers.map_keys.as_slice()),
            (ListType::Map, ["name".to_owned()].as_slice())
        );
        let Node::List(volumes) = &pod.get().field("volumes").expect("volumes").node else { panic!("a list") };
        let Node::Object(volume) = &volumes.item else { panic!("an object") };
        let host_path = volume.get();
        let host_path = host_path.field("hostPath").expect("hostPath");
        assert_eq!((host_path.tag, host_path.inline_tags.as_slice()), (1, [2].as_slice()));
    }

    #[test]
    fn every_definition_builds_and_every_reference_resolves() {
        let c = builtin();
        let mut fields = 0;
        for name in c.names() {
            let o = c.object(name).expect("listed");
            fields += o.fields.len();
            crate::facts::tests::check_refs(&o);
        }
        assert!(fields > 2000, "{fields} fields");
    }

    fn check_refs(o: &Object) {
        fn node(n: &Node) -> bool {
            match n {
                Node::Object(r) | Node::SchemaOrArray(r) | Node::SchemaOrBool(r) | Node::SchemaOrStringArray(r) => {
                    !r.get().name.is_empty()
                }
                Node::List(l) => node(&l.item),
                Node::Map(m) => node(&m.value),
                _ => true,
            }
        }
        for f in &o.fields {
            assert!(node(&f.node), "{}.{}", o.name, f.name);
        }
    }

    #[test]
    fn kinds_as_discovery_shows_them() {
        let pods = builtin().kinds().iter().find(|k| k.resource == "pods").expect("pods");
        assert_eq!((pods.gvk.kind.as_str(), pods.namespaced, pods.list_kind.as_str()), ("Pod", true, "PodList"));
        assert_eq!(
            (pods.short_names.as_slice(), pods.categories.as_slice()),
            (["po".to_owned()].as_slice(), ["all".to_owned()].as_slice())
        );
        let eviction = pods.subresources.iter().find(|s| s.0 == "eviction").expect("eviction");
        assert_eq!(eviction.1, Some(Gvk::new("policy", "v1", "Eviction")));
        assert!(builtin().kinds().iter().all(|k| !k.schema.fields.is_empty()));
        assert!(builtin().object_of(&Gvk::new("apps", "v1", "DeleteOptions")).is_some());
        assert!(builtin().object_of(&Gvk::new("apps", "v1", "Nothing")).is_none());
    }
}
