//! YAML that readers of YAML 1.1 and 1.2 take for the same: most of Kubernetes' own tools read 1.1, to which `no` is a bool.
//! And what is wrong with a text, in the words of upstream's parser.

use isopod_schema::json;
use serde_json::Value;

/// Stands around a text that must be quoted: a character for private use, which no object holds.
const MARK: char = '\u{f8ff}';

pub fn to_yaml(value: &Value) -> String {
    let mut marked = value.clone();
    mark(&mut marked);
    let text = serde_yaml_ng::to_string(&marked).unwrap_or_default();
    text.replace(MARK, "\"")
}

fn mark(value: &mut Value) {
    match value {
        Value::String(s) if is_ambiguous(s) => *s = format!("{MARK}{s}{MARK}"),
        Value::Array(items) => items.iter_mut().for_each(mark),
        Value::Object(fields) => {
            fields.values_mut().for_each(mark);
            let keys: Vec<String> = fields.keys().filter(|k| is_ambiguous(k)).cloned().collect();
            for key in keys {
                if let Some(v) = fields.remove(&key) {
                    fields.insert(format!("{MARK}{key}{MARK}"), v);
                }
            }
        }
        _ => {}
    }
}

/// Whether YAML 1.1 takes a plain scalar for no text where 1.2 does: bools, and numbers with colons or underscores
/// (<https://yaml.org/type/>).
fn is_ambiguous(text: &str) -> bool {
    let bools = ["y", "n", "yes", "no", "on", "off"];
    if bools.iter().any(|b| b.eq_ignore_ascii_case(text)) {
        return true;
    }
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    digits.starts_with(|c: char| c.is_ascii_digit())
        && digits.contains([':', '_'])
        && digits.chars().all(|c| c.is_ascii_hexdigit() || matches!(c, ':' | '_' | '.' | 'x' | 'o'))
}

/// How upstream's parser begins what it says of a text that nests too deeply; then comes how deep it may.
pub const TOO_DEEP: &str = "yaml: exceeded max depth of ";

/// Whether a text is read as JSON because of its depth.
pub fn is_deep(text: &[u8]) -> bool {
    may_nest(text, SLOW)
}

/// Reads a text of YAML, or says why it is none. One that is JSON, as what kubectl applies, may be as deep as JSON may be.
pub fn parse(text: &[u8]) -> Result<Value, String> {
    let too_deep = || format!("{TOO_DEEP}{}", json::depth::limit());
    if may_nest(text, SLOW) {
        // The parser of YAML takes the square of a text's depth.
        match json::parse(text) {
            Ok(value) => return Ok(value),
            Err(why) if why.to_string().ends_with(json::TOO_DEEP) => return Err(too_deep()),
            Err(_) if may_nest(text, json::depth::DEEPEST) => return Err(too_deep()),
            Err(_) => {}
        }
    }
    serde_yaml_ng::from_slice(text).map_err(|e| complaint(&e))
}

/// So deep texts are read as JSON first.
const SLOW: usize = 100;

/// Whether brackets may lie deeper in each other than that. It does not know which of them are text.
fn may_nest(text: &[u8], levels: usize) -> bool {
    let mut depth = 0usize;
    text.iter().any(|c| {
        match c {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth > levels
    })
}

/// Why a text is no YAML, as upstream's parser says it: it counts lines from zero, and shows neither columns nor what it was at.
pub fn complaint(e: &serde_yaml_ng::Error) -> String {
    let text = e.to_string();
    let (what, context) = text.split_once(", while ").map_or((&*text, None), |(a, b)| (a, Some(b)));
    let (problem, at) = place(what);
    // Its scanner of tokens is a line behind its parser of their order.
    let scans = context.map_or(problem.ends_with("not allowed in this context"), |c| c.starts_with("scanning"));
    let line = at.filter(|l| *l > 0).map(|l| l + usize::from(scans));
    match line.or_else(|| place(context?).1).filter(|l| *l > 0) {
        Some(line) => format!("yaml: line {line}: {problem}"),
        None => format!("yaml: {problem}"),
    }
}

/// Of `problem at line 2 column 1` the problem, and its line counted from zero.
fn place(text: &str) -> (&str, Option<usize>) {
    let Some((what, at)) = text.split_once(" at line ") else { return (text, None) };
    let line = at.split(' ').next().and_then(|l| l.parse::<usize>().ok());
    (what, line.map(|l| l.saturating_sub(1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// What `sigs.k8s.io/yaml` says.
    #[test]
    fn complaints_are_upstreams() {
        for (text, told) in [
            ("kind: [", "line 1: did not find expected node content"),
            ("a: b\n c: d", "line 2: mapping values are not allowed in this context"),
            ("a:\n\t- b", "line 2: found character that cannot start any token"),
            ("kind: {a: b", "line 1: did not find expected ',' or '}'"),
            ("a: 'x", "found unexpected end of stream"),
            ("a: \"b\n\nc", "line 3: found unexpected end of stream"),
            ("a: \"x\\q\"", "found unknown escape character"),
            ("- a\nb: c", "line 1: did not find expected '-' indicator"),
            ("a: b: c", "mapping values are not allowed in this context"),
            ("a:\n - b\n c", "line 4: could not find expected ':'"),
            ("kind: A\nmetadata:\n  name: x\n labels: y", "line 3: did not find expected key"),
            ("%x\n---\na", "found unknown directive name"),
            ("\0", "control characters are not allowed"),
        ] {
            let error = serde_yaml_ng::from_str::<Value>(text).unwrap_err();
            assert_eq!(complaint(&error), format!("yaml: {told}"), "{text:?}");
        }
    }

    #[test]
    fn what_would_be_misread_is_quoted() {
        let value = json!({"on": "no", "a": ["Yes", "1:20", "1_000", "nothing", "1.2.3.4:80"], "b": true, "c": "true"});
        let text = to_yaml(&value);
        for line in ["\"on\": \"no\"", "- \"Yes\"", "- \"1:20\"", "- \"1_000\"", "- nothing", "b: true", "c: 'true'"] {
            assert!(text.lines().any(|l| l.trim() == line), "{line} is not in:\n{text}");
        }
        assert_eq!(serde_yaml_ng::from_str::<Value>(&text).unwrap(), value);
    }
}
