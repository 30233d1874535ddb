//! YAML that readers of YAML 1.1 and 1.2 take for the same: most of Kubernetes' own tools read 1.1, to which `no` is a bool.

use isopod_schema::yaml;
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

/// Whether a plain scalar is no text to upstream's reader, or to others of YAML 1.1: these know numbers to the base of 60
/// (<https://yaml.org/type/float.html>).
fn is_ambiguous(text: &str) -> bool {
    let sexagesimal = || {
        let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
        digits.starts_with(|c: char| c.is_ascii_digit())
            && digits.contains(':')
            && digits.chars().all(|c| c.is_ascii_digit() || matches!(c, ':' | '_' | '.'))
    };
    !yaml::is_text(text) || sexagesimal()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_would_be_misread_is_quoted() {
        let value = json!({"on": "no", "a": ["Yes", "1:20", "1_000", "nothing", "1.2.3.4:80", "0o17", "08", "2001-01-01", "~"], "b": true, "c": "true", "d": "", "e": "0x"});
        let text = to_yaml(&value);
        for line in [
            "\"on\": \"no\"",
            "- \"Yes\"",
            "- \"1:20\"",
            "- \"1_000\"",
            "- nothing",
            "b: true",
            "c: \"true\"",
            "d: \"\"",
        ] {
            assert!(text.lines().any(|l| l.trim() == line), "{line} is not in:\n{text}");
        }
        assert_eq!(serde_yaml_ng::from_str::<Value>(&text).unwrap(), value);
        assert_eq!(yaml::parse(text.as_bytes()).unwrap().value, value);
    }
}
