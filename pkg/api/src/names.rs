//! The syntax of object names, labels and annotations (RFC 1035, RFC 1123, `apimachinery/pkg/util/validation`).
//!
//! Invariant: a function returns what is wrong as upstream words it; an empty list means the text is valid.

use crate::field::{FieldError, FieldErrors, Path};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub const DNS_LABEL_MAX: usize = 63;
pub const DNS_SUBDOMAIN_MAX: usize = 253;
pub const LABEL_VALUE_MAX: usize = 63;
/// All keys and values of an object's annotations together.
pub const ANNOTATIONS_MAX_BYTES: usize = 256 * 1024;

const LABEL_FMT: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const SUBDOMAIN_FMT: &str = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const SUBDOMAIN_UNDERSCORE_FMT: &str = r"_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*";
const LABEL_KEY_FMT: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";

/// How a kind checks `metadata.name` (`false`) and `metadata.generateName` (`true`).
pub type NameRule = fn(&str, bool) -> Vec<String>;

pub fn max_len_error(max: usize) -> String {
    format!("must be no more than {max} characters")
}

/// The newer wording, of the rules for label keys and values.
pub fn max_bytes_error(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

pub fn range_error(lo: i64, hi: i64) -> String {
    format!("must be between {lo} and {hi}, inclusive")
}

/// `msg (e.g. 'a',  or 'b', regex used for validation is '…')`: upstream's odd commas included.
pub fn regex_error(msg: &str, fmt: &str, examples: &[&str]) -> String {
    if examples.is_empty() {
        return format!("{msg} (regex used for validation is '{fmt}')");
    }
    let list = examples.iter().map(|e| format!("'{e}', ")).collect::<Vec<_>>().join(" or ");
    format!("{msg} (e.g. {list}regex used for validation is '{fmt}')")
}

fn lower(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

/// First and last byte satisfy `edge`, the others `edge` or one of `inner`.
fn shaped(s: &str, edge: fn(u8) -> bool, inner: &[u8]) -> bool {
    let b = s.as_bytes();
    match (b.first(), b.last()) {
        (Some(&f), Some(&l)) => edge(f) && edge(l) && b.iter().all(|&c| edge(c) || inner.contains(&c)),
        _ => false,
    }
}

fn label_shaped(s: &str) -> bool {
    shaped(s, lower, b"-")
}

fn subdomain_shaped(s: &str) -> bool {
    s.split('.').all(label_shaped)
}

pub fn dns1123_label(s: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if s.len() > DNS_LABEL_MAX {
        errs.push(max_len_error(DNS_LABEL_MAX));
    }
    if !label_shaped(s) {
        errs.push(if subdomain_shaped(s) {
            "must not contain dots".into()
        } else {
            let msg = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character";
            regex_error(msg, LABEL_FMT, &["my-name", "123-abc"])
        });
    }
    errs
}

/// The same messages with the newer wording of limits, which declarative rules have.
pub fn in_bytes(msgs: Vec<String>) -> Vec<String> {
    let newer = |m: String| match m.strip_prefix("must be no more than ").and_then(|m| m.strip_suffix(" characters")) {
        Some(max) => format!("must be no more than {max} bytes"),
        None => m,
    };
    msgs.into_iter().map(newer).collect()
}

/// A subdomain in letters of either case (`k8s-long-name-caseless`).
pub fn dns1123_subdomain_caseless(s: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if s.len() > DNS_SUBDOMAIN_MAX {
        errs.push(max_bytes_error(DNS_SUBDOMAIN_MAX));
    }
    if !subdomain_shaped(&s.to_ascii_lowercase()) {
        let msg = "an RFC 1123 subdomain must consist of alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character";
        errs.push(regex_error(msg, SUBDOMAIN_FMT, &["Example.com"]));
    }
    errs
}

pub fn dns1123_subdomain(s: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if s.len() > DNS_SUBDOMAIN_MAX {
        errs.push(max_len_error(DNS_SUBDOMAIN_MAX));
    }
    if !subdomain_shaped(s) {
        let msg = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character";
        errs.push(regex_error(msg, SUBDOMAIN_FMT, &["example.com"]));
    }
    errs
}

pub fn dns1123_subdomain_with_underscore(s: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if s.len() > DNS_SUBDOMAIN_MAX {
        errs.push(max_len_error(DNS_SUBDOMAIN_MAX));
    }
    let part = |p: &str| shaped(p.strip_prefix('_').unwrap_or(p), lower, b"-_");
    if !s.split('.').all(part) {
        let msg = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric character";
        errs.push(regex_error(msg, SUBDOMAIN_UNDERSCORE_FMT, &["example.com"]));
    }
    errs
}

pub fn dns1035_label(s: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if s.len() > DNS_LABEL_MAX {
        errs.push(max_len_error(DNS_LABEL_MAX));
    }
    if !(label_shaped(s) && s.starts_with(|c: char| c.is_ascii_lowercase())) {
        let msg = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character";
        errs.push(regex_error(msg, "[a-z]([-a-z0-9]*[a-z0-9])?", &["my-name", "abc-123"]));
    }
    errs
}

pub fn wildcard_dns1123_subdomain(s: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if s.len() > DNS_SUBDOMAIN_MAX {
        errs.push(max_len_error(DNS_SUBDOMAIN_MAX));
    }
    if !s.strip_prefix("*.").is_some_and(subdomain_shaped) {
        let msg = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character";
        errs.push(regex_error(msg, &format!(r"\*\.{SUBDOMAIN_FMT}"), &["*.example.com"]));
    }
    errs
}

/// A label key: `[prefix/]name`. Annotation keys are this after lower-casing; finalizers and condition types too.
pub fn qualified_name(s: &str) -> Vec<String> {
    let msg = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
    let examples = ["MyName", "my.name", "123-abc"];
    let mut errs = Vec::new();
    let parts: Vec<&str> = s.split('/').collect();
    let name = match parts[..] {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                errs.push("prefix part must be non-empty".to_owned());
            } else {
                let mut why = dns1123_subdomain(prefix);
                if prefix.len() > DNS_SUBDOMAIN_MAX {
                    // Of a prefix upstream counts bytes, and says so.
                    why[0] = max_bytes_error(DNS_SUBDOMAIN_MAX);
                }
                errs.extend(why.into_iter().map(|m| format!("prefix part {m}")));
            }
            name
        }
        _ => {
            let e = regex_error(msg, LABEL_KEY_FMT, &examples);
            errs.push(format!(
                "a valid label key {e} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            ));
            return errs;
        }
    };
    if name.is_empty() {
        errs.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        errs.push(format!("name part {}", max_bytes_error(63)));
    }
    if !shaped(name, |c| c.is_ascii_alphanumeric(), b"-_.") {
        errs.push(format!("name part {}", regex_error(msg, LABEL_KEY_FMT, &examples)));
    }
    errs
}

pub fn label_value(s: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if s.len() > LABEL_VALUE_MAX {
        errs.push(max_bytes_error(LABEL_VALUE_MAX));
    }
    if !s.is_empty() && !shaped(s, |c| c.is_ascii_alphanumeric(), b"-_.") {
        let msg = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
        errs.push(regex_error(msg, &format!("({LABEL_KEY_FMT})?"), &["MyValue", "my_value", "12345"]));
    }
    errs
}

pub fn c_identifier(s: &str) -> Vec<String> {
    let ok = s.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && s.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_');
    if ok {
        return Vec::new();
    }
    let msg = "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_'";
    vec![regex_error(msg, "[A-Za-z_][A-Za-z0-9_]*", &["my_name", "MY_NAME", "MyName"])]
}

pub fn port_num(port: i64) -> Vec<String> {
    in_range(port, 1, 65535)
}

pub fn in_range(n: i64, lo: i64, hi: i64) -> Vec<String> {
    if (lo..=hi).contains(&n) { Vec::new() } else { vec![range_error(lo, hi)] }
}

/// User and group ids.
pub fn user_id(id: i64) -> Vec<String> {
    in_range(id, 0, i64::from(i32::MAX))
}

/// An IANA service name (RFC 6335), at most 15 characters.
pub fn port_name(s: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if s.len() > 15 {
        errs.push(max_len_error(15));
    }
    if s.is_empty() || !s.bytes().all(|c| lower(c) || c == b'-') {
        errs.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !s.bytes().any(|c| c.is_ascii_lowercase()) {
        errs.push("must contain at least one letter (a-z)".into());
    }
    if s.contains("--") {
        errs.push("must not contain consecutive hyphens".into());
    }
    if s.starts_with('-') || s.ends_with('-') {
        errs.push("must not begin or end with a hyphen".into());
    }
    errs
}

pub fn percent(s: &str) -> Vec<String> {
    let ok = s.strip_suffix('%').is_some_and(|n| !n.is_empty() && n.bytes().all(|c| c.is_ascii_digit()));
    if ok {
        return Vec::new();
    }
    let msg = "a valid percent string must be a numeric string followed by an ending '%'";
    vec![regex_error(msg, "[0-9]+%", &["1%", "93%"])]
}

pub fn http_header_name(s: &str) -> Vec<String> {
    if !s.is_empty() && s.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-') {
        return Vec::new();
    }
    let msg = "a valid HTTP header must consist of alphanumeric characters or '-'";
    vec![regex_error(msg, "[-A-Za-z0-9]+", &["X-Header-Name"])]
}

fn chdir_prefix(s: &str) -> Option<String> {
    match s {
        "." => Some("must not be '.'".into()),
        ".." => Some("must not be '..'".into()),
        _ if s.starts_with("..") => Some("must not start with '..'".into()),
        _ => None,
    }
}

fn config_byte(c: u8) -> bool {
    c.is_ascii_alphanumeric() || b"-._".contains(&c)
}

pub fn env_var_name(s: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if s.is_empty() || s.starts_with(|c: char| c.is_ascii_digit()) || !s.bytes().all(config_byte) {
        let msg = "a valid environment variable name must consist of alphabetic characters, digits, '_', '-', or '.', and must not start with a digit";
        let examples = ["my.env-name", "MY_ENV.NAME", "MyEnvName1"];
        errs.push(regex_error(msg, "[-._a-zA-Z][-._a-zA-Z0-9]*", &examples));
    }
    errs.extend(chdir_prefix(s));
    errs
}

/// What `env[].name` may be since `RelaxedEnvironmentVariableValidation`.
pub fn relaxed_env_var_name(s: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if s.is_empty() {
        errs.push("environment variable name must be non-empty".into());
    }
    if s.chars().any(|c| !(' '..='~').contains(&c) || c == '=') {
        errs.push(
            "a valid environment variable name must consist only of printable ASCII characters other than '='".into(),
        );
    }
    errs
}

pub fn config_map_key(s: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if s.len() > DNS_SUBDOMAIN_MAX {
        errs.push(max_len_error(DNS_SUBDOMAIN_MAX));
    }
    if s.is_empty() || !s.bytes().all(config_byte) {
        let msg = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";
        errs.push(regex_error(msg, "[-._a-zA-Z0-9]+", &["key.name", "KEY_NAME", "key-name"]));
    }
    errs.extend(chdir_prefix(s));
    errs
}

/// What a name in a URL path may never be.
pub fn path_segment_name(s: &str) -> Vec<String> {
    if s == "." || s == ".." {
        return vec![format!("may not be '{s}'")];
    }
    path_segment_prefix(s)
}

pub fn path_segment_prefix(s: &str) -> Vec<String> {
    ["/", "%"].iter().filter(|c| s.contains(**c)).map(|c| format!("may not contain '{c}'")).collect()
}

/// `my-name-` is a fine `generateName`, since letters follow.
fn mask_trailing_dash(s: &str) -> std::borrow::Cow<'_, str> {
    match s.strip_suffix('-') {
        // Upstream cuts two bytes and adds one letter.
        Some(rest) if !rest.is_empty() => {
            let cut = rest.char_indices().last().map_or(0, |(i, _)| i);
            format!("{}a", &rest[..cut]).into()
        }
        _ => s.into(),
    }
}

pub fn name_is_dns_subdomain(s: &str, prefix: bool) -> Vec<String> {
    if prefix { dns1123_subdomain(&mask_trailing_dash(s)) } else { dns1123_subdomain(s) }
}

pub fn name_is_dns_label(s: &str, prefix: bool) -> Vec<String> {
    if prefix { dns1123_label(&mask_trailing_dash(s)) } else { dns1123_label(s) }
}

pub fn name_is_dns1035_label(s: &str, prefix: bool) -> Vec<String> {
    if prefix { dns1035_label(&mask_trailing_dash(s)) } else { dns1035_label(s) }
}

pub fn name_is_path_segment(s: &str, prefix: bool) -> Vec<String> {
    if prefix { path_segment_prefix(s) } else { path_segment_name(s) }
}

fn all_invalid(path: &Path, value: &str, msgs: Vec<String>) -> FieldErrors {
    msgs.into_iter().map(|m| FieldError::invalid(path, value, m)).collect()
}

/// `example.com/path`: a seccomp or AppArmor style name, a condition or a signer.
pub fn domain_prefixed_path(path: &Path, s: &str) -> FieldErrors {
    const FMT: &str = r"[A-Za-z0-9/\-._~%!$&'()*+,;=:]+";
    if s.is_empty() {
        return vec![FieldError::required(path, "")];
    }
    let Some((host, rest)) = s.split_once('/').filter(|(h, r)| !h.is_empty() && !r.is_empty()) else {
        return vec![FieldError::invalid(path, s, "must be a domain-prefixed path (such as \"acme.io/foo\")")];
    };
    let mut errs = all_invalid(path, host, dns1123_subdomain(host));
    if !rest.bytes().all(|c| c.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&c)) {
        errs.push(FieldError::invalid(path, rest, regex_error("Invalid path", FMT, &[])));
    }
    errs
}

