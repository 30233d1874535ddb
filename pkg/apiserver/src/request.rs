//! What a request asks for: verb, resource, namespace and name from method and path (`apiserver/pkg/endpoints/request`).

use http::Method;
use isopod_api::selector::{FieldSelector, FieldTerm, LabelSelector, Requirement};
use isopod_auth::Attributes;

/// Subresources of namespaces; any other third part of a path under `namespaces/<name>/` is a resource of its own.
const NAMESPACE_SUBRESOURCES: [&str; 2] = ["status", "finalize"];

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestInfo {
    pub is_resource: bool,
    /// Decoded, as all that follows from it: an escaped slash parts segments as any other does.
    pub path: String,
    /// `get list watch create update patch delete deletecollection`, or the lower-case method for other paths.
    pub verb: String,
    pub group: String,
    pub version: String,
    pub namespace: String,
    pub resource: String,
    pub subresource: String,
    pub name: String,
    /// Whether `namespaces/<namespace>/` stands before the resource, even with an empty namespace.
    pub scoped: bool,
    /// How many segments there are from the resource on.
    pub depth: usize,
    /// What stands behind the subresource (`proxy/<path>`).
    pub rest: String,
    /// What the selectors of a list, watch or deletecollection ask for.
    pub fields: Vec<FieldTerm>,
    pub labels: Vec<Requirement>,
}

/// A path that says `watch` and not what.
#[derive(Debug, PartialEq, Eq)]
pub struct NothingToWatch;

impl RequestInfo {
    /// `path` is the request's, with its escapes, which are good ones.
    pub fn parse(method: &Method, path: &str, query: &Query) -> Result<Self, NothingToWatch> {
        let (path, verb) = (percent_decode(path), method.as_str().to_ascii_lowercase());
        let mut info = RequestInfo { verb, ..Default::default() };
        let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
        let mut parts: &[&str] = &segments;
        let before = match parts[0] {
            "api" => 1,
            "apis" => 2,
            _ => parts.len(),
        };
        if parts.len() < before + 2 {
            return Ok(RequestInfo { path, ..info });
        }
        if before == 2 {
            info.group = parts[1].to_owned();
        }
        info.is_resource = true;
        info.version = parts[before].to_owned();
        parts = &parts[before + 1..];
        let by_prefix = parts[0] == "watch";
        if by_prefix {
            if parts.len() < 2 {
                return Err(NothingToWatch);
            }
            parts = &parts[1..];
            info.verb = "watch".into();
        } else {
            info.verb = match method.as_str() {
                "POST" => "create",
                "GET" | "HEAD" => "get",
                "PUT" => "update",
                "PATCH" => "patch",
                "DELETE" => "delete",
                _ => "",
            }
            .to_owned();
        }
        if parts[0] == "namespaces" && parts.len() > 1 {
            info.namespace = parts[1].to_owned();
            info.scoped = parts.len() > 2 && !NAMESPACE_SUBRESOURCES.contains(&parts[2]);
            if info.scoped {
                parts = &parts[2..];
            }
        }
        let segment = |at: usize| parts.get(at).copied().unwrap_or_default().to_owned();
        (info.resource, info.name, info.subresource) = (segment(0), segment(1), segment(2));
        info.rest = parts.get(3..).unwrap_or_default().join("/");
        info.depth = parts.len();
        info.refine(query, by_prefix);
        Ok(RequestInfo { path, ..info })
    }

    /// Without a name, a get is a list or a watch and a delete is of the collection.
    /// `by_prefix`: `watch` stands in the path, where selectors count for names only.
    fn refine(&mut self, query: &Query, by_prefix: bool) {
        if !self.name.is_empty() {
            return;
        }
        match self.verb.as_str() {
            "get" => self.verb = if query.flag("watch") { "watch" } else { "list" }.to_owned(),
            "delete" => self.verb = "deletecollection".into(),
            "watch" => {}
            _ => return,
        }
        let labels = LabelSelector::parse(query.get("labelSelector").unwrap_or_default());
        if let Ok(selector) = labels
            && !by_prefix
        {
            self.labels = selector.requirements().to_vec();
        }
        let Ok(selector) = FieldSelector::parse(query.get("fieldSelector").unwrap_or_default()) else { return };
        if let Some(name) = selector.exact("metadata.name").filter(|_| self.verb != "deletecollection") {
            self.name = name.to_owned();
        }
        if !by_prefix {
            self.fields = selector.terms;
        }
    }

    /// Requests that may take as long as they like: watches, and streams to and from nodes.
    pub fn is_long_running(&self) -> bool {
        self.verb == "watch"
            || matches!(self.subresource.as_str(), "attach" | "exec" | "proxy" | "log" | "portforward")
            || self.path.starts_with("/v1/isopod/")
    }

