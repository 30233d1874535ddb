//! What a server answers to a request for a document, without any HTTP library.

use crate::merge::{Converted, Elsewhere, merge};
use crate::{V2_PROTOBUF, V3_PROTOBUF, hash, v2, v2_protobuf, v3, v3_index, v3_protobuf};
use isopod_kinds::Kind;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::sync::Arc;

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";
/// Names that clients still use. With `@` they are no valid media types, so answers carry the ones with dots.
const V2_PROTOBUF_AT: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
const V2_PROTOBUF_OLD: &str = "application/com.github.googleapis.gnostic.OpenAPIv2@68f4ded+protobuf";
const V3_PROTOBUF_AT: &str = "application/com.github.proto-openapi.spec.v3@v1.0+protobuf";

/// A complete answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// 200, 301 (see `location`) or 406.
    pub status: u16,
    pub content_type: &'static str,
    /// Without quotes; empty where there is none. A server may answer 304 to an `If-None-Match` of it.
    pub etag: String,
    /// The request named the right hash: the answer may be cached for ever (`Cache-Control: public, immutable`).
    pub immutable: bool,
    pub location: Option<String>,
    pub body: Vec<u8>,
}

impl Answer {
    fn ok(content_type: &'static str, etag: String, body: Vec<u8>) -> Self {
        Answer { status: 200, content_type, etag, immutable: false, location: None, body }
    }
}

/// Media types of an `Accept` header in the order of preference, parameters dropped.
fn accepted(accept: &str) -> Vec<String> {
    let mut clauses: Vec<(String, u32)> = accept
        .split(',')
        .filter_map(|clause| {
            let mut parts = clause.split(';').map(str::trim);
            let media_type = parts.next().filter(|m| !m.is_empty())?.to_owned();
            let q = parts.find_map(|p| p.strip_prefix("q=")).and_then(|q| q.parse::<f32>().ok()).unwrap_or(1.0);
            Some((media_type, (q * 1000.0) as u32))
        })
        .collect();
    clauses.sort_by_key(|(_, q)| std::cmp::Reverse(*q));
    if clauses.is_empty() {
        return vec!["*/*".to_owned()];
    }
    clauses.into_iter().map(|(media_type, _)| media_type).collect()
}