pub fn domain_prefixed_key(path: &Path, s: &str) -> FieldErrors {
    if s.is_empty() {
        return vec![FieldError::required(path, "")];
    }
    let errs = all_invalid(path, s, qualified_name(s));
    if errs.is_empty() && s.split('/').count() != 2 {
        return vec![FieldError::invalid(path, s, "must be a domain-prefixed key (such as \"acme.io/foo\")")];
    }
    errs
}

pub fn fully_qualified_name(path: &Path, s: &str) -> FieldErrors {
    if s.is_empty() {
        return vec![FieldError::required(path, "")];
    }
    let errs = dns1123_subdomain(s);
    if !errs.is_empty() {
        return vec![FieldError::invalid(path, s, errs.join(","))];
    }
    if s.split('.').count() < 3 {
        let m = "should be a domain with at least three segments separated by dots";
        return vec![FieldError::invalid(path, s, m)];
    }
    Vec::new()
}

/// Parses as Go's old `net.ParseIP`: leading zeros in IPv4 are let through.
pub fn parse_ip_sloppy(s: &str) -> Option<IpAddr> {
    if s.contains(':') {
        return s.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    }
    let mut octets = [0u8; 4];
    let mut parts = s.split('.');
    for o in &mut octets {
        let p = parts.next().filter(|p| !p.is_empty() && p.bytes().all(|c| c.is_ascii_digit()))?;
        *o = u8::try_from(p.parse::<u32>().ok()?).ok()?;
    }
    parts.next().is_none().then_some(IpAddr::V4(Ipv4Addr::from(octets)))
}