    pub fn attributes(&self, user: &isopod_api::UserInfo) -> Attributes {
        Attributes {
            user: user.clone(),
            verb: self.verb.clone(),
            is_resource: self.is_resource,
            group: self.group.clone(),
            version: self.version.clone(),
            resource: self.resource.clone(),
            subresource: self.subresource.clone(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            path: self.path.clone(),
            fields: self.fields.clone(),
            labels: self.labels.clone(),
        }
    }
}

/// The parameters of a request's query, decoded.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// As Go reads it: parameters that are not well formed, or have a semicolon in them, are left out.
    pub fn parse(query: Option<&str>) -> Self {
        let pair = |p: &str| {
            let (k, v) = p.split_once('=').unwrap_or((p, ""));
            let decode = |s: &str| percent_decode(&s.replace('+', " "));
            (decode(k), decode(v))
        };
        let good = |p: &&str| !p.is_empty() && !p.contains(';') && is_well_escaped(p);
        Query(query.unwrap_or_default().split('&').filter(good).map(pair).collect())
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    pub fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// A bool as upstream reads it from a query: there and neither `false` nor `0`.
    pub fn flag(&self, key: &str) -> bool {
        self.get(key).is_some_and(|v| !matches!(v.to_ascii_lowercase().as_str(), "false" | "0"))
    }
}

/// A path as Go's `net/url` writes it.
pub fn escape_path(path: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@".contains(&b);
    path.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// Whether each percent sign has two digits behind it.
pub fn is_well_escaped(text: &str) -> bool {
    let bytes = text.as_bytes();
    let escapes = |at: usize| bytes.get(at + 1..at + 3).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit));
    bytes.iter().enumerate().all(|(at, b)| *b != b'%' || escapes(at))
}

/// Decodes `%41`; what is not well formed stays as it is.
pub fn percent_decode(s: &str) -> String {
    let bytes = s.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = (bytes[i] == b'%').then(|| bytes.get(i + 1..i + 3)).flatten();
        match hex.and_then(|h| std::str::from_utf8(h).ok()).and_then(|h| u8::from_str_radix(h, 16).ok()) {
            Some(b) => {
                out.push(b);
                i += 3;
            }
            None => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    String::from_utf8(out).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read_as_go_reads_them() {
        let query = Query::parse(Some("a=%zz&b=%4&c=1;d=2&e=%41+b&%zz=f&g&&h=a=b&i=%"));
        let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        assert_eq!(query.0, [pair("e", "A b"), pair("g", ""), pair("h", "a=b")]);
        for (path, good) in [("/a%2Fb", true), ("/a%", false), ("/a%2", false), ("/%zz", false), ("/a%%41", false)] {
            assert_eq!(is_well_escaped(path), good, "{path}");
        }
    }

    #[test]
    fn paths_are_read_as_upstream_reads_them() {
        let check = |method: Method, uri: &str, want: [&str; 7]| {
            let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
            let i = RequestInfo::parse(&method, path, &Query::parse(Some(query))).unwrap();
            let got = [&i.verb, &i.group, &i.version, &i.namespace, &i.resource, &i.subresource, &i.name];
            assert_eq!(got.map(String::as_str), want, "{uri}");
        };
        check(Method::GET, "/api/v1/namespaces", ["list", "", "v1", "", "namespaces", "", ""]);
        check(Method::GET, "/api/v1/namespaces/a", ["get", "", "v1", "a", "namespaces", "", "a"]);
        check(Method::PUT, "/api/v1/namespaces/a/finalize", ["update", "", "v1", "a", "namespaces", "finalize", "a"]);
        check(Method::GET, "/api/v1/namespaces/a/pods?watch=1", ["watch", "", "v1", "a", "pods", "", ""]);
        check(Method::GET, "/api/v1/namespaces/a/pods/b/log", ["get", "", "v1", "a", "pods", "log", "b"]);
        check(
            Method::DELETE,
            "/apis/apps/v1/deployments",
            ["deletecollection", "apps", "v1", "", "deployments", "", ""],
        );
        check(Method::GET, "/api/v1/pods?fieldSelector=metadata.name%3Dx", ["list", "", "v1", "", "pods", "", "x"]);
        check(Method::GET, "/api/v1/watch/pods", ["watch", "", "v1", "", "pods", "", ""]);
        check(Method::GET, "/apis/apps/v1", ["get", "", "", "", "", "", ""]);
        check(Method::POST, "/healthz", ["post", "", "", "", "", "", ""]);
        check(Method::GET, "/api/v1/namespaces/a/pods/b%2Flog", ["get", "", "v1", "a", "pods", "log", "b"]);
        check(Method::GET, "/api%2Fv1%2Fnamespaces/a%2fpods", ["list", "", "v1", "a", "pods", "", ""]);
        check(Method::GET, "/api/v1/namespaces//pods/b", ["get", "", "v1", "", "pods", "", "b"]);
        check(Method::GET, "/api/v1/namespaces/../pods/%2E", ["get", "", "v1", "..", "pods", "", "."]);
        check(Method::GET, "/api/v1/namespaces/a/pods/b%252Fc", ["get", "", "v1", "a", "pods", "", "b%2Fc"]);
    }

    #[test]
    fn a_watch_names_what_it_watches() {
        for (path, good) in [("/api/v1/watch", false), ("/apis/apps/v1/watch//", false), ("/api/v1/watch/pods", true)] {
            let read = RequestInfo::parse(&Method::GET, path, &Query::default());
            assert_eq!(read.is_ok(), good, "{path}");
        }
    }

    #[test]
    fn where_a_path_leads_is_told_from_where_it_says_nothing() {
        for (path, scoped, depth) in [
            ("/api/v1/namespaces/a/pods", true, 1),
            ("/api/v1/namespaces//pods/b/", true, 2),
            ("/api/v1/pods/b/log", false, 3),
            ("/api/v1/namespaces/a/status", false, 3),
            ("/api/v1/namespaces/a", false, 2),
        ] {
            let i = RequestInfo::parse(&Method::GET, path, &Query::default()).unwrap();
            assert_eq!((i.scoped, i.depth), (scoped, depth), "{path}");
        }
    }
}
