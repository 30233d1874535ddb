//! The kinds that are served. Built-in and custom kinds are the same [`Kind`]; the set is swapped as a whole.

use foldhash::fast::RandomState;
use isopod_kinds::Kind;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// A set of served kinds.
#[derive(Clone, Default)]
pub struct Registry {
    /// In the order of `ordered`. A resource is in few groups and versions, so a look-up compares few kinds and copies no text.
    /// Looked up many times for each request.
    by_resource: HashMap<String, Vec<Arc<Kind>>, RandomState>,
    /// In discovery's order: group, then version by priority, then resource.
    ordered: Vec<Arc<Kind>>,
    /// Versions that are stored only.
    unserved: Vec<Arc<Kind>>,
}

impl Registry {
    pub fn new(kinds: impl IntoIterator<Item = Arc<Kind>>) -> Self {
        let (mut ordered, unserved): (Vec<Arc<Kind>>, Vec<Arc<Kind>>) = kinds.into_iter().partition(|k| k.served);
        ordered.sort_by(|a, b| {
            let key = |k: &Kind| (k.gvk.group.clone(), std::cmp::Reverse(k.version_priority), k.gvk.version.clone());
            key(a).cmp(&key(b)).then_with(|| a.resource.cmp(&b.resource))
        });
        let mut by_resource: HashMap<String, Vec<Arc<Kind>>, RandomState> = HashMap::default();
        for kind in &ordered {
            by_resource.entry(kind.resource.clone()).or_default().push(kind.clone());
        }
        Registry { by_resource, ordered, unserved }
    }

    pub fn get(&self, group: &str, version: &str, resource: &str) -> Option<&Arc<Kind>> {
        self.by_resource.get(resource)?.iter().rfind(|k| k.gvk.group == group && k.gvk.version == version)
    }

    /// Any served version of a resource, the stored one if it is served.
    pub fn resource(&self, group: &str, resource: &str) -> Option<&Arc<Kind>> {
        let mut all = self.by_resource.get(resource)?.iter().filter(|k| k.gvk.group == group);
        let first = all.next()?;
        if first.gvk == first.storage.gvk {
            return Some(first);
        }
        all.find(|k| k.gvk == k.storage.gvk).or(Some(first))
    }

    /// The kind that an object of this `apiVersion` and `kind` has.
    pub fn kind(&self, api_version: &str, kind: &str) -> Option<&Arc<Kind>> {
        self.ordered.iter().find(|k| k.gvk.kind == kind && k.gvk.api_version() == api_version)
    }

    /// The kind whose schema the stored bytes of `kind` have.
    pub fn stored(&self, kind: &Arc<Kind>) -> Arc<Kind> {
        if kind.gvk == kind.storage.gvk {
            return kind.clone();
        }
        let same = |k: &&Arc<Kind>| k.gvk == kind.storage.gvk && k.storage.prefix == kind.storage.prefix;
        self.ordered.iter().chain(&self.unserved).find(same).unwrap_or(kind).clone()
    }

    pub fn all(&self) -> &[Arc<Kind>] {
        &self.ordered
    }

    /// Group → versions in order of preference → kinds.
    pub fn groups(&self) -> BTreeMap<&str, Vec<(&str, Vec<&Arc<Kind>>)>> {
        let mut groups: BTreeMap<&str, Vec<(&str, Vec<&Arc<Kind>>)>> = BTreeMap::new();
        for kind in &self.ordered {
            let versions = groups.entry(&kind.gvk.group).or_default();
            match versions.iter_mut().find(|(v, _)| *v == kind.gvk.version) {
                Some((_, kinds)) => kinds.push(kind),
                None => versions.push((&kind.gvk.version, vec![kind])),
            }
        }
        groups
    }
}