/// As Go prints a `net.IP`: an IPv4-mapped address prints as IPv4.
pub fn canonical_ip(ip: IpAddr) -> String {
    ip.to_canonical().to_string()
}

fn is_4in6(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some())
}

/// An IP in a field that predates strict checking: any spelling, but no leading zeros and no IPv4-mapped IPv6.
/// `old` are values of the object before this update, which stay allowed.
pub fn ip_legacy(path: &Path, s: &str, old: &[&str]) -> FieldErrors {
    if old.contains(&s) {
        return Vec::new();
    }
    let Some(ip) = parse_ip_sloppy(s) else {
        return vec![FieldError::invalid(path, s, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)")];
    };
    if s.parse::<IpAddr>().is_err() {
        return vec![FieldError::invalid(path, s, "must not have leading 0s")];
    }
    if is_4in6(ip) {
        return vec![FieldError::invalid(path, s, "must not be an IPv4-mapped IPv6 address")];
    }
    Vec::new()
}

/// An IP in canonical form.
pub fn ip(path: &Path, s: &str) -> FieldErrors {
    let errs = ip_legacy(path, s, &[]);
    match parse_ip_sloppy(s).map(canonical_ip) {
        Some(c) if errs.is_empty() && c != s => {
            vec![FieldError::invalid(path, s, format!("must be in canonical form ({c:?})"))]
        }
        _ => errs,
    }
}

/// Address and prefix length, the address as written (host bits kept).
pub fn parse_cidr_sloppy(s: &str) -> Option<(IpAddr, u8)> {
    let (addr, len) = s.split_once('/')?;
    let ip = parse_ip_sloppy(addr)?;
    if len.is_empty() || !len.bytes().all(|c| c.is_ascii_digit()) {
        return None;
    }
    let n: u32 = len.parse().ok()?;
    let max = if ip.is_ipv4() { 32 } else { 128 };
    (n <= max).then_some((ip, n as u8))
}

/// The network address: host bits cleared.
pub fn masked(ip: IpAddr, len: u8) -> IpAddr {
    match ip {
        IpAddr::V4(v4) => {
            let m = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from(u32::from(v4) & m))
        }
        IpAddr::V6(v6) => {
            let m = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from(u128::from(v6) & m))
        }
    }
}

