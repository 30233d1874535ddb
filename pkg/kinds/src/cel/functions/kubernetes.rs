//! Kubernetes' own library: quantities, addresses, URLs, named formats, semantic versions (`apiserver/pkg/cel/library`).

use super::Found;
use crate::cel::eval::Result;
use crate::cel::value::{Val, Version};
use isopod_api::names;
use isopod_api::quantity::Quantity;
use std::cmp::Ordering;
use std::net::IpAddr;
use std::sync::Arc;

/// The named formats (`format.<name>()`), and what each refuses.
type Check = fn(&str) -> Vec<String>;

pub fn call(name: &str, arguments: &[Val]) -> Found {
    if let Some(format) = name.strip_prefix("format.") {
        return named_format(format, arguments);
    }
    if let ("sign", [Val::Quantity(q)]) = (name, arguments) {
        return quantity_method(name, q, &[]);
    }
    let [Val::Text(text), rest @ ..] = arguments else { return None };
    let loose = matches!(rest, [Val::Bool(true)]);
    Some(match name {
        "quantity" => quantity(text).map(|q| Val::Quantity(Arc::new(q))),
        "isQuantity" => Ok(Val::Bool(quantity(text).is_ok())),
        "ip" => ip(text).map(Val::Ip),
        "isIP" => Ok(Val::Bool(ip(text).is_ok())),
        "ip.isCanonical" => ip(text).map(|ip| Val::Bool(ip.to_string() == **text)),
        "cidr" => cidr(text).map(|(ip, n)| Val::Cidr(ip, n)),
        "isCIDR" => Ok(Val::Bool(cidr(text).is_ok())),
        "url" => url(text).map(|_| Val::Url(text.clone())),
        "isURL" => Ok(Val::Bool(url(text).is_ok())),
        "semver" => version(text, loose).map(|v| Val::Version(Arc::new(v))),
        "isSemver" => Ok(Val::Bool(version(text, loose).is_ok())),
        "jsonpatch.escapeKey" => Ok(Val::text(text.replace('~', "~0").replace('/', "~1"))),
        _ => return None,
    })
}

pub fn method(name: &str, target: &Val, arguments: &[Val]) -> Found {
    match target {
        Val::Quantity(q) => quantity_method(name, q, arguments),
        Val::Ip(ip) => ip_method(name, ip, arguments),
        Val::Cidr(ip, n) => cidr_method(name, *ip, *n, arguments),
        Val::Url(text) => url_method(name, text, arguments),
        Val::Version(v) => version_method(name, v, target, arguments),
        Val::Format(format) => match (name, arguments) {
            ("validate", [Val::Text(text)]) => Some(Ok(validated(format, text))),
            _ => None,
        },
        _ => None,
    }
}

fn quantity(text: &str) -> Result<Quantity> {
    Quantity::parse(text).map_err(|e| e.to_string())
}

fn quantity_method(name: &str, q: &Quantity, arguments: &[Val]) -> Found {
    let made = |q: Quantity| Some(Ok(Val::Quantity(Arc::new(q))));
    let other = match arguments {
        [Val::Quantity(other)] => Some((**other).clone()),
        [Val::Int(i)] => Some(Quantity::new(*i, q.format())),
        _ => None,
    };
    match (name, other) {
        ("sign", None) => Some(Ok(Val::Int(i64::from(q.sign())))),
        ("isInteger", None) => Some(Ok(Val::Bool(q.as_i64().is_some()))),
        ("asInteger", None) => Some(q.as_i64().map(Val::Int).ok_or_else(|| "cannot convert value to integer".into())),
        ("asApproximateFloat", None) => Some(Ok(Val::Double(q.as_f64()))),
        ("add" | "sub", Some(other)) => {
            let mut result = q.clone();
            if name == "add" {
                result.add(&other)
            } else {
                result.sub(&other)
            }
            made(result)
        }
        ("compareTo", Some(other)) => Some(Ok(ordered(q.cmp(&other)))),
        ("isGreaterThan", Some(other)) => Some(Ok(Val::Bool(*q > other))),
        ("isLessThan", Some(other)) => Some(Ok(Val::Bool(*q < other))),
        _ => None,
    }
}

