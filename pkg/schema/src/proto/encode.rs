//! JSON to messages: the text is laid out once ([`Tape`]), then written from its end to its front in the order of protobuf.
//! No value tree is made, and nothing is allocated for a field.

use super::backward::Backward;
use super::layout::{Layout, Message, What as Part};
use super::tape::{Tape, Token, What, unescaped};
use super::wire::{self, BYTES, FIXED64, put_bytes, put_tag, put_varint};
use crate::json::decode_base64;
use crate::scalar;
use crate::types::{Field, Node, Object};
use serde_json::Value;
use std::borrow::Cow;

/// Encodes objects one after the other, with the memory of the one before.
#[derive(Debug, Default)]
pub struct Encoder {
    tape: Tape,
    out: Backward,
}

impl Encoder {
    /// The message, without envelope, of an object in JSON. Values of a wrong type are written as zero, and so is all of
    /// what is no JSON.
    pub fn encode(&mut self, json: &[u8], object: &Object) -> &[u8] {
        let layout = Layout::of(object);
        let token = self.tape.read(json, layout).unwrap_or(Token::NULL);
        // Most objects are shorter as messages, but for what is written of absent fields.
        self.out.clear(json.len() + 64);
        Writer { json, tape: &self.tape, out: &mut self.out }.object(token, layout);
        self.out.bytes()
    }
}

/// Encodes a value as [`Encoder::encode`] does.
pub fn encode(value: &Value, object: &Object) -> Vec<u8> {
    Encoder::default().encode(&crate::json::encode(value), object).to_vec()
}

/// A `metav1.WatchEvent` message with its length in front, as a watch sends it. `object` is the object in its envelope.
pub fn watch_frame(event_type: &str, object: &[u8]) -> Vec<u8> {
    let raw = wire::field_length(1, object.len());
    let event = wire::field_length(1, event_type.len()) + wire::field_length(2, raw);
    let mut out = Vec::with_capacity(4 + event);
    out.extend_from_slice(&(event as u32).to_be_bytes());
    put_bytes(&mut out, 1, event_type.as_bytes());
    put_tag(&mut out, 2, BYTES);
    put_varint(&mut out, raw as u64);
    put_bytes(&mut out, 1, object);
    out
}

/// What is written of a field that JSON does not have.
pub(super) fn absent(f: &Field) -> Box<[u8]> {
    let nothing = f.pointer || matches!(f.node, Node::Bytes | Node::List(_) | Node::Map(_));
    let mut out = Backward::default();
    if !nothing {
        Writer { json: &[], tape: &Tape::default(), out: &mut out }.single(f.tag, &f.node, Token::NULL);
    }
    out.bytes().into()
}

struct Writer<'a> {
    json: &'a [u8],
    tape: &'a Tape,
    out: &'a mut Backward,
}

impl<'a> Writer<'a> {
    fn object(&mut self, token: Token, layout: &Layout) {
        let slots = if token.what == What::Object { self.tape.slots(token, layout) } else { &[] };
        self.message(&layout.message, layout, slots);
    }

    fn message(&mut self, message: &Message, layout: &Layout, slots: &[u32]) {
        for e in message.0.iter().rev() {
            match &e.what {
                Part::Field(place) => match slots.get(place.slot) {
                    None | Some(0) => self.out.put(&place.zero),
                    Some(index) => self.field(e.tag, &layout.nodes[place.slot], self.tape.token(*index)),
                },
                Part::Inline(inner) => {
                    let before = self.out.len();
                    self.message(inner, layout, slots);
                    self.out.message(e.tag, before);
                }
            }
        }
    }

    fn field(&mut self, tag: u32, node: &Node, token: Token) {
        match (node, token.what) {
            (Node::List(list), What::List) if list.wrapped => self.wrapped(tag, &list.item, token),
            (Node::List(list), What::List) => self.items(tag, &list.item, token),
            (Node::Map(map), What::Map) => self.map(tag, &map.value, token),
            (Node::List(_) | Node::Map(_), _) => {}
            _ => self.single(tag, node, token),
        }
    }

    fn items(&mut self, tag: u32, item: &Node, list: Token) {
        let mut index = list.start;
        while index != 0 {
            let token = self.tape.token(index);
            self.single(tag, item, token);
            index = token.before;
        }
    }

    /// The message of a named list type: `{items = 1}`.
    fn wrapped(&mut self, tag: u32, item: &Node, list: Token) {
        let before = self.out.len();
        if list.what == What::List {
            self.items(1, item, list);
        }
        self.out.message(tag, before);
    }

