//! An authorizer for tests that are not about authorization.

use isopod_auth::{Attributes, Authorizer, Decision};

/// Allows everything to everybody who is authenticated.
pub struct AllowAll;

impl Authorizer for AllowAll {
    fn authorize(&self, attributes: &Attributes) -> Decision {
        if attributes.user.in_group(isopod_api::user::UNAUTHENTICATED) {
            return Decision::NoOpinion(String::new());
        }
        Decision::Allow(String::new())
    }
}
