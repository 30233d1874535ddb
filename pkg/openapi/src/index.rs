//! What documents there are, and the hashes that tell clients whether theirs is still good.

use crate::descriptions::FINGERPRINT;
use isopod_kinds::Kind;
use isopod_schema::facts;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Where clients of service-account tokens find who signs these (OpenID Connect Discovery 1.0).
pub const OPENID_CONFIGURATION: &str = ".well-known/openid-configuration";
pub const OPENID_KEYS: &str = "openid/v1/jwks";

/// The paths of the v3 index: `api`, `api/v1`, `apis`, `apis/apps`, `apis/apps/v1`, `version` …
pub fn group_versions(kinds: &[Arc<Kind>]) -> BTreeSet<String> {
    let others = ["api", "apis", "version", OPENID_CONFIGURATION, OPENID_KEYS];
    let mut out: BTreeSet<String> = others.into_iter().map(str::to_owned).collect();
    for kind in kinds {
        if kind.gvk.group.is_empty() {
            out.insert(format!("api/{}", kind.gvk.version));
        } else {
            out.insert(format!("apis/{}", kind.gvk.group));
            out.insert(format!("apis/{}/{}", kind.gvk.group, kind.gvk.version));
        }
    }
    out
}

/// The hash of a document. Of built-in kinds it is made from the compiled-in facts, which decide the document; of custom
/// resources from the document itself.
pub fn hash(kinds: &[Arc<Kind>], path: &str) -> String {
    let mut digest = Sha256::new();
    digest.update(env!("CARGO_PKG_VERSION"));
    digest.update(FINGERPRINT);
    digest.update(path);
    for table in facts::builtin().tables() {
        digest.update(table);
    }
    let mut custom = false;
    for kind in kinds.iter().filter(|k| belongs(k, path)) {
        custom |= kind.schema.custom;
        digest.update(format!("{} {} {:?} {:?};", kind.gvk, kind.resource, kind.verbs, kind.subresources));
    }
    if custom {
        digest.update(crate::v3(kinds, path).map(|d| d.to_string()).unwrap_or_default());
    }
    hex::encode_upper(digest.finalize())
}

/// Whether a kind is in a document.
pub fn belongs(kind: &Kind, path: &str) -> bool {
    let api_version = kind.gvk.api_version();
    path.strip_prefix("apis/").or_else(|| path.strip_prefix("api/")).is_some_and(|gv| gv == api_version)
}

/// `/openapi/v3`: where the documents are. A path with its hash may be cached for ever.
pub fn v3_index(kinds: &[Arc<Kind>]) -> Value {
    let paths: Map<String, Value> = group_versions(kinds)
        .into_iter()
        .map(|path| {
            let url = format!("/openapi/v3/{path}?hash={}", hash(kinds, &path));
            (path, json!({"serverRelativeURL": url}))
        })
        .collect();
    json!({"paths": paths})
}
