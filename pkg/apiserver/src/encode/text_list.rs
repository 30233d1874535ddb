//! Lists for people, indented JSON and YAML, made item by item while they are sent: parsed objects take ten times the memory of
//! their bytes, and a large list is not to cost that.
//!
//! Invariant: the text is that of the whole list as one value.

use super::body::Chunks;
use super::negotiate::{Form, Media};
use super::text;
use crate::cache::entry::Entry;
use serde_json::{Value, json};
use std::sync::Arc;

/// Stands where the items go. Nothing that comes before them in a list is this text.
const PLACE: &str = "the items of this list";

/// The text of `frame`, a list without items, with what `item` makes of the entries under `key`.
pub fn chunks<F: FnMut(&Entry) -> Value>(
    mut frame: Value,
    key: &str,
    entries: Vec<Arc<Entry>>,
    form: &Form,
    mut item: F,
) -> Chunks<impl FnMut(&Entry, &mut Vec<u8>) + use<F>> {
    frame[key] = json!([PLACE]);
    let whole = text(&frame, form);
    let whole = String::from_utf8_lossy(&whole);
    let around = Around::of(form.media);
    let (head, tail) = whole.split_once(&around.place).unwrap_or((&whole, ""));
    let (form, between, tail) = (form.clone(), around.between, tail.as_bytes().to_vec());
    let write = move |entry: &Entry, out: &mut Vec<u8>| around.indent(&text(&item(entry), &form), out);
    Chunks::new(head.into(), entries.into_iter(), between, tail.into(), write)
}

/// What stands around the items of a list.
struct Around {
    place: String,
    /// In front of an item's first line, and of its other lines.
    first: &'static [u8],
    others: &'static [u8],
    between: &'static [u8],
}

impl Around {
    fn of(media: Media) -> Self {
        match media {
            Media::Yaml => Around { place: format!("- {PLACE}"), first: b"- ", others: b"  ", between: b"\n" },
            _ => Around { place: format!("    \"{PLACE}\""), first: b"    ", others: b"    ", between: b",\n" },
        }
    }

    /// The text of an item, as part of the list. Lines are lines of the text: in JSON those of strings are escaped.
    fn indent(&self, text: &[u8], out: &mut Vec<u8>) {
        let text = text.strip_suffix(b"\n").unwrap_or(text);
        for (i, line) in text.split(|b| *b == b'\n').enumerate() {
            if i > 0 {
                out.push(b'\n');
            }
            match (i, line.is_empty()) {
                (0, _) => out.extend_from_slice(self.first),
                (_, true) => {}
                _ => out.extend_from_slice(self.others),
            }
            out.extend_from_slice(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use isopod_kinds::table::builtin;

    fn check(form: &Form, values: &[Value]) {
        let kind = builtin().into_iter().find(|k| k.gvk.kind == "ConfigMap").unwrap();
        let entries: Vec<Arc<Entry>> = values
            .iter()
            .enumerate()
            .map(|(i, v)| {
                let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": i.to_string()}, "data": {"k": v}});
                Arc::new(Entry::new(&kind, &format!("a/{i}"), object.to_string().as_bytes(), 1).unwrap())
            })
            .collect();
        let value = |e: &Entry| serde_json::from_slice::<Value>(&e.body).unwrap();
        let frame =
            json!({"kind": "ConfigMapList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": []});
        let mut whole = frame.clone();
        whole["items"] = entries.iter().map(|e| value(e)).collect();
        let made: Vec<u8> = chunks(frame, "items", entries, form, value).flatten().collect();
        assert_eq!(String::from_utf8(made).unwrap(), String::from_utf8(text(&whole, form).into()).unwrap());
    }

    #[test]
    fn the_text_is_that_of_the_whole() {
        let long = "word ".repeat(100);
        let texts = [
            "a",
            "",
            "a\nb\n",
            "\n\na\n\nb",
            "  a\n b\n\n\n",
            "a\n\n  \n",
            "a: b\n- c",
            "- ",
            "\t\na",
            "yes",
            long.as_str(),
        ];
        let values: Vec<Value> = texts.iter().map(|t| json!(t)).collect();
        let nested = [json!([]), json!({}), json!([[1, {"a": [null]}], "x\ny"]), json!({"a": {"b": []}})];
        for form in [Form { pretty: true, ..Form::default() }, Form { media: Media::Yaml, ..Form::default() }] {
            check(&form, &values);
            check(&form, &nested);
            check(&form, &values[..1]);
        }
    }
}
