//! What upstream's library makes of the same texts, and the bounds of what is read.

use super::*;
use crate::json;
use serde_json::json;

/// What upstream's library makes of the same texts (`hack/yaml`).
#[test]
fn answers_are_upstreams() {
    let mut wrong = Vec::new();
    for line in include_str!("golden/answers.jsonl").lines() {
        let case = json::parse(line.as_bytes()).unwrap();
        let text = case["text"].as_str().unwrap();
        let told = match parse(text.as_bytes()) {
            Ok(document) => {
                let mut told = json!({"text": text, "json": document.value});
                if let Some(strict) = strictly(&document.repeated) {
                    told["strict"] = strict.into();
                }
                told
            }
            Err(e) => json!({"text": text, "error": e.to_string()}),
        };
        if told != case {
            wrong.push(format!("{case}\n{told}"));
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n\n"));
}

#[test]
fn bytes_that_are_no_text() {
    for (bytes, why) in [
        (&b"a: \x80"[..], "invalid leading UTF-8 octet"),
        (b"a: \xc3", "incomplete UTF-8 octet sequence"),
        (b"a: \xc3x", "invalid trailing UTF-8 octet"),
        (b"a: \xc0\x80", "invalid length of a UTF-8 sequence"),
        (b"a: \xed\xa0\x80", "invalid Unicode character"),
        (b"a: \xf7\xbf\xbf\xbf", "invalid Unicode character"),
    ] {
        assert_eq!(parse(bytes).unwrap_err().to_string(), format!("yaml: {why}"), "{bytes:?}");
    }
    let utf16: Vec<u8> = "\u{feff}a: é".encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert_eq!(parse(&utf16).unwrap().value, json!({"a": "é"}));
}

#[test]
fn no_value_is_deeper_than_the_limit() {
    let limit = depth::limit();
    let nested = |open: &str, close: &str, levels: usize| format!("{}x{}", open.repeat(levels), close.repeat(levels));
    for (open, close) in [("[", "]"), ("- ", ""), ("{a: ", "}")] {
        assert_eq!(depth::of(&parse(nested(open, close, limit).as_bytes()).unwrap().value), limit, "{open}");
        let text = format!("\n{}", nested(open, close, limit + 1));
        let told = parse(text.as_bytes()).unwrap_err().to_string();
        assert_eq!(told, format!("yaml: line 2: exceeded max depth of {limit}"), "{open}");
    }
    // Aliases lie in each other where the text is flat, and merged maps recurse without being deep.
    for (first, open, close) in [("x", "[", "]"), ("{}", "{<<: ", "}")] {
        let (mut text, padding) = (format!("- &a0 {first}\n"), "- x\n".repeat(20));
        (1..=limit).for_each(|i| text += &format!("- &a{i} {open}*a{}{close}\n{padding}", i - 1));
        assert_eq!(parse(text.as_bytes()).unwrap_err().to_string(), json::TOO_DEEP, "{open}");
    }
}
