//! How a definition's versions become one another.

use super::Rules;
use crate::access::Access;
use crate::kinds::admission::{webhook_service, webhook_url};
use crate::validation::check::invalid_each;
use isopod_api::{FieldError, FieldErrors, Path, names};
use serde_json::Value;

/// Versions of the ConversionReview that are known.
pub(super) const REVIEWS: [&str; 2] = ["v1", "v1beta1"];

pub(super) fn conversion(c: &Value, rules: &Rules, path: &Path) -> FieldErrors {
    if c.is_null() {
        return Vec::new();
    }
    let mut errs = super::spec::one_of(c, "strategy", &["None", "Webhook"], path);
    let client = path.child("webhookClientConfig");
    if c.text("strategy") != "Webhook" {
        const WHY: &str = "should not be set when strategy is not set to Webhook";
        if c.has("webhookClientConfig") {
            errs.push(FieldError::forbidden(&client, WHY));
        }
        if !c.is_empty_at("conversionReviewVersions") {
            errs.push(FieldError::forbidden(&path.child("conversionReviewVersions"), WHY));
        }
        return errs;
    }
    let config = c.at("webhookClientConfig");
    match (config.is_null(), config.at("url").as_str(), config.has("service")) {
        (true, ..) => errs.push(FieldError::required(&client, "required when strategy is set to Webhook")),
        (_, Some(url), false) => errs.extend(webhook_url(url, &client.child("url"))),
        (_, None, true) => errs.extend(webhook_service(config.at("service"), &client.child("service"))),
        _ => errs.push(FieldError::required(&client, "exactly one of url or service is required")),
    }
    errs.extend(reviews(&c.texts("conversionReviewVersions"), rules, &path.child("conversionReviewVersions")));
    errs
}

fn reviews(versions: &[&str], rules: &Rules, path: &Path) -> FieldErrors {
    if versions.is_empty() {
        return vec![FieldError::required(path, "")];
    }
    let mut errs = Vec::new();
    for (i, v) in versions.iter().enumerate() {
        if versions[..i].contains(v) {
            errs.push(FieldError::invalid(&path.index(i), *v, "duplicate version"));
        } else {
            errs.extend(invalid_each(&path.index(i), v, names::dns1035_label(v)));
        }
    }
    if rules.known_review && !versions.iter().any(|v| REVIEWS.contains(v)) {
        let m = format!("must include at least one of {}", REVIEWS.join(", "));
        errs.push(FieldError::invalid(path, versions, m));
    }
    errs
}
