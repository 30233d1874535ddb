//! Continue tokens, byte for byte upstream's (`apiserver/pkg/storage/continue.go`): they name a revision and a key, so they
//! survive a restart and mean the same on any server.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use isopod_api::Status;
use isopod_store::Revision;
use serde::{Deserialize, Serialize};

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Encoded {
    #[serde(rename = "v", default)]
    version: String,
    #[serde(rename = "rv", default)]
    revision: Revision,
    #[serde(rename = "start", default)]
    start: String,
}

/// Where the next page begins.
#[derive(Debug, PartialEq, Eq)]
pub struct Continue {
    pub revision: Revision,
    /// The first key that may follow, relative to the list's prefix.
    pub start: String,
}

impl Continue {
    /// The page after `last`.
    pub fn after(last: &str, revision: Revision) -> Self {
        Continue { revision, start: format!("{last}\0") }
    }

    pub fn encode(&self) -> String {
        let encoded = Encoded { version: "meta.k8s.io/v1".into(), revision: self.revision, start: self.start.clone() };
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&encoded).unwrap_or_default())
    }

    pub fn decode(token: &str) -> Result<Self, Status> {
        let invalid =
            |why: &str| Status::bad_request(format!("invalid continue token: continue key is not valid: {why}"));
        let bytes = URL_SAFE_NO_PAD.decode(token.trim_end_matches('='));
        let bytes = bytes.map_err(|_| invalid("illegal base64 data"))?;
        let parsed = isopod_schema::json::parse(&bytes).map_err(|e| invalid(&e.to_string()))?;
        let encoded: Encoded = serde_json::from_value(parsed).map_err(|e| invalid(&e.to_string()))?;
        if encoded.version != "meta.k8s.io/v1" {
            let v = encoded.version;
            return Err(invalid(&format!("server does not recognize this encoded version {v:?}")));
        }
        if encoded.start.is_empty() {
            return Err(invalid("encoded start key empty (version meta.k8s.io/v1)"));
        }
        if encoded.revision == 0 {
            return Err(invalid("incorrect encoded start resourceVersion (version meta.k8s.io/v1)"));
        }
        if encoded.start.split('/').any(|part| part == "..") {
            return Err(invalid(&encoded.start));
        }
        Ok(Continue { revision: encoded.revision, start: encoded.start })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_upstreams() {
        let token = Continue::after("default/a", 42);
        let want = URL_SAFE_NO_PAD.encode(r#"{"v":"meta.k8s.io/v1","rv":42,"start":"default/a\u0000"}"#);
        assert_eq!(token.encode(), want);
        assert_eq!(Continue::decode(&want).unwrap(), token);
        let words = Continue::decode("nonsense").unwrap_err().message;
        assert!(words.ends_with(r"invalid character '\u009e' looking for beginning of value"), "{words}");
        for bad in ["x", "e30", &URL_SAFE_NO_PAD.encode(r#"{"v":"meta.k8s.io/v1","rv":1,"start":"../a"}"#)] {
            assert_eq!(Continue::decode(bad).unwrap_err().code, 400, "{bad}");
        }
    }
}
