//! Which form a client wants: media type, and whether the object, its table, or its metadata alone.

use crate::request::Query;
use http::HeaderMap;
use isopod_api::Status;

pub const JSON: &str = "application/json";
pub const YAML: &str = "application/yaml";
pub const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Media {
    #[default]
    Json,
    Yaml,
    Protobuf,
}

impl Media {
    pub fn name(self) -> &'static str {
        match self {
            Media::Json => JSON,
            Media::Yaml => YAML,
            Media::Protobuf => PROTOBUF,
        }
    }

    /// By the type alone, without parameters.
    pub fn of(name: &str) -> Option<Media> {
        [Media::Json, Media::Yaml, Media::Protobuf].into_iter().find(|m| m.name().eq_ignore_ascii_case(name))
    }
}

/// What of an object is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Shape {
    #[default]
    Object,
    Table(Include),
    /// `PartialObjectMetadata`, and its list for a list.
    Metadata,
}

/// `includeObject`: what of the object stands in a table's row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Include {
    None,
    #[default]
    Metadata,
    Object,
}

/// The form of a response.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Form {
    pub media: Media,
    pub shape: Shape,
    /// `PartialObjectMetadataList` was asked for by name, which only a list can be.
    pub only_list: bool,
    /// `v1beta1` of `meta.k8s.io`, for tables and metadata; else `v1`.
    pub beta: bool,
    pub pretty: bool,
    pub gzip: bool,
}

impl Form {
    pub fn meta_version(&self) -> &'static str {
        if self.beta { "meta.k8s.io/v1beta1" } else { "meta.k8s.io/v1" }
    }

    /// Refuses metadata of one object where the answer is a list, and the reverse. `of`: Go's type of the answer.
    pub fn check(&self, is_list: bool, of: &str) -> Result<(), Status> {
        if self.shape != Shape::Metadata || self.only_list == is_list {
            return Ok(());
        }
        let m = if is_list {
            format!("you requested PartialObjectMetadata, but the requested object is a list ({of})")
        } else {
            format!("you requested PartialObjectMetadataList, but the requested object is not a list ({of})")
        };
        Err(Status::not_acceptable(m))
    }

    /// Equal forms have equal bytes.
    pub fn key(&self) -> u64 {
        use std::hash::{Hash, Hasher};
        let mut hasher = std::hash::DefaultHasher::new();
        (self.media, self.shape, self.beta).hash(&mut hasher);
        hasher.finish()
    }
}

/// One clause of an `Accept` header.
pub struct Clause<'a> {
    pub media: &'a str,
    pub params: Vec<(&'a str, &'a str)>,
    quality: f32,
}

/// Those that are wanted most first.
pub fn clauses(header: &str) -> Vec<Clause<'_>> {
    let mut all: Vec<Clause> = header
        .split(',')
        .map(|clause| {
            let mut parts = clause.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default();
            let params: Vec<_> = parts.filter_map(|p| p.split_once('=')).map(|(k, v)| (k.trim(), v.trim())).collect();
            let quality = params.iter().find(|(k, _)| *k == "q").and_then(|(_, v)| v.parse().ok()).unwrap_or(1.0);
            Clause { media, params, quality }
        })
        .collect();
    all.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    all
}

/// What a route of a resource can answer with.
pub const OBJECTS: [&str; 3] = [JSON, YAML, PROTOBUF];
/// The same for a list, which may become a watch.
pub const LISTS: [&str; 5] =
    [JSON, YAML, PROTOBUF, "application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"];

/// 406 if a route has nothing of what the client accepts. Upstream's router asks this before any handler does, and knows of no
/// wildcard but `*/*`.
pub fn acceptable(headers: &HeaderMap, representations: &[&str]) -> Result<(), Status> {
    let accept = headers.get(http::header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let known = |media: &str| media == "*/*" || representations.contains(&media);
    if accept.trim().is_empty() || clauses(accept).iter().any(|c| known(c.media)) {
        return Ok(());
    }
    let all = representations.join(", ");
    let mut status = Status::not_acceptable(format!("406: Not Acceptable\n\nAvailable representations: {all}"));
    status.details = Some(Default::default());
    Err(status)
}

pub fn takes_gzip(headers: &HeaderMap) -> bool {
    let values = headers.get_all(http::header::ACCEPT_ENCODING).iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).any(|e| e.trim().split(';').next() == Some("gzip"))
}

/// Negotiates the form of an object or list. `transforms`: whether tables and metadata may be asked for.
pub fn form(headers: &HeaderMap, query: &Query, transforms: bool) -> Result<Form, Status> {
    negotiated(headers, query, |clause| accepted(clause, transforms))
}

/// The form of a custom resource: as [`form`], but there is no protobuf of its objects.
pub fn custom_form(headers: &HeaderMap, query: &Query) -> Result<Form, Status> {
    let encodable = |form: &Form| form.media != Media::Protobuf || form.shape != Shape::Object;
    negotiated(headers, query, |clause| accepted(clause, true).filter(encodable))
}

