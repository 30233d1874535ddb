//! Paths like `.spec['a.b'].c` that must lead to a field of a schema.

use crate::access::Access;
use serde_json::Value;

/// Where a path leads.
#[derive(Debug, PartialEq)]
pub(crate) struct Found<'a> {
    /// The path as errors write it: `spec.color`, `spec.labels[app]`.
    pub path: String,
    pub schema: &'a Value,
}

const NOT_A_FIELD: &str = "does not refer to a valid field";
const ENDS: &str = "unexpected end of JSON path";

/// Follows `path` through `schema`; the error says what is wrong with it. `['a']` is only allowed with `brackets`.
pub(crate) fn follow<'a>(path: &str, schema: &'a Value, brackets: bool) -> Result<Found<'a>, String> {
    let mut found = Found { path: String::new(), schema };
    let mut tokens = tokens(path).into_iter();
    while let Some(token) = tokens.next() {
        match token.as_str() {
            "[" if !brackets => return Err("array notation is not allowed".to_owned()),
            "[" => {
                let quoted = tokens.next().ok_or(ENDS)?;
                found.step(&unquote(&quoted)?)?;
                match tokens.next().ok_or(ENDS)?.as_str() {
                    "]" => {}
                    other => return Err(format!("expected ] but got {other}")),
                }
            }
            "." => found.step(&tokens.next().ok_or(ENDS)?)?,
            other => return Err(format!("expected [ or . but got: {other}")),
        }
    }
    Ok(found)
}

impl Found<'_> {
    fn step(&mut self, name: &str) -> Result<(), String> {
        let properties = self.schema.entries("properties");
        if !properties.is_empty() {
            let next = properties.into_iter().find(|(k, _)| *k == name).ok_or(NOT_A_FIELD)?;
            self.schema = next.1;
            self.path.push_str(if self.path.is_empty() { "" } else { "." });
            self.path.push_str(name);
            return Ok(());
        }
        if !self.schema.has("additionalProperties") {
            return Err(NOT_A_FIELD.to_owned());
        }
        self.schema = self.schema.at("additionalProperties");
        self.path.push_str(&format!("[{name}]"));
        Ok(())
    }
}

/// The delimiters `.`, `[` and `]`, each by itself, and what stands between them. Delimiters in quotes are text.
fn tokens(path: &str) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    let mut text = String::new();
    for c in path.chars() {
        let quoted = text.starts_with('\'');
        if quoted {
            let ends = c == '\'' && text.len() >= '\''.len_utf8() && !text.ends_with('\\');
            text.push(c);
            if ends {
                all.push(std::mem::take(&mut text));
            }
        } else if matches!(c, '.' | '[' | ']') {
            if !text.is_empty() {
                all.push(std::mem::take(&mut text));
            }
            all.push(c.to_string());
        } else {
            text.push(c);
        }
    }
    if !text.is_empty() {
        all.push(text);
    }
    all
}

/// The text between single quotes, without the backslashes that escape.
fn unquote(token: &str) -> Result<String, String> {
    let inner = token.strip_prefix('\'').and_then(|t| t.strip_suffix('\''));
    let inner = inner.ok_or_else(|| format!("expected single quoted string but got {token}"))?;
    let mut out = String::new();
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => out.extend(chars.next()),
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths() {
        let schema = json!({"properties": {"spec": {"properties": {
            "color": {"type": "string"},
            "a.b": {"type": "integer"},
            "labels": {"additionalProperties": {"type": "string"}},
        }}}});
        let to = |path, brackets| follow(path, &schema, brackets).map(|f| f.path);
        for (path, wanted) in [
            (".spec.color", Ok("spec.color")),
            (".spec['a.b']", Ok("spec.a.b")),
            (".spec.labels.x", Ok("spec.labels[x]")),
            (".spec.labels['x']", Ok("spec.labels[x]")),
            ("spec", Err("expected [ or . but got: spec")),
            (".spec.size", Err(NOT_A_FIELD)),
            (".spec.color.x", Err(NOT_A_FIELD)),
            (".spec.", Err(ENDS)),
            (".spec['a.b'", Err(ENDS)),
            (".spec[0]", Err("expected single quoted string but got 0")),
        ] {
            assert_eq!(to(path, true), wanted.map(str::to_owned).map_err(str::to_owned), "{path}");
        }
        assert_eq!(to(".spec['a.b']", false), Err("array notation is not allowed".to_owned()));
    }
}