/// Chooses between JSON and protobuf, whose first name is the one that answers carry; `None`: neither is wanted.
fn negotiate(accept: &str, protobuf: &[&'static str]) -> Option<&'static str> {
    accepted(accept).iter().find_map(|wanted| match wanted.as_str() {
        JSON | "*/*" | "application/*" => Some(JSON),
        other if protobuf.iter().any(|p| other.eq_ignore_ascii_case(p)) => protobuf.first().copied(),
        _ => None,
    })
}

/// Answers `GET /openapi/…`. `elsewhere`: what other servers serve under the same roof.
/// `requested_hash` is the query parameter `hash`, empty without one. `None`: no such document.
pub fn answer(
    kinds: &[Arc<Kind>],
    elsewhere: &Elsewhere,
    path: &str,
    requested_hash: &str,
    accept: &str,
) -> Option<Answer> {
    match path.strip_prefix('/')? {
        "openapi/v2" => Some(swagger(kinds, elsewhere, accept)),
        "openapi/v3" => {
            let mut index = v3_index(kinds);
            for (path, url) in elsewhere.urls {
                index["paths"][path] = json!({"serverRelativeURL": url});
            }
            for Converted { path, hash, .. } in &elsewhere.converted {
                index["paths"][path] = json!({"serverRelativeURL": format!("/openapi/v3/{path}?hash={hash}")});
            }
            // Upstream's index does not say what it is, and has no tag: it is small, and the documents have their hashes.
            Some(Answer::ok(TEXT, String::new(), index.to_string().into_bytes()))
        }
        other => {
            let path = other.strip_prefix("openapi/v3/")?;
            if let Some(converted) = elsewhere.converted.iter().find(|c| c.path == path) {
                return Some(document(path, converted.hash.to_owned(), requested_hash, accept, || {
                    converted.document.clone()
                }));
            }
            if !crate::group_versions(kinds).contains(path) {
                return None;
            }
            let made = || v3(kinds, path).unwrap_or_default();
            Some(document(path, hash(kinds, path), requested_hash, accept, made))
        }
    }
}

fn not_acceptable() -> Answer {
    Answer { status: 406, ..Answer::ok(JSON, String::new(), Vec::new()) }
}

fn swagger(kinds: &[Arc<Kind>], elsewhere: &Elsewhere, accept: &str) -> Answer {
    let Some(content_type) = negotiate(accept, &[V2_PROTOBUF, V2_PROTOBUF_AT, V2_PROTOBUF_OLD]) else {
        return not_acceptable();
    };
    let mut digest = Sha256::new();
    crate::group_versions(kinds).iter().for_each(|gv| digest.update(hash(kinds, gv)));
    let mut document = v2(kinds);
    for part in &elsewhere.swagger {
        digest.update(part.path);
        digest.update(part.etag);
        merge(&mut document, part);
    }
    let body = if content_type == JSON { document.to_string().into_bytes() } else { v2_protobuf(&document) };
    Answer::ok(content_type, hex::encode_upper(digest.finalize()), body)
}

/// A v3 document, made only where it is sent.
fn document(path: &str, current: String, requested_hash: &str, accept: &str, made: impl FnOnce() -> Value) -> Answer {
    let Some(content_type) = negotiate(accept, &[V3_PROTOBUF, V3_PROTOBUF_AT]) else {
        return not_acceptable();
    };
    if !requested_hash.is_empty() && requested_hash != current {
        let location = format!("/openapi/v3/{path}?hash={current}");
        return Answer { status: 301, location: Some(location), ..Answer::ok(content_type, current, Vec::new()) };
    }
    let document = made();
    let body = if content_type == JSON { document.to_string().into_bytes() } else { v3_protobuf(&document) };
    Answer { immutable: !requested_hash.is_empty(), ..Answer::ok(content_type, current, body) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use isopod_kinds::table;
    use isopod_schema::proto::wire::Reader;

    #[test]
    fn negotiation_and_caching() {
        let kinds = table::builtin();
        let get = |path: &str, hash: &str, accept: &str| answer(&kinds, &Elsewhere::default(), path, hash, accept);
        let index = get("/openapi/v3", "", "application/json").expect("served");
        let index: serde_json::Value = serde_json::from_slice(&index.body).expect("JSON");
        let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().expect("listed");
        let (path, hash) = url.split_once("?hash=").expect("with its hash");

        let json = get(path, hash, "*/*").expect("served");
        assert_eq!((json.status, json.content_type, json.immutable), (200, JSON, true));
        let proto = get(path, hash, V3_PROTOBUF_AT).expect("served");
        assert_eq!((proto.status, proto.content_type), (200, V3_PROTOBUF));
        assert_eq!(proto.etag, json.etag);
        let old = get(path, "old", JSON).expect("served");
        assert_eq!((old.status, old.location.as_deref()), (301, Some(url)));
        assert!(!get(path, "", JSON).expect("served").immutable);
        assert_eq!(get(path, "", "text/html").expect("served").status, 406);
        assert_eq!(get("/openapi/v3/apis/nothing/v1", "", JSON), None);
        let preferred = format!("text/html, {JSON};q=0.5, {V3_PROTOBUF}");
        assert_eq!(get(path, "", &preferred).expect("served").content_type, V3_PROTOBUF);
    }

    /// The bytes of the first field with this number, of the message at the end of a path of numbers.
    fn find<'a>(message: &'a [u8], path: &[(u64, Option<&str>)]) -> Option<&'a [u8]> {
        let Some(((wanted, name), rest)) = path.split_first() else { return Some(message) };
        let mut r = Reader::new(message);
        while !r.is_empty() {
            let (tag, wire_type) = r.tag().expect("valid");
            if wire_type != 2 {
                r.skip(wire_type).expect("valid");
                continue;
            }
            let content = r.bytes().expect("valid");
            let named = |n: &str| find(content, &[(1, None)]) == Some(n.as_bytes());
            if tag == *wanted && name.is_none_or(named) {
                let found = find(content, rest);
                if found.is_some() {
                    return found;
                }
            }
        }
        None
    }

    /// What kubectl looks for before it sends `fieldValidation` and `dryRun`.
    #[test]
    fn kubectl_finds_query_parameters_in_protobuf() {
        let kinds = table::builtin();
        let document =
            answer(&kinds, &Elsewhere::default(), "/openapi/v3/apis/apps/v1", "", V3_PROTOBUF).expect("served").body;
        let path = "/apis/apps/v1/namespaces/{namespace}/deployments/{name}";
        // Document.paths.path[name].value.patch
        let patch = find(&document, &[(4, None), (1, Some(path)), (2, None), (10, None)]).expect("a PATCH operation");
        let extension = "x-kubernetes-group-version-kind";
        let yaml = find(patch, &[(13, Some(extension)), (2, None), (2, None)]).expect("the extension");
        let gvk: serde_json::Value = serde_json::from_slice(yaml).expect("JSON is YAML");
        assert_eq!(gvk, serde_json::json!({"group": "apps", "version": "v1", "kind": "Deployment"}));
        for name in ["fieldValidation", "dryRun"] {
            // Operation.parameters[].parameter.name
            let mut r = Reader::new(patch);
            let mut names = Vec::new();
            while !r.is_empty() {
                match r.tag().expect("valid") {
                    (6, 2) => names.extend(find(r.bytes().expect("valid"), &[(1, None), (1, None)])),
                    (_, wire_type) => r.skip(wire_type).expect("valid"),
                }
            }
            assert!(names.contains(&name.as_bytes()), "{name}");
        }
    }
}
