//! YAML as `sigs.k8s.io/yaml` reads it, which upstream reads request bodies and files with: YAML 1.1 with what that library makes
//! of it (`yes` is a bool, `0777` an octal number, `1:20` a string), merge keys, aliases within bounds, and its complaints.
//!
//! Invariant: no value is deeper than [`depth::limit`], nor takes more time or memory than a bounded multiple of its text.

mod decode;
mod reader;
mod scalar;
mod scan;
mod tags;
mod text;
mod tree;

use crate::json::depth;
use serde_json::Value;

/// A text that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    pub value: Value,
    /// Keys that stood twice in one map, `line 3: key "a" already set in map`. The last one won.
    pub repeated: Vec<String>,
}

/// How a strict reader refuses a text with these keys that stand twice.
pub fn strictly(repeated: &[String]) -> Option<String> {
    (!repeated.is_empty()).then(|| format!("yaml: unmarshal errors:\n  {}", repeated.join("\n  ")))
}

/// Why a text cannot be read, in upstream's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum YamlError {
    /// It is no YAML.
    #[error("yaml: {0}")]
    Text(String),
    /// It is YAML that no JSON can be made of.
    #[error("{0}")]
    NoJson(String),
}

impl YamlError {
    /// Upstream tells no line that is zero.
    fn at(line: u64, problem: &str) -> Self {
        YamlError::Text(if line == 0 { problem.to_owned() } else { format!("line {line}: {problem}") })
    }
}

/// Whether a text stays one when it is written without quotes.
pub fn is_text(plain: &str) -> bool {
    scalar::is_text(plain)
}

/// As [`parse`], of a file: of two values of one key only one would count, and nobody can say which was meant.
pub fn parse_strictly(text: &str) -> Result<Value, YamlError> {
    let Document { value, repeated } = parse(text.as_bytes())?;
    strictly(&repeated).map_or(Ok(value), |why| Err(YamlError::NoJson(why)))
}

/// Reads the first document of a text.
pub fn parse(text: &[u8]) -> Result<Document, YamlError> {
    let limit = depth::limit();
    let tree = tree::read(&reader::text(text)?, limit)?;
    decode::decode(&tree, limit)
}

#[cfg(test)]
mod tests;