    fn map(&mut self, tag: u32, value: &Node, map: Token) {
        if map.end != 0 {
            for index in self.sorted(map).into_iter().rev() {
                self.entry(tag, index, value);
            }
            return;
        }
        let mut index = map.start;
        while index != 0 {
            self.entry(tag, index, value);
            index = self.tape.token(index).before;
        }
    }

    /// The keys in ascending order; of equal ones the last.
    fn sorted(&self, map: Token) -> Vec<u32> {
        let mut keys = Vec::new();
        let mut index = map.start;
        while index != 0 {
            let token = self.tape.token(index);
            keys.push((self.string(token), index));
            index = token.before;
        }
        // The last one stands first here, and a stable sort leaves it there.
        keys.sort_by(|(a, _), (b, _)| a.cmp(b));
        keys.dedup_by(|(a, _), (b, _)| a == b);
        keys.into_iter().map(|(_, index)| index).collect()
    }

    fn entry(&mut self, tag: u32, key: u32, node: &Node) {
        let before = self.out.len();
        let value = self.tape.token(key + 1);
        match (node, value.what) {
            (Node::Bytes, What::Null) => {}
            (Node::List(list), _) => self.wrapped(2, &list.item, value),
            _ => self.single(2, node, value),
        }
        self.text(1, self.tape.token(key));
        self.out.message(tag, before);
    }

    /// One value that is no list and no map. `null` is the zero value.
    fn single(&mut self, tag: u32, node: &Node, token: Token) {
        match node {
            Node::Bool => self.out.int(tag, i64::from(token.what == What::True)),
            Node::Int32 | Node::Int64 => {
                let n = self.integer(token);
                self.out.int(tag, n);
            }
            Node::Double => {
                let x: f64 = self.number(token).parse().unwrap_or(0.0);
                self.out.put(&x.to_bits().to_le_bytes());
                self.out.tag(tag, FIXED64);
            }
            Node::String => self.text(tag, token),
            Node::Bytes => {
                let bytes = decode_base64(&self.string(token)).unwrap_or_default();
                self.out.text(tag, &bytes);
            }
            Node::Object(o) => self.nested(tag, token, o.get()),
            _ => {
                let before = self.out.len();
                self.special(node, token);
                self.out.message(tag, before);
            }
        }
    }

    fn nested(&mut self, tag: u32, token: Token, object: &Object) {
        let before = self.out.len();
        self.object(token, Layout::of(object));
        self.out.message(tag, before);
    }

    /// The content of the messages of types that are no structs in JSON.
    fn special(&mut self, node: &Node, token: Token) {
        match (node, token.what) {
            (Node::Quantity, What::Text | What::Escaped) => self.text(1, token),
            (Node::Quantity, What::Number) => self.out.text(1, self.slice(token)),
            (Node::Quantity, _) => self.out.text(1, b"0"),
            (Node::IntOrString, What::Text | What::Escaped) => {
                self.text(3, token);
                self.out.int(2, 0);
                self.out.int(1, 1);
            }
            (Node::IntOrString, _) => {
                let n = self.integer(token);
                self.out.text(3, b"");
                self.out.int(2, n);
                self.out.int(1, 0);
            }
            (Node::Time | Node::MicroTime, What::Text | What::Escaped) => {
                if let Some((seconds, nanos)) = instant(&self.string(token)) {
                    self.out.int(2, if matches!(node, Node::MicroTime) { nanos / 1000 * 1000 } else { 0 });
                    self.out.int(1, seconds);
                }
            }
            (Node::Duration, _) => {
                let nanos = scalar::duration_nanos(&self.string(token)).unwrap_or(0);
                self.out.int(1, nanos);
            }
            (Node::Any | Node::FieldsV1, What::Raw) => self.out.text(1, self.slice(token)),
            (Node::SchemaOrBool(o), what) => {
                if what == What::Object {
                    self.nested(2, token, o.get());
                }
                self.out.int(1, i64::from(matches!(what, What::Object | What::True)));
            }
            (Node::SchemaOrArray(o) | Node::SchemaOrStringArray(o), What::Object) => self.nested(1, token, o.get()),
            (Node::SchemaOrArray(o), What::List) => self.items(2, &Node::Object(o.clone()), token),
            (Node::SchemaOrStringArray(_), What::List) => self.items(2, &Node::String, token),
            _ => {}
        }
    }

    fn text(&mut self, tag: u32, token: Token) {
        match token.what {
            What::Escaped => self.out.text(tag, unescaped(self.json, token).as_bytes()),
            What::Text => self.out.text(tag, self.slice(token)),
            _ => self.out.text(tag, b""),
        }
    }

