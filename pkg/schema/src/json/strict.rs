//! What Go's strict decoder finds in texts that have no schema: fields that stand twice, and those that an operation of a JSON
//! patch does not have.

use super::decode::MAX_STRICT;
use super::scan::{Scanner, Syntax, Token};
use std::collections::HashSet;

/// The fields of a JSON patch's operation.
const OPERATION: [&str; 4] = ["op", "path", "from", "value"];

/// The complaints about a text that is JSON: `duplicate field "spec.a"`.
pub fn doubled_fields(bytes: &[u8]) -> Vec<String> {
    let mut found = Found::default();
    // What is no JSON is told by whoever decodes it.
    let _ = found.value(&mut Scanner::new(bytes));
    found.texts
}

/// The complaints about a JSON patch, a text that is JSON.
pub fn strange_operations(bytes: &[u8]) -> Vec<String> {
    let mut found = Found::default();
    let _ = found.operations(&mut Scanner::new(bytes));
    found.texts
}

#[derive(Default)]
struct Found {
    texts: Vec<String>,
    /// Of what is looked at.
    path: String,
    seen: HashSet<String>,
}

impl Found {
    fn report(&mut self, what: &str) {
        if self.texts.len() >= MAX_STRICT {
            return;
        }
        let text = format!("{what} field {:?}", self.path);
        if self.seen.insert(text.clone()) {
            self.texts.push(text);
        }
    }

    fn value(&mut self, s: &mut Scanner) -> Result<(), Syntax> {
        let above = self.path.len();
        match s.token()? {
            Token::Object => {
                let (mut keys, mut twice) = (HashSet::new(), HashSet::new());
                s.object::<Syntax>(&mut |s, key| {
                    if above > 0 {
                        self.path.push('.');
                    }
                    self.path.push_str(&key);
                    // Once: a path may be long.
                    if !keys.insert(key.clone()) && twice.insert(key) {
                        self.report("duplicate");
                    }
                    self.value(s)?;
                    self.path.truncate(above);
                    Ok(())
                })
            }
            Token::Array => s.array::<Syntax>(&mut |s, i| {
                self.path.push_str(&format!("[{i}]"));
                self.value(s)?;
                self.path.truncate(above);
                Ok(())
            }),
            _ => s.skip(),
        }
    }

    fn operations(&mut self, s: &mut Scanner) -> Result<(), Syntax> {
        if !matches!(s.token()?, Token::Array) {
            return s.skip();
        }
        s.array::<Syntax>(&mut |s, i| match s.token()? {
            Token::Object => {
                let mut keys = HashSet::new();
                s.object::<Syntax>(&mut |s, key| {
                    self.path = format!("[{i}].{key}");
                    if !OPERATION.contains(&&*key) {
                        self.report("unknown");
                        return s.skip();
                    }
                    if !keys.insert(key) {
                        self.report("duplicate");
                    }
                    self.value(s)
                })
            }
            _ => s.skip(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_that_stand_twice_are_named_once() {
        let text = br#"{"a": {"b": 1, "b": 2, "b": 3}, "l": [{}, {"c": 1, "c": 2}], "a": 1}"#;
        let told = [r#"duplicate field "a.b""#, r#"duplicate field "l[1].c""#, r#"duplicate field "a""#];
        assert_eq!(doubled_fields(text), told);
        assert!(doubled_fields(b"[1, {\"a\": 1}]").is_empty());
    }

    #[test]
    fn operations_have_four_fields() {
        let text = br#"[{"op": "add", "path": "/a", "value": {"x": 1, "x": 2}, "old": {"y": 1, "y": 2}, "op": "add"}]"#;
        let told = [r#"duplicate field "[0].value.x""#, r#"unknown field "[0].old""#, r#"duplicate field "[0].op""#];
        assert_eq!(strange_operations(text), told);
        assert!(strange_operations(b"null").is_empty());
    }
}
