//! Everything that is served, here or elsewhere, by group and version in the order of preference: what discovery tells.

use super::autoregister::{CUSTOM, name_of, priorities};
use super::{ApiService, Table};
use crate::registry::Registry;
use isopod_kinds::Kind;
use isopod_kinds::table::version_priority;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Who serves a version.
pub enum Source<'a> {
    Here(Vec<&'a Arc<Kind>>),
    Elsewhere(&'a ApiService),
    /// An APIService says it is served here, and it is not.
    Nobody,
}

pub struct Version<'a> {
    pub name: &'a str,
    pub source: Source<'a>,
    priorities: (i64, i64),
}

pub struct Group<'a> {
    pub name: &'a str,
    pub versions: Vec<Version<'a>>,
}

impl Group<'_> {
    fn priority(&self) -> i64 {
        self.versions.iter().map(|v| v.priorities.0).max().unwrap_or_default()
    }

    /// The first of its APIServices among those that give it its priority.
    fn first_name(&self) -> String {
        let highest = self.priority();
        let names = self.versions.iter().filter(|v| v.priorities.0 == highest).map(|v| name_of(self.name, v.name));
        names.min().unwrap_or_default()
    }
}

/// Which of the two documents is made: groups of the same priority stand in another order.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Document {
    List,
    Aggregated,
}

/// The groups, that of the core among them.
pub fn groups<'a>(registry: &'a Registry, table: &'a Table, document: Document) -> Vec<Group<'a>> {
    let mut all: BTreeMap<&str, Vec<Version>> = BTreeMap::new();
    for (group, versions) in registry.groups() {
        for (name, kinds) in versions {
            let known = table.get(group, name);
            let own = if kinds.iter().any(|k| k.schema.custom) { Some(CUSTOM) } else { priorities(group, name) };
            let told = known.map(|s| (s.group_priority, s.version_priority));
            let source = match known.filter(|s| s.is_remote()) {
                Some(service) => Source::Elsewhere(service),
                None => Source::Here(kinds),
            };
            let priorities = told.or(own).unwrap_or_default();
            all.entry(group).or_default().push(Version { name, source, priorities });
        }
    }
    for service in table.all() {
        let versions = all.entry(&service.group).or_default();
        if versions.iter().any(|v| v.name == service.version) {
            continue;
        }
        let source = if service.is_remote() { Source::Elsewhere(service) } else { Source::Nobody };
        let priorities = (service.group_priority, service.version_priority);
        versions.push(Version { name: &service.version, source, priorities });
    }
    let mut all: Vec<Group> = all.into_iter().map(|(name, versions)| Group { name, versions }).collect();
    for group in &mut all {
        group.versions.sort_by_key(|v| Reverse((v.priorities.1, version_priority(v.name))));
    }
    match document {
        Document::List => all.sort_by_cached_key(|g| (Reverse(g.priority()), g.first_name())),
        Document::Aggregated => all.sort_by_key(|g| (Reverse(g.priority()), g.name)),
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn priorities_order_groups_and_versions() {
        let service = |group: &str, version: &str, priorities: (i64, i64)| {
            let spec = json!({"group": group, "version": version, "groupPriorityMinimum": priorities.0, "versionPriority": priorities.1});
            ApiService::new(&json!({"metadata": {"name": format!("{version}.{group}")}, "spec": spec}), None)
        };
        let services = [
            service("b.io", "v1", (1000, 100)),
            service("a.io", "v1beta1", (1000, 100)),
            service("c.io", "v1", (2000, 10)),
            service("c.io", "v2", (10, 20)),
            service("c.io", "v1beta1", (10, 20)),
        ];
        let table = Table::new(services.into_iter());
        let registry = Registry::default();
        let order = |document| {
            let all = groups(&registry, &table, document);
            let text =
                |g: &Group| format!("{}:{}", g.name, g.versions.iter().map(|v| v.name).collect::<Vec<_>>().join(","));
            all.iter().map(text).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(order(Document::List), "c.io:v2,v1beta1,v1 b.io:v1 a.io:v1beta1");
        assert_eq!(order(Document::Aggregated), "c.io:v2,v1beta1,v1 a.io:v1beta1 b.io:v1");
    }
}