    fn slice(&self, token: Token) -> &'a [u8] {
        self.json.get(token.start as usize..token.end as usize).unwrap_or_default()
    }

    /// The text of a string; that of what is none is empty.
    fn string(&self, token: Token) -> Cow<'a, str> {
        match token.what {
            What::Escaped => Cow::Owned(unescaped(self.json, token)),
            What::Text => String::from_utf8_lossy(self.slice(token)),
            _ => Cow::Borrowed(""),
        }
    }

    /// The literal of a number; that of what is none is empty.
    fn number(&self, token: Token) -> &'a str {
        let literal = if token.what == What::Number { self.slice(token) } else { b"" };
        std::str::from_utf8(literal).unwrap_or_default()
    }

    fn integer(&self, token: Token) -> i64 {
        let literal = self.number(token);
        literal.parse().unwrap_or_else(|_| literal.parse::<f64>().map_or(0, |x| x as i64))
    }
}

/// Seconds since 1970 and nanoseconds of a time in RFC 3339.
fn instant(text: &str) -> Option<(i64, i64)> {
    canonical_instant(text.as_bytes()).or_else(|| {
        let nanos = isopod_api::time::parse(text)?.as_nanosecond();
        Some((nanos.div_euclid(1_000_000_000) as i64, nanos.rem_euclid(1_000_000_000) as i64))
    })
}

/// As [`instant`], of the two forms that canonical objects have: whole seconds or six digits, in UTC.
fn canonical_instant(text: &[u8]) -> Option<(i64, i64)> {
    let number = |digits: &[u8]| {
        let all = digits.iter().all(u8::is_ascii_digit);
        all.then(|| digits.iter().fold(0i64, |n, c| n * 10 + i64::from(c - b'0')))
    };
    let [y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2, b'T', h1, h2, b':', n1, n2, b':', s1, s2, rest @ ..] = text else {
        return None;
    };
    let nanos = match rest {
        b"Z" => 0,
        [b'.', micros @ .., b'Z'] if micros.len() == 6 => number(micros)? * 1000,
        _ => return None,
    };
    let (year, month, day) = (number(&[*y1, *y2, *y3, *y4])?, number(&[*m1, *m2])?, number(&[*d1, *d2])?);
    let (hour, minute, second) = (number(&[*h1, *h2])?, number(&[*n1, *n2])?, number(&[*s1, *s2])?);
    // The last days of a month, leap seconds and nonsense go the long way.
    if !(1..=12).contains(&month) || !(1..=28).contains(&day) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    Some((days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second, nanos))
}

/// Days since 1970 of a date in the Gregorian calendar, counted in years that begin in March.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leap_days + (153 * month + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_are_those_of_the_calendar() {
        let mut seconds = -62_135_596_800i64;
        while seconds < 253_402_300_799 {
            let t = jiff::Timestamp::from_second(seconds).unwrap();
            let text = isopod_api::time::format(t);
            assert_eq!(instant(&text), Some((seconds, 0)), "{text}");
            seconds += 86_400 * 13 + 3_607;
        }
        for (text, want) in [
            ("2024-02-29T01:02:03.000456Z", Some((1_709_168_523, 456_000))),
            ("2024-02-29T01:02:03.5Z", Some((1_709_168_523, 500_000_000))),
            ("2024-02-29T01:02:03+01:00", Some((1_709_164_923, 0))),
            ("2023-02-29T01:02:03Z", None),
            ("2023-13-01T01:02:03Z", None),
            ("yesterday", None),
            ("", None),
        ] {
            assert_eq!(instant(text), want, "{text}");
        }
    }

    #[test]
    fn what_is_like_the_last_one_is_taken_as_it_is() {
        let object = crate::facts::builtin().object_of(&isopod_api::Gvk::new("", "v1", "ConfigMap")).unwrap();
        let long = "x".repeat(100);
        let fields =
            |text: &str| format!(r#"{{"metadata":{{"managedFields":[{{"fieldsV1":{text},"manager":"m"}}]}}}}"#);
        let mut one = Encoder::default();
        for text in [
            format!(r#"{{"f:{long}":{{}}}}"#),
            format!(r#"{{"f:{long}":{{}},"f:z":{{}}}}"#),
            format!(r#"{{"f:{long}":{{".":{{}}}}}}"#),
            format!(r#"{{"f:{long}":{{}}}}"#),
            "{}".to_owned(),
        ] {
            let json = fields(&text);
            let bytes = one.encode(json.as_bytes(), &object).to_vec();
            assert_eq!(bytes, Encoder::default().encode(json.as_bytes(), &object), "{text}");
            let value = crate::proto::decode(&bytes, &object).unwrap();
            assert_eq!(value["metadata"]["managedFields"][0]["fieldsV1"].to_string(), text);
        }
    }
}