fn ordered(order: Ordering) -> Val {
    Val::Int(order as i64)
}

fn ip(text: &str) -> Result<IpAddr> {
    let parsed: IpAddr = text.parse().map_err(|_| {
        format!(
            "IP Address {text:?} parse error during conversion from string: ParseAddr({text:?}): unable to parse IP"
        )
    })?;
    match parsed {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            Err(format!("IPv4-mapped IPv6 address {text:?} is not allowed"))
        }
        ip => Ok(ip),
    }
}

fn ip_method(name: &str, ip: &IpAddr, arguments: &[Val]) -> Found {
    if !arguments.is_empty() {
        return None;
    }
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let link_local_multicast = match ip {
        IpAddr::V4(v4) => v4.octets()[..3] == [224, 0, 0],
        IpAddr::V6(v6) => v6.segments()[0] & 0xff0f == 0xff02,
    };
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    Some(Ok(match name {
        "family" => Val::Int(if ip.is_ipv4() { 4 } else { 6 }),
        "string" => Val::text(ip.to_string()),
        "isUnspecified" => Val::Bool(ip.is_unspecified()),
        "isLoopback" => Val::Bool(ip.is_loopback()),
        "isLinkLocalMulticast" => Val::Bool(link_local_multicast),
        "isLinkLocalUnicast" => Val::Bool(link_local),
        "isGlobalUnicast" => {
            let none = ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || link_local || broadcast;
            Val::Bool(!none)
        }
        _ => return None,
    }))
}

fn cidr(text: &str) -> Result<(IpAddr, u8)> {
    const WRONG: &str = "network address parse error during conversion from string";
    // Upstream says it twice.
    let wrong = |why: &str| format!("{WRONG}: {WRONG}: netip.ParsePrefix({text:?}): {why}");
    let (address, bits) = text.rsplit_once('/').ok_or_else(|| wrong("no '/'"))?;
    let unreadable = || wrong(&format!("ParseAddr({address:?}): unable to parse IP"));
    let address = ip(address).map_err(|_| unreadable())?;
    let canonical =
        !bits.is_empty() && bits.bytes().all(|b| b.is_ascii_digit()) && (bits == "0" || !bits.starts_with('0'));
    if !canonical {
        return Err(wrong(&format!("bad bits after slash: {bits:?}")));
    }
    let most = if address.is_ipv4() { 32 } else { 128 };
    let bits = bits.parse::<u8>().ok().filter(|bits| *bits <= most);
    let bits = bits.ok_or_else(|| wrong("prefix length out of range"))?;
    Ok((address, bits))
}

fn cidr_method(name: &str, network: IpAddr, bits: u8, arguments: &[Val]) -> Found {
    let holds =
        |ip: IpAddr| ip.is_ipv4() == network.is_ipv4() && names::masked(ip, bits) == names::masked(network, bits);
    Some(match (name, arguments) {
        ("string", []) => Ok(Val::text(format!("{network}/{bits}"))),
        ("ip", []) => Ok(Val::Ip(network)),
        ("masked", []) => Ok(Val::Cidr(names::masked(network, bits), bits)),
        ("prefixLength", []) => Ok(Val::Int(i64::from(bits))),
        ("isMasked", []) => Ok(Val::Bool(names::masked(network, bits) == network)),
        ("containsIP", [Val::Ip(ip)]) => Ok(Val::Bool(holds(*ip))),
        ("containsIP", [Val::Text(text)]) => ip(text).map(|ip| Val::Bool(holds(ip))),
        ("containsCIDR", [Val::Cidr(ip, n)]) => Ok(Val::Bool(*n >= bits && holds(*ip))),
        ("containsCIDR", [Val::Text(text)]) => cidr(text).map(|(ip, n)| Val::Bool(n >= bits && holds(ip))),
        _ => return None,
    })
}

/// Scheme, authority, path, query of an absolute URL or an absolute path.
struct Url<'a> {
    scheme: &'a str,
    authority: &'a str,
    path: &'a str,
    query: &'a str,
}

fn url(text: &str) -> Result<Url<'_>> {
    parsed_url(text).map_err(|why| format!("URL parse error during conversion from string: {why}"))
}

