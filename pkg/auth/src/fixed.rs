//! Authorizers that know without looking (`apiserver/pkg/authorization/authorizerfactory`).

use crate::rule::PolicyRule;
use crate::{Attributes, Authorizer, Decision, Rules};
use isopod_api::{UserInfo, user};

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

/// Everybody may do everything.
pub struct AlwaysAllow;

impl Authorizer for AlwaysAllow {
    fn authorize(&self, _: &Attributes) -> Decision {
        Decision::Allow(String::new())
    }

    fn rules_for(&self, _: &UserInfo, _: &str) -> Rules {
        let all = || vec!["*".to_owned()];
        let resources = PolicyRule { verbs: all(), api_groups: all(), resources: all(), ..Default::default() };
        let others = PolicyRule { verbs: all(), non_resource_urls: all(), ..Default::default() };
        Rules { rules: vec![resources, others], errors: Vec::new() }
    }
}

/// Nobody may do anything because of it; others may still allow it.
pub struct AlwaysDeny;

impl Authorizer for AlwaysDeny {
    fn authorize(&self, _: &Attributes) -> Decision {
        Decision::NoOpinion("Everything is forbidden.".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masters_are_allowed_and_others_are_left_to_others() {
        let mut a = Attributes { user: UserInfo::new("x", &["system:masters"]), ..Default::default() };
        assert!(matches!(Masters.authorize(&a), Decision::Allow(_)));
        assert!(matches!(AlwaysDeny.authorize(&a), Decision::NoOpinion(_)));
        a.user.groups.clear();
        assert!(matches!(Masters.authorize(&a), Decision::NoOpinion(_)));
        assert!(matches!(AlwaysAllow.authorize(&a), Decision::Allow(_)));
        assert_eq!(AlwaysAllow.rules_for(&a.user, "x").rules.len(), 2);
    }
}