fn negotiated(headers: &HeaderMap, query: &Query, accepted: impl Fn(&Clause) -> Option<Form>) -> Result<Form, Status> {
    let accept = headers.get(http::header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let mut form = if accept.trim().is_empty() {
        Form::default()
    } else {
        let found = clauses(accept).iter().find_map(accepted);
        found.ok_or_else(|| {
            let all = [JSON, YAML, PROTOBUF].join(", ");
            Status::not_acceptable(format!("only the following media types are accepted: {all}"))
        })?
    };
    form.pretty |= pretty(headers, query);
    form.gzip = takes_gzip(headers);
    if let Shape::Table(include) = &mut form.shape {
        *include = match query.get("includeObject").unwrap_or_default() {
            "" | "Metadata" => Include::Metadata,
            "None" => Include::None,
            "Object" => Include::Object,
            other => {
                let m = format!(
                    "Unable to convert to Table as requested: includeObject: Invalid value: {other:?}: must be 'Metadata', 'Object', 'None', or empty"
                );
                return Err(Status::bad_request(m));
            }
        };
    }
    Ok(form)
}

fn accepted(clause: &Clause, transforms: bool) -> Option<Form> {
    let media = match clause.media {
        "*/*" | "application/*" => Media::Json,
        name => Media::of(name)?,
    };
    let param = |k: &str| clause.params.iter().find(|(p, _)| *p == k).map(|(_, v)| *v);
    let mut form = Form { media, pretty: param("pretty") == Some("1"), ..Default::default() };
    if param("stream").is_some_and(|s| !s.is_empty() && s != "watch") {
        return None;
    }
    if let Some(kind) = param("as") {
        if !transforms || param("g") != Some("meta.k8s.io") {
            return None;
        }
        form.beta = match param("v")? {
            "v1" => false,
            "v1beta1" => true,
            _ => return None,
        };
        form.shape = match kind {
            "Table" if media != Media::Protobuf => Shape::Table(Include::default()),
            "PartialObjectMetadata" | "PartialObjectMetadataList" => Shape::Metadata,
            _ => return None,
        };
        form.only_list = kind == "PartialObjectMetadataList";
    }
    Some(form)
}

/// `?pretty=`, or a client that people read.
pub fn pretty(headers: &HeaderMap, query: &Query) -> bool {
    if let Some(v) = query.get("pretty").filter(|v| !v.is_empty()) {
        return matches!(v, "1" | "t" | "T" | "true" | "TRUE" | "True");
    }
    let agent = headers.get(http::header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    ["curl", "Wget", "Mozilla/5.0"].iter().any(|p| agent.starts_with(p))
}

/// The media type of a request's body, or 415. `custom`: of a custom resource, of which there is no protobuf.
pub fn body_media(headers: &HeaderMap, custom: bool) -> Result<Media, Status> {
    let name = headers.get(http::header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let name = name.split(';').next().unwrap_or_default().trim();
    // curl's default for `-d` is what nobody means.
    if name.is_empty() {
        return Ok(Media::Json);
    }
    let unknown = |accepted: &[&str]| {
        let m = "the body of the request was in an unknown format - accepted media types include";
        Status::unsupported_media_type(format!("{m}: {}", accepted.join(", ")))
    };
    match Media::of(name) {
        Some(Media::Protobuf) if custom => Err(unknown(&[JSON, YAML])),
        Some(media) => Ok(media),
        // In upstream's words, which name protobuf for custom resources, too.
        None => Err(unknown(&OBJECTS)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_has_representations() {
        let check = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("accept", accept.parse().unwrap());
            acceptable(&headers, &OBJECTS).is_ok()
        };
        for (accept, wanted) in [
            ("", true),
            ("*/*", true),
            ("application/*", false),
            ("text/html, application/json;q=0.1", true),
            ("application/json;as=Table;v=v1;g=meta.k8s.io", true),
            ("application/cbor", false),
        ] {
            assert_eq!(check(accept), wanted, "{accept}");
        }
    }

    #[test]
    fn accept_headers() {
        let check = |accept: &str, want: Option<(Media, Shape)>| {
            let mut headers = HeaderMap::new();
            headers.insert("accept", accept.parse().unwrap());
            let got = form(&headers, &Query::default(), true).ok().map(|f| (f.media, f.shape));
            assert_eq!(got, want, "{accept}");
        };
        check("*/*", Some((Media::Json, Shape::Object)));
        check(
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
            Some((Media::Json, Shape::Table(Include::Metadata))),
        );
        check(
            "application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io,application/json",
            Some((Media::Json, Shape::Object)),
        );
        check("application/vnd.kubernetes.protobuf,application/json", Some((Media::Protobuf, Shape::Object)));
        check("application/json;q=0.5,application/yaml", Some((Media::Yaml, Shape::Object)));
        check("application/json;stream=watch", Some((Media::Json, Shape::Object)));
        check("text/html", None);
        check(
            "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
            Some((Media::Protobuf, Shape::Metadata)),
        );
    }
}