pub fn cidr_legacy(path: &Path, s: &str, old: &[&str]) -> FieldErrors {
    if old.contains(&s) {
        return Vec::new();
    }
    let Some((ip, len)) = parse_cidr_sloppy(s) else {
        return vec![FieldError::invalid(path, s, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)")];
    };
    let (addr, plen) = s.split_once('/').unwrap_or((s, ""));
    let why = if addr.parse::<IpAddr>().is_err() || (plen.len() > 1 && plen.starts_with('0')) {
        "must not have leading 0s in IP or prefix length"
    } else if is_4in6(ip) {
        "must not have an IPv4-mapped IPv6 address"
    } else if masked(ip, len) != ip {
        "must not have bits set beyond the prefix length"
    } else {
        return Vec::new();
    };
    vec![FieldError::invalid(path, s, why)]
}

/// A CIDR in canonical form.
pub fn cidr(path: &Path, s: &str) -> FieldErrors {
    let errs = cidr_legacy(path, s, &[]);
    if !errs.is_empty() {
        return errs;
    }
    match parse_cidr_sloppy(s).map(|(ip, len)| format!("{}/{len}", masked(ip, len))) {
        Some(c) if c != s => vec![FieldError::invalid(path, s, format!("must be in canonical form ({c:?})"))],
        _ => errs,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_counted_in_bytes() {
        let (longest, longer) = (format!("{}/a", "b".repeat(253)), format!("{}/a", "b".repeat(254)));
        assert_eq!(qualified_name(&longest), [""; 0]);
        assert_eq!(qualified_name(&longer), ["prefix part must be no more than 253 bytes"]);
    }

    #[test]
    fn a_bad_label_says_what_upstream_says() {
        assert_eq!(
            dns1123_label("Bad_Name"),
            [
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
            ]
        );
        assert_eq!(dns1123_label("a.b"), ["must not contain dots"]);
        assert_eq!(dns1123_label(&"a".repeat(64)), ["must be no more than 63 characters"]);
    }

    #[test]
    fn names_by_rule() {
        let table: [(fn(&str) -> Vec<String>, &[&str], &[&str]); 12] = [
            (dns1123_subdomain, &["a", "a.b-c.9"], &["", "a..b", "-a", "a-", "A", "a_b"]),
            (dns1035_label, &["a", "a-1"], &["1a", "", "a.b", "a-"]),
            (wildcard_dns1123_subdomain, &["*.a", "*.a.b"], &["*", "a", "*.*.a", "*."]),
            (qualified_name, &["a", "A.b_c", "example.com/a"], &["", "/a", "a/", "a/b/c", "_a", "Example.com/a"]),
            (label_value, &["", "a", "A_b.c-1"], &["-a", "a b", "a/b"]),
            (port_name, &["http", "a-1"], &["", "1", "a--b", "-a", "A", "sixteen-letters1"]),
            (percent, &["0%", "100%"], &["%", "1", "a%", "-1%"]),
            (env_var_name, &["A", "a.b-c_1", "_"], &["", "1a", "a=b", "."]),
            (relaxed_env_var_name, &["1 a!"], &["", "a=b", "\u{e9}"]),
            (config_map_key, &["a.b", "A-_1"], &["", "..", "..a", ".", "a/b"]),
            (http_header_name, &["X-A"], &["", "a b", "a:"]),
            (dns1123_subdomain_with_underscore, &["_a.b", "a_b"], &["_", "a_", ""]),
        ];
        for (rule, good, bad) in table {
            for g in good {
                assert!(rule(g).is_empty(), "{g:?}: {:?}", rule(g));
            }
            for b in bad {
                assert!(!rule(b).is_empty(), "{b:?} should be refused");
            }
        }
        assert!(name_is_dns_label("web-", true).is_empty());
        assert!(!name_is_dns_label("web-", false).is_empty());
    }

    #[test]
    fn addresses() {
        let p = Path::new("ip");
        let say = |e: FieldErrors| e.into_iter().map(|e| e.detail).collect::<Vec<_>>();
        assert!(ip(&p, "10.0.0.1").is_empty());
        assert_eq!(say(ip(&p, "10.0.0.01")), ["must not have leading 0s"]);
        assert_eq!(say(ip(&p, "::FFFF:1.2.3.4")), ["must not be an IPv4-mapped IPv6 address"]);
        assert_eq!(say(ip(&p, "FE80::1")), ["must be in canonical form (\"fe80::1\")"]);
        assert!(ip_legacy(&p, "FE80::1", &[]).is_empty());
        assert_eq!(say(ip(&p, "1.2.3")), ["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"]);
        assert!(cidr(&p, "10.0.0.0/8").is_empty());
        assert!(cidr(&p, "0.0.0.0/0").is_empty());
        assert_eq!(say(cidr(&p, "10.1.0.0/8")), ["must not have bits set beyond the prefix length"]);
        assert_eq!(say(cidr(&p, "10.0.0.0/08")), ["must not have leading 0s in IP or prefix length"]);
        assert!(!cidr(&p, "10.0.0.0/33").is_empty());
        assert_eq!(parse_ip_sloppy("010.000.0.1"), "10.0.0.1".parse().ok());
    }
}