fn parsed_url(text: &str) -> Result<Url<'_>> {
    let wrong = |why: &str| format!("parse {text:?}: {why}");
    if text.contains(|c: char| c.is_control() || c == ' ') {
        return Err(wrong("net/url: invalid control character in URL"));
    }
    let (rest, _fragment) = text.split_once('#').unwrap_or((text, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    if rest.starts_with('/') {
        return Ok(Url { scheme: "", authority: "", path: rest, query });
    }
    let (scheme, after) = rest.split_once(':').ok_or_else(|| wrong("invalid URI for request"))?;
    let fits = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    if !fits {
        return Err(wrong("first path segment in URL cannot contain colon"));
    }
    let Some(after) = after.strip_prefix("//") else { return Err(wrong("invalid URI for request")) };
    let (authority, path) = after.split_at(after.find('/').unwrap_or(after.len()));
    let (_, port) = host_and_port(authority);
    if !port.bytes().all(|b| b.is_ascii_digit()) {
        return Err(wrong(&format!("invalid port \":{port}\" after host")));
    }
    Ok(Url { scheme, authority, path, query })
}

/// Without the brackets of IPv6.
fn host_and_port(authority: &str) -> (&str, &str) {
    let host = authority.rsplit_once('@').map_or(authority, |(_, h)| h);
    if let Some(rest) = host.strip_prefix('[') {
        let (ip, after) = rest.split_once(']').unwrap_or((rest, ""));
        return (ip, after.trim_start_matches(':'));
    }
    host.split_once(':').unwrap_or((host, ""))
}

fn url_method(name: &str, text: &str, arguments: &[Val]) -> Found {
    let url = match (url(text), arguments) {
        (Ok(url), []) => url,
        (Err(e), []) => return Some(Err(e)),
        _ => return None,
    };
    let (hostname, port) = host_and_port(url.authority);
    Some(Ok(match name {
        "getScheme" => Val::text(url.scheme),
        "getHost" => Val::text(url.authority.rsplit_once('@').map_or(url.authority, |(_, h)| h)),
        "getHostname" => Val::text(hostname),
        "getPort" => Val::text(port),
        "getEscapedPath" => Val::text(url.path),
        "getQuery" => query(url.query),
        _ => return None,
    }))
}

fn query(text: &str) -> Val {
    let mut all: std::collections::BTreeMap<String, Vec<Val>> = Default::default();
    for pair in text.split('&').filter(|p| !p.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        all.entry(decoded(key)).or_default().push(Val::text(decoded(value)));
    }
    let entries: Vec<(String, Val)> = all.into_iter().map(|(k, v)| (k, Val::list(v))).collect();
    Val::map(entries.iter().map(|(k, v)| (k.as_str(), v.clone())))
}

fn decoded(text: &str) -> String {
    let mut out = Vec::new();
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).and_then(|h| std::str::from_utf8(h).ok());
        match (bytes[at], hex.and_then(|h| u8::from_str_radix(h, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 2;
            }
            (b'+', _) => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn version(text: &str, loose: bool) -> Result<Version> {
    let wrong = |why: &str| why.to_owned();
    let text = if loose { text.trim().trim_start_matches('v') } else { text };
    let (rest, build) = text.split_once('+').unwrap_or((text, ""));
    let (numbers, prerelease) = rest.split_once('-').unwrap_or((rest, ""));
    let mut parts: Vec<String> = numbers.split('.').map(str::to_owned).collect();
    if loose {
        parts.iter_mut().for_each(|p| {
            let stripped = p.trim_start_matches('0');
            *p = if stripped.is_empty() && !p.is_empty() { "0".into() } else { stripped.into() };
        });
        while parts.len() < 3 {
            parts.push("0".into());
        }
    }
    let [major, minor, patch] = &parts[..] else { return Err(wrong("No Major.Minor.Patch elements found")) };
    let number = |p: &String| -> Result<u64> {
        if p.is_empty() || !p.bytes().all(|b| b.is_ascii_digit()) {
            return Err(wrong(&format!("Invalid character(s) found in number {p:?}")));
        }
        if p.len() > 1 && p.starts_with('0') {
            return Err(wrong(&format!("Number must not contain leading zeroes {p:?}")));
        }
        p.parse().map_err(|_| wrong("number too large"))
    };
    let numbers = [number(major)?, number(minor)?, number(patch)?];
    let fits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let prerelease: Vec<String> = prerelease.split('.').filter(|_| rest.contains('-')).map(str::to_owned).collect();
    let leading = |p: &String| p.len() > 1 && p.starts_with('0') && p.bytes().all(|b| b.is_ascii_digit());
    if !prerelease.iter().all(|p| fits(p)) || prerelease.iter().any(leading) {
        return Err(wrong("Invalid prerelease"));
    }
    if text.contains('+') && !build.split('.').all(fits) {
        return Err(wrong("Invalid build meta data"));
    }
    Ok(Version { numbers, prerelease, build: build.to_owned() })
}

fn version_method(name: &str, v: &Version, target: &Val, arguments: &[Val]) -> Found {
    let part = |i: usize| i64::try_from(v.numbers[i]).map(Val::Int).map_err(|_| "integer overflow".to_owned());
    Some(match (name, arguments) {
        ("major", []) => part(0),
        ("minor", []) => part(1),
        ("patch", []) => part(2),
        (_, [other @ Val::Version(_)]) => {
            let order = target.order(other).unwrap_or(Ordering::Equal);
            match name {
                "compareTo" => Ok(ordered(order)),
                "isLessThan" => Ok(Val::Bool(order.is_lt())),
                "isGreaterThan" => Ok(Val::Bool(order.is_gt())),
                _ => return None,
            }
        }
        _ => return None,
    })
}

const FORMATS: [(&str, Check); 12] = [
    ("dns1123Label", |t| names::dns1123_label(t)),
    ("dns1123Subdomain", |t| names::dns1123_subdomain(t)),
    ("dns1035Label", |t| names::dns1035_label(t)),
    ("dns1123LabelPrefix", |t| names::dns1123_label(prefix(t))),
    ("dns1123SubdomainPrefix", |t| names::dns1123_subdomain(prefix(t))),
    ("dns1035LabelPrefix", |t| names::dns1035_label(prefix(t))),
    ("qualifiedName", |t| names::qualified_name(t)),
    ("labelValue", |t| names::label_value(t)),
    ("uri", |t| parsed_url(t).err().into_iter().collect()),
    ("uuid", |t| {
        let lengths: Vec<usize> = t.split('-').map(str::len).collect();
        let hex = t.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit());
        if hex && lengths == [8, 4, 4, 4, 12] { Vec::new() } else { vec!["does not match the UUID format".into()] }
    }),
    ("byte", |t| {
        use base64::Engine;
        let decoded = base64::engine::general_purpose::STANDARD.decode(t);
        decoded.err().map(|_| "invalid base64".into()).into_iter().collect()
    }),
    ("date", |t| {
        let fits = t.parse::<jiff::civil::Date>().is_ok() && t.len() == 10;
        if fits { Vec::new() } else { vec!["invalid date".into()] }
    }),
];

/// A prefix may end in a dash, behind which a suffix comes.
fn prefix(text: &str) -> &str {
    text.strip_suffix('-').filter(|t| !t.is_empty()).unwrap_or(text)
}

fn named_format(name: &str, arguments: &[Val]) -> Found {
    match (name, arguments) {
        ("named", [Val::Text(text)]) => {
            let known = format_of(text).map(|f| Arc::new(Val::Format(f)));
            Some(Ok(Val::Optional(known)))
        }
        (name, []) => format_of(name).map(|f| Ok(Val::Format(f))),
        _ => None,
    }
}

fn format_of(name: &str) -> Option<&'static str> {
    if name == "datetime" {
        return Some("datetime");
    }
    FORMATS.iter().map(|(n, _)| *n).find(|n| *n == name)
}

/// Nothing where it fits, else what is wrong with it.
fn validated(format: &str, text: &str) -> Val {
    let faults = match FORMATS.iter().find(|(n, _)| *n == format) {
        Some((_, check)) => check(text),
        None => {
            let fits = isopod_api::time::parse(text).is_some();
            if fits { Vec::new() } else { vec!["invalid datetime".to_owned()] }
        }
    };
    if faults.is_empty() {
        return Val::Optional(None);
    }
    Val::some(Val::list(faults.into_iter().map(Val::text).collect()))
}
