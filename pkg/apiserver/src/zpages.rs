//! `/statusz` and `/flagz` (KEP-4827, KEP-4828): what runs here and how it was started, as a text for people or as an object.

use crate::encode::negotiate::{self, Form, JSON, Media, YAML};
use crate::encode::{self, body};
use crate::request::Query;
use crate::{ApiServer, discovery, nonresource};
use axum::response::Response;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use isopod_api::{Status, time};
use rand::seq::IndexedRandom;
use serde_json::{Value, json};
use std::collections::BTreeSet;

pub const STATUSZ: &str = "/statusz";
pub const FLAGZ: &str = "/flagz";

const GROUP: &str = "config.k8s.io";
const COMPONENT: &str = "apiserver";
/// One of them, so that nobody comes to parse the text.
const DELIMITERS: [&str; 4] = [":", ": ", "=", " "];
/// Paths that are there for more than debugging.
const OTHERS: [&str; 5] = ["/apis", "/api", "/openid", "/openapi", "/.well-known"];

/// A form of a page.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    Text,
    Object { media: Media, version: &'static str },
}

/// `None`: it is not served here.
pub fn serve(server: &ApiServer, path: &str, query: &Query, headers: &HeaderMap) -> Result<Option<Response>, Status> {
    if path == FLAGZ && server.config.flags.is_none() {
        return Ok(None);
    }
    let kind = if path == STATUSZ { "Statusz" } else { "Flagz" };
    let Wanted::Object { media, version } = wanted(headers, kind)? else {
        let text = if path == STATUSZ { status_text(server) } else { flags_text(server) };
        return Ok(Some(nonresource::text("text/plain; charset=utf-8", text)));
    };
    let mut object = if path == STATUSZ { status(server) } else { json!({ "flags": server.config.flags }) };
    object["kind"] = kind.into();
    object["apiVersion"] = format!("{GROUP}/{version}").into();
    object["metadata"] = json!({ "name": COMPONENT });
    let form = Form { media, pretty: negotiate::pretty(headers, query), ..Form::default() };
    let mut response = body::response(200, &form, encode::text(&object, &form));
    let content_type = format!("{};g={GROUP};v={version};as={kind}", media.name());
    set(&mut response, header::CONTENT_TYPE, &content_type);
    if version == "v1alpha1" {
        let page = path.trim_start_matches('/');
        let why = format!("This version of the {page} endpoint is deprecated. Please use a newer version.");
        set(&mut response, header::WARNING, &format!("299 - \"{why}\""));
    }
    Ok(Some(response))
}

fn set(response: &mut Response, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

/// Objects must be asked for by version and kind; everything else gets the text, if it takes one.
fn wanted(headers: &HeaderMap, kind: &str) -> Result<Wanted, Status> {
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if accept.trim().is_empty() {
        return Ok(Wanted::Text);
    }
    for clause in negotiate::clauses(accept) {
        let param = |k: &str| clause.params.iter().find(|(p, _)| *p == k).map(|(_, v)| *v);
        let target = ["as", "g", "v"].map(param);
        let version = match target {
            [None, None, None] => None,
            [Some(k), Some(GROUP), Some("v1beta1")] if k == kind => Some("v1beta1"),
            [Some(k), Some(GROUP), Some("v1alpha1")] if k == kind => Some("v1alpha1"),
            _ => continue,
        };
        match (clause.media, version) {
            (JSON | "application/*" | "*/*", Some(version)) => {
                return Ok(Wanted::Object { media: Media::Json, version });
            }
            (YAML, Some(version)) => return Ok(Wanted::Object { media: Media::Yaml, version }),
            ("text/plain" | "text/*" | "*/*", None) => return Ok(Wanted::Text),
            _ => {}
        }
    }
    let all = [JSON, YAML, "text/plain"].join(", ");
    Err(Status::not_acceptable(format!("only the following media types are accepted: {all}")))
}

fn status(server: &ApiServer) -> Value {
    let version = nonresource::version();
    let emulated = format!("{}.{}", text(&version, "emulationMajor"), text(&version, "emulationMinor"));
    json!({
        "startTime": time::format(server.started),
        "uptimeSeconds": uptime(server),
        "goVersion": version["goVersion"],
        "binaryVersion": binary_version(&version),
        "emulationVersion": emulated,
        "paths": paths(server),
    })
}

fn text<'a>(version: &'a Value, key: &str) -> &'a str {
    version[key].as_str().unwrap_or_default()
}

/// Without what is no number in it.
fn binary_version(version: &Value) -> &str {
    let text = text(version, "gitVersion").trim_start_matches('v');
    text.split(['+', '-']).next().unwrap_or_default()
}

fn uptime(server: &ApiServer) -> i64 {
    server.config.clock.now().duration_since(server.started).as_secs().max(0)
}

/// The first parts of the paths that are served for debugging.
fn paths(server: &ApiServer) -> BTreeSet<String> {
    let all = discovery::paths(server);
    let first = all.iter().filter_map(|p| p.split('/').nth(1).filter(|f| !f.is_empty()).map(|f| format!("/{f}")));
    first.filter(|f| !OTHERS.contains(&f.as_str())).collect()
}

fn head(page: &str) -> String {
    format!(
        "\n{COMPONENT} {page}\nWarning: This endpoint is not meant to be machine parseable, has no formatting compatibility \
         guarantees and is for debugging purposes only.\n"
    )
}

fn delimiter() -> &'static str {
    DELIMITERS.choose(&mut rand::rng()).copied().unwrap_or(":")
}

fn status_text(server: &ApiServer) -> String {
    let (status, up, d) = (status(server), uptime(server), delimiter());
    let started = server.started.strftime("%a %b %e %H:%M:%S UTC %Y");
    let up = format!("{} hr {:02} min {:02} sec", up / 3600, (up / 60) % 60, up % 60);
    let paths: Vec<String> = paths(server).into_iter().collect();
    format!(
        "{}\nStarted{d} {started}\nUp{d} {up}\nGo version{d} {}\nBinary version{d} {}\nEmulation version{d} {}\nPaths{d} {}\n",
        head("statusz"),
        text(&status, "goVersion"),
        text(&status, "binaryVersion"),
        text(&status, "emulationVersion"),
        paths.join(" "),
    )
}

fn flags_text(server: &ApiServer) -> String {
    let (mut page, d) = (head("flagz"), delimiter());
    for (name, value) in server.config.flags.iter().flatten() {
        page.push_str(&format!("{name}{d}{value}\n"));
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_asked_for_by_name() {
        let check = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("accept", accept.parse().unwrap());
            wanted(&headers, "Flagz").map_err(|s| s.code)
        };
        let object = |media, version| Ok(Wanted::Object { media, version });
        assert_eq!(check(""), Ok(Wanted::Text));
        assert_eq!(check("*/*"), Ok(Wanted::Text));
        assert_eq!(check("text/html, text/plain;q=0.5"), Ok(Wanted::Text));
        assert_eq!(check("application/json"), Err(406));
        assert_eq!(check("application/json;as=Flagz;v=v1beta1;g=config.k8s.io"), object(Media::Json, "v1beta1"));
        assert_eq!(check("application/yaml;as=Flagz;v=v1alpha1;g=config.k8s.io"), object(Media::Yaml, "v1alpha1"));
        assert_eq!(check("application/json;as=Statusz;v=v1beta1;g=config.k8s.io"), Err(406));
        assert_eq!(check("application/json;as=Flagz;v=v1;g=config.k8s.io,text/plain"), Ok(Wanted::Text));
        assert_eq!(check("application/vnd.kubernetes.protobuf"), Err(406));
    }
}
