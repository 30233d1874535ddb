//! Links of a proxied server made to lead through the proxy again: in `Location` headers and in HTML (apimachinery
//! `util/proxy`). Pure.

use super::proxy::clean_path;

/// Attributes whose value is a URL, by element (HTML 4 and HTML 5, index of attributes).
const ATTRIBUTES: [(&str, &[&str]); 25] = [
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("video", &["poster", "src"]),
];

/// Elements whose content is text up to their own end tag.
const RAW_TEXT: [&str; 8] = ["iframe", "noembed", "noframes", "script", "style", "textarea", "title", "xmp"];

/// Where the links of a page come from and where they shall lead.
#[derive(Clone, Debug)]
pub struct Links {
    /// The path of this server behind which the proxied server's `/` stands.
    pub prefix: String,
    /// The proxied server, as it was dialled.
    pub host: String,
    /// This server, as the client calls it.
    pub client_host: String,
}

impl Links {
    /// A link of the proxied server as the client must follow it. Relative links and those to other hosts stay.
    pub fn rewrite(&self, url: &str) -> String {
        let (start, host, tail) = split_host(url);
        let foreign = host.is_some_and(|h| !h.is_empty() && h != self.host && h != self.client_host);
        if foreign || !tail.starts_with('/') {
            return url.to_owned();
        }
        // The client's own name for this server is one that it can follow; the proxied server's is not.
        let origin = if host == Some(&self.client_host) { start } else { "" };
        if tail.starts_with(&self.prefix) {
            return format!("{origin}{tail}");
        }
        let end = tail.find(['?', '#']).unwrap_or(tail.len());
        let (path, query) = tail.split_at(end);
        let slash = if path.ends_with('/') { "/" } else { "" };
        format!("{origin}{}{slash}{query}", clean_path(&format!("{}/{path}", self.prefix)))
    }

    /// The page with its links rewritten. Whatever is no link keeps its bytes.
    pub fn rewrite_html(&self, page: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(page.len() + page.len() / 8);
        let mut at = 0;
        while let Some(open) = find(page, at, b"<") {
            out.extend_from_slice(&page[at..open]);
            at = self.markup(page, open, &mut out);
        }
        out.extend_from_slice(&page[at.min(page.len())..]);
        out
    }

    /// Copies the markup that starts at `open`; where the text after it begins.
    fn markup(&self, page: &[u8], open: usize, out: &mut Vec<u8>) -> usize {
        let rest = &page[open..];
        let end = if rest.starts_with(b"<!--") {
            find(page, open + 4, b"-->").map_or(page.len(), |e| e + 3)
        } else if rest.get(1).is_some_and(u8::is_ascii_alphabetic) {
            return self.start_tag(page, open, out);
        } else if matches!(rest.get(1), Some(b'/' | b'!' | b'?')) {
            find(page, open, b">").map_or(page.len(), |e| e + 1)
        } else {
            open + 1
        };
        out.extend_from_slice(&page[open..end]);
        end
    }

    fn start_tag(&self, page: &[u8], open: usize, out: &mut Vec<u8>) -> usize {
        let name_end = end_of(page, open + 1, |b| b.is_ascii_whitespace() || b == b'/' || b == b'>');
        let element = lower(&page[open + 1..name_end]);
        let urls = ATTRIBUTES.iter().find(|(e, _)| *e == element).map_or(&[][..], |(_, a)| a);
        out.extend_from_slice(&page[open..name_end]);
        let mut at = name_end;
        while let Some(&byte) = page.get(at) {
            if byte == b'>' || byte.is_ascii_whitespace() || byte == b'/' {
                out.push(byte);
                at += 1;
                if byte == b'>' {
                    break;
                }
                continue;
            }
            at = self.attribute(page, at, urls, out);
        }
        if !RAW_TEXT.contains(&element.as_str()) {
            return at;
        }
        let end = end_of_raw_text(page, at, &element);
        out.extend_from_slice(&page[at..end]);
        end
    }

    /// Copies one attribute, its value rewritten if it is a URL; where it ends.
    fn attribute(&self, page: &[u8], at: usize, urls: &[&str], out: &mut Vec<u8>) -> usize {
        // A name may begin with `=`: then it is part of the name.
        let name_end = end_of(page, at + 1, |b| b.is_ascii_whitespace() || matches!(b, b'=' | b'>' | b'/'));
        let name = lower(&page[at..name_end]);
        let equals = end_of(page, name_end, |b| !b.is_ascii_whitespace());
        if page.get(equals) != Some(&b'=') {
            out.extend_from_slice(&page[at..name_end]);
            return name_end;
        }
        let start = end_of(page, equals + 1, |b| !b.is_ascii_whitespace());
        let quote = page.get(start).copied().filter(|b| matches!(b, b'"' | b'\''));
        let from = start + usize::from(quote.is_some());
        let to = match quote {
            Some(quote) => end_of(page, from, |b| b == quote),
            None => end_of(page, from, |b| b.is_ascii_whitespace() || b == b'>'),
        };
        out.extend_from_slice(&page[at..from]);
        match std::str::from_utf8(&page[from..to]) {
            Ok(url) if urls.contains(&name.as_str()) => out.extend_from_slice(self.rewrite(url).as_bytes()),
            _ => out.extend_from_slice(&page[from..to]),
        }
        to + if quote.is_some() && to < page.len() {
            out.push(page[to]);
            1
        } else {
            0
        }
    }
}

