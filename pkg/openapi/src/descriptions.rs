//! Upstream's descriptions of definitions and fields, from the blob that `build.rs` makes.

use std::collections::HashMap;

static BLOB: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptions.zst"));

/// The unpacked text and where each definition begins in it. Drop it when the document is made.
pub struct Descriptions {
    text: String,
    /// Byte offset of each definition's line.
    definitions: HashMap<String, usize>,
    /// Those of parameters.
    parameters: HashMap<String, String>,
}

/// Tells these descriptions from those of another build.
pub const FINGERPRINT: &str = env!("ISOPOD_DESCRIPTIONS");

impl Descriptions {
    pub fn unpack() -> Self {
        let bytes = zstd::decode_all(BLOB).unwrap_or_default();
        let text = String::from_utf8(bytes).unwrap_or_default();
        let mut definitions = HashMap::new();
        let mut at = 0;
        for line in text.split_inclusive('\n') {
            if !line.starts_with('\t')
                && let Some((name, _)) = line.split_once('\t')
            {
                definitions.insert(name.to_owned(), at);
            }
            at += line.len();
        }
        let mut all = Descriptions { text, definitions, parameters: HashMap::new() };
        let parameters =
            all.fields("parameters").map(|(name, text)| (name.to_owned(), plain(text).unwrap_or_default()));
        all.parameters = parameters.collect();
        all
    }

    /// What a parameter of an operation is. `owner`: the operation's action, or the kind of its options.
    pub fn parameter(&self, owner: &str, name: &str) -> Option<&str> {
        let own = self.parameters.get(&format!("{owner}.{name}"));
        own.or_else(|| self.parameters.get(name)).map(String::as_str)
    }

    fn lines(&self, definition: &str) -> impl Iterator<Item = &str> {
        let rest = self.definitions.get(definition).map_or("", |at| &self.text[*at..]);
        rest.lines()
    }

    /// What a definition is.
    pub fn definition(&self, name: &str) -> Option<String> {
        let (_, text) = self.lines(name).next()?.split_once('\t')?;
        plain(text)
    }

    /// What a field is.
    pub fn field(&self, definition: &str, field: &str) -> Option<String> {
        self.fields(definition).find(|(name, _)| *name == field).and_then(|(_, text)| plain(text))
    }

    /// The fields of a definition with their descriptions, escaped.
    fn fields(&self, definition: &str) -> impl Iterator<Item = (&str, &str)> {
        let fields = self.lines(definition).skip(1).take_while(|l| l.starts_with('\t'));
        fields.filter_map(|l| l[1..].split_once('\t'))
    }
}

fn plain(escaped: &str) -> Option<String> {
    if escaped.is_empty() {
        return None;
    }
    let mut out = String::with_capacity(escaped.len());
    let mut chars = escaped.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => out.push(match chars.next() {
                Some('n') => '\n',
                Some('t') => '\t',
                Some(other) => other,
                None => '\\',
            }),
            c => out.push(c),
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_and_definitions() {
        let d = Descriptions::unpack();
        let containers = d.field("io.k8s.api.core.v1.PodSpec", "containers").expect("described");
        assert!(containers.starts_with("List of containers"), "{containers}");
        assert!(d.definition("io.k8s.api.core.v1.Pod").is_some());
        assert!(d.definition("io.k8s.apimachinery.pkg.api.resource.Quantity").is_some_and(|t| t.contains('\n')));
        assert_eq!(d.field("io.k8s.api.core.v1.PodSpec", "nothing"), None);
        let policy = d.field("io.k8s.api.core.v1.Container", "imagePullPolicy").expect("described");
        assert!(policy.contains("\n\nPossible enum values:\n - `\"Always\"` means that"), "{policy}");
    }

    #[test]
    fn lists_and_parameters() {
        let d = Descriptions::unpack();
        let list = "io.k8s.api.coordination.v1.LeaseList";
        assert_eq!(d.definition(list).as_deref(), Some("LeaseList is a list of Lease objects."));
        assert_eq!(d.field(list, "kind"), d.field("io.k8s.api.core.v1.Pod", "kind"));
        assert_eq!(d.parameter("get", "path"), Some("path to the resource"));
        let path = d.parameter("PodProxyOptions", "path").expect("described");
        assert!(path.starts_with("Path is the URL path"), "{path}");
        assert_ne!(d.parameter("patch", "fieldManager"), d.parameter("put", "fieldManager"));
    }

    #[test]
    fn escapes() {
        assert_eq!(plain("a\\nb\\\\n\\t"), Some("a\nb\\n\t".to_owned()));
    }
}
