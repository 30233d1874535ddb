//! Authorizers one after another: the first that has an opinion decides (`apiserver/pkg/authorization/union`).

use crate::rule::PolicyRule;
use crate::{Attributes, Authorizer, Decision};
use isopod_api::user;
use std::sync::Arc;

/// The first opinion decides; without one, all reasons are given, each with the name of the authorizer.
pub struct Union(pub Vec<(&'static str, Arc<dyn Authorizer>)>);

impl Authorizer for Union {
    fn authorize(&self, attributes: &Attributes) -> Decision {
        let mut reasons = Vec::new();
        for (name, authorizer) in &self.0 {
            match authorizer.authorize(attributes) {
                Decision::NoOpinion(reason) if reason.is_empty() => {}
                Decision::NoOpinion(reason) => reasons.push(format!("{name}: {reason}")),
                decided => return decided,
            }
        }
        Decision::NoOpinion(reasons.join("\n"))
    }
}

/// Members of `system:masters` may do everything: the way back in when RBAC objects are broken.
pub struct Masters;

impl Authorizer for Masters {
    fn authorize(&self, attributes: &Attributes) -> Decision {
        let reason = String::new();
        if attributes.user.in_group(user::SYSTEM_MASTERS) {
            Decision::Allow(reason)
        } else {
            Decision::NoOpinion(reason)
        }
    }
}

/// Paths that everybody may ask, `--authorization-always-allow-paths`.
pub struct AlwaysAllowPaths {
    paths: PolicyRule,
}

impl Default for AlwaysAllowPaths {
    /// Upstream's: the health checks.
    fn default() -> Self {
        Self::new(["/healthz", "/readyz", "/livez"])
    }
}

impl AlwaysAllowPaths {
    /// A path that ends in `*` allows all that begin with it.
    pub fn new<'a>(paths: impl IntoIterator<Item = &'a str>) -> Self {
        let urls = paths.into_iter().map(str::to_owned).collect();
        AlwaysAllowPaths {
            paths: PolicyRule { verbs: vec!["*".into()], non_resource_urls: urls, ..Default::default() },
        }
    }
}

impl Authorizer for AlwaysAllowPaths {
    fn authorize(&self, attributes: &Attributes) -> Decision {
        let allowed = !attributes.is_resource && self.paths.allows(attributes);
        if allowed { Decision::Allow(String::new()) } else { Decision::NoOpinion(String::new()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use isopod_api::UserInfo;

    struct Says(Decision);
    impl Authorizer for Says {
        fn authorize(&self, _: &Attributes) -> Decision {
            self.0.clone()
        }
    }

    #[test]
    fn the_first_opinion_decides() {
        let no = |r: &str| Decision::NoOpinion(r.into());
        let (yes, deny) = (Decision::Allow("a".into()), Decision::Deny("d".into()));
        let table = [
            (vec![no("x"), yes.clone(), deny.clone()], yes.clone()),
            (vec![deny.clone(), yes], deny),
            (vec![no("x"), no(""), no("y")], no("a: x\na: y")),
            (vec![], no("")),
        ];
        for (says, want) in table {
            let union = Union(says.into_iter().map(|d| ("a", Arc::new(Says(d)) as Arc<dyn Authorizer>)).collect());
            assert_eq!(union.authorize(&Attributes::default()), want);
        }
    }

    #[test]
    fn masters_and_health() {
        let mut a = Attributes { user: UserInfo::new("x", &["system:masters"]), ..Default::default() };
        assert!(matches!(Masters.authorize(&a), Decision::Allow(_)));
        a.user.groups.clear();
        assert!(matches!(Masters.authorize(&a), Decision::NoOpinion(_)));
        let paths = AlwaysAllowPaths::default();
        for (path, want) in [("/healthz", true), ("/livez", true), ("/healthz/etcd", false), ("/version", false)] {
            a = Attributes { verb: "get".into(), path: path.into(), ..Default::default() };
            assert_eq!(matches!(paths.authorize(&a), Decision::Allow(_)), want, "{path}");
        }
    }
}