/// Scheme with host as written, the host, and the rest. Without a host only the rest.
fn split_host(url: &str) -> (&str, Option<&str>, &str) {
    let after = match url.find("//") {
        Some(0) => 2,
        Some(i) if url[..i].ends_with(':') && url[..i - 1].bytes().all(|b| b.is_ascii_alphanumeric()) => i + 2,
        _ => return ("", None, url),
    };
    let end = url[after..].find(['/', '?', '#']).map_or(url.len(), |e| after + e);
    (&url[..end], Some(&url[after..end]), &url[end..])
}

fn find(page: &[u8], from: usize, what: &[u8]) -> Option<usize> {
    page.get(from..)?.windows(what.len()).position(|w| w == what).map(|i| from + i)
}

fn end_of(page: &[u8], from: usize, stop: impl Fn(u8) -> bool) -> usize {
    page.get(from..).and_then(|p| p.iter().position(|b| stop(*b))).map_or(page.len(), |i| from + i)
}

fn end_of_raw_text(page: &[u8], from: usize, element: &str) -> usize {
    let mut at = from;
    while let Some(open) = find(page, at, b"</") {
        let name = page.get(open + 2..open + 2 + element.len());
        if name.is_some_and(|n| n.eq_ignore_ascii_case(element.as_bytes())) {
            return open;
        }
        at = open + 2;
    }
    page.len()
}

fn lower(name: &[u8]) -> String {
    String::from_utf8_lossy(name).to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links() -> Links {
        Links { prefix: "/p/proxy".into(), host: "10.0.0.1:80".into(), client_host: "api:6443".into() }
    }

    #[test]
    fn links_of_the_proxied_server_lead_through_the_proxy() {
        for (url, want) in [
            ("/a", "/p/proxy/a"),
            ("/a/?x=1#y", "/p/proxy/a/?x=1#y"),
            ("/a/../b", "/p/proxy/b"),
            ("/", "/p/proxy/"),
            ("/p/proxy/a", "/p/proxy/a"),
            ("a/b", "a/b"),
            ("?x=//y", "?x=//y"),
            ("#top", "#top"),
            ("mailto:a@b", "mailto:a@b"),
            ("http://10.0.0.1:80/a", "/p/proxy/a"),
            ("//10.0.0.1:80/a", "/p/proxy/a"),
            ("https://api:6443/a", "https://api:6443/p/proxy/a"),
            ("https://api:6443/p/proxy/a", "https://api:6443/p/proxy/a"),
            ("https://example.org/a", "https://example.org/a"),
            ("//example.org/a", "//example.org/a"),
        ] {
            assert_eq!(links().rewrite(url), want, "{url}");
        }
    }

    #[test]
    fn only_links_of_a_page_change() {
        for (page, want) in [
            (r#"<a href="/x">/x</a>"#, r#"<a href="/p/proxy/x">/x</a>"#),
            (r#"<A class=c HREF = '/x?a=1&amp;b'>t"#, r#"<A class=c HREF = '/p/proxy/x?a=1&amp;b'>t"#),
            ("<img src=/x><img src=/y alt>", "<img src=/p/proxy/x><img src=/p/proxy/y alt>"),
            (r#"<link href="/s.css"/>"#, r#"<link href="/p/proxy/s.css"/>"#),
            (r#"<div href="/x" data-a="<a href='/y'>">"#, r#"<div href="/x" data-a="<a href='/y'>">"#),
            (r#"<!-- <a href="/x"> --><a href="/y">"#, r#"<!-- <a href="/x"> --><a href="/p/proxy/y">"#),
            (
                r#"<script src="/s">"<a href='/x'>"</script><a href="/y">"#,
                r#"<script src="/p/proxy/s">"<a href='/x'>"</script><a href="/p/proxy/y">"#,
            ),
            ("1 < 2 <b>é</b> <a href=\"/é\">", "1 < 2 <b>é</b> <a href=\"/p/proxy/é\">"),
            // A page that ends in the middle of a tag loses nothing.
            ("<a href=\"/x", "<a href=\"/p/proxy/x"),
            ("<a", "<a"),
            ("<", "<"),
            ("<a href=", "<a href="),
            ("<!-- x", "<!-- x"),
            ("<script>x", "<script>x"),
        ] {
            assert_eq!(String::from_utf8(links().rewrite_html(page.as_bytes())).unwrap(), want, "{page}");
        }
    }
}
