//! JSON into views, in little code. serde_json's deserializer is generic and inlined into each type that it reads, twice over, as it
//! also takes arrays for structs: for the hundreds of structs of the views that was megabytes of the program. This one reads the same
//! text by functions that every type shares.
//!
//! Invariants: what serde_json takes, this takes, to the same value, and what serde_json refuses within the fields that a type
//! reads, this refuses (tests compare them), but for structs as arrays and keys that are no text, which no view has. Whatever is out of the ordinary
//! (escapes, fractions, raw values, fields to leave out) is serde_json's business. Errors name the byte where they were found.

use serde::de::{self, DeserializeSeed, Deserializer, Expected, IgnoredAny, MapAccess, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, forward_to_deserialize_any};
use serde_json::{Error, Number};
use std::borrow::Cow;

/// Deeper values are refused: each level takes some of the stack. serde_json's limit.
const MAX_DEPTH: u32 = 127;

/// Reads the value that is all of `bytes`.
pub fn from_slice<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, Error> {
    let mut reader = Reader { bytes, at: 0, depth: 0 };
    let read = T::deserialize(&mut reader).and_then(|value| reader.end().map(|()| value));
    read.map_err(|e| reader.located(&e))
}

/// A value from a value: what `serde_json::from_value` does, by way of the text.
pub fn from_value<T: de::DeserializeOwned>(value: &serde_json::Value) -> Result<T, Error> {
    from_slice(&serde_json::to_vec(value)?)
}

struct Reader<'de> {
    bytes: &'de [u8],
    at: usize,
    depth: u32,
}

/// The bytes from the beginning of a value on, as serde_json's reader.
type Rest<'de> = serde_json::Deserializer<serde_json::de::SliceRead<'de>>;

fn error(message: &str) -> Error {
    de::Error::custom(message)
}

impl<'de> Reader<'de> {
    /// The byte that is next after white space.
    fn peek(&mut self) -> Option<u8> {
        while let Some(b) = self.bytes.get(self.at) {
            if !matches!(b, b' ' | b'\n' | b'\t' | b'\r') {
                return Some(*b);
            }
            self.at += 1;
        }
        None
    }

    fn end(&mut self) -> Result<(), Error> {
        if self.peek().is_none() { Ok(()) } else { Err(error("trailing characters")) }
    }

    fn located(&self, e: &Error) -> Error {
        de::Error::custom(format_args!("{e} at byte {}", self.at))
    }

    /// The text of the next value, which is passed over.
    fn span(&mut self) -> Result<&'de [u8], Error> {
        self.peek();
        let rest = &self.bytes[self.at..];
        let mut values = Rest::from_slice(rest).into_iter::<IgnoredAny>();
        match values.next() {
            None => Err(error("EOF while parsing a value")),
            Some(Err(e)) => Err(e),
            Some(Ok(IgnoredAny)) => {
                let length = values.byte_offset();
                self.at += length;
                Ok(&rest[..length])
            }
        }
    }

    fn literal(&mut self, text: &'static str) -> Result<(), Error> {
        if !self.bytes[self.at..].starts_with(text.as_bytes()) {
            return Err(error("expected ident"));
        }
        self.at += text.len();
        Ok(())
    }

    /// Passes over `null`, if it is next.
    fn is_null(&mut self) -> Result<bool, Error> {
        if self.peek() == Some(b'n') { self.literal("null").map(|()| true) } else { Ok(false) }
    }

    /// `expected` says what it is for.
    fn boolean(&mut self, expected: &dyn Expected) -> Result<bool, Error> {
        match self.peek() {
            Some(b't') => self.literal("true").map(|()| true),
            Some(b'f') => self.literal("false").map(|()| false),
            _ => Err(self.unexpected(expected)),
        }
    }

    fn string(&mut self, expected: &dyn Expected) -> Result<Cow<'de, str>, Error> {
        if self.peek() != Some(b'"') {
            return Err(self.unexpected(expected));
        }
        let text = &self.bytes[self.at + 1..];
        let special = text.iter().position(|b| matches!(b, b'"' | b'\\' | 0..=0x1f));
        match special {
            Some(length) if text[length] == b'"' => {
                let text = std::str::from_utf8(&text[..length]).map_err(|_| error("invalid unicode code point"))?;
                self.at += length + 2;
                Ok(Cow::Borrowed(text))
            }
            // Escapes, or an error.
            _ => {
                let span = self.span()?;
                Ok(Cow::Owned(serde_json::from_slice(span)?))
            }
        }
    }

    fn number(&mut self, expected: &dyn Expected) -> Result<Number, Error> {
        match self.peek() {
            Some(b'-' | b'0'..=b'9') => {
                let span = self.span()?;
                serde_json::from_slice(span)
            }
            _ => Err(self.unexpected(expected)),
        }
    }

    /// Passes over what begins a map or a sequence.
    fn enter(&mut self, bracket: u8, expected: &dyn Expected) -> Result<(), Error> {
        if self.peek() != Some(bracket) {
            return Err(self.unexpected(expected));
        }
        if self.depth == MAX_DEPTH {
            return Err(error("recursion limit exceeded"));
        }
        self.depth += 1;
        self.at += 1;
        Ok(())
    }

    fn unexpected(&mut self, expected: &dyn Expected) -> Error {
        let found = match self.peek() {
            None => return error("EOF while parsing a value"),
            Some(b'"') => Unexpected::Other("string"),
            Some(b'{') => Unexpected::Map,
            Some(b'[') => Unexpected::Seq,
            Some(b't' | b'f') => Unexpected::Other("boolean"),
            Some(b'n') => Unexpected::Unit,
            Some(b'-' | b'0'..=b'9') => Unexpected::Other("number"),
            Some(_) => return error("expected value"),
        };
        de::Error::invalid_type(found, expected)
    }
}

/// What is between the brackets of a map or a sequence.
struct Items<'r, 'de> {
    reader: &'r mut Reader<'de>,
    first: bool,
    open: bool,
}

impl<'r, 'de> Items<'r, 'de> {
    fn enter(reader: &'r mut Reader<'de>, bracket: u8, expected: &dyn Expected) -> Result<Self, Error> {
        reader.enter(bracket, expected)?;
        Ok(Items { reader, first: true, open: true })
    }

    /// Passes over the comma before a further item of what `bracket` ends; `false`, and past the bracket, when there is none.
    fn another(&mut self, bracket: u8) -> Result<bool, Error> {
        let first = std::mem::replace(&mut self.first, false);
        match self.reader.peek() {
            Some(b) if b == bracket => {
                self.reader.at += 1;
                self.reader.depth -= 1;
                self.open = false;
                return Ok(false);
            }
            Some(b',') if !first => {
                self.reader.at += 1;
                if self.reader.peek() == Some(bracket) {
                    return Err(error("trailing comma"));
                }
            }
            Some(_) if first => {}
            Some(_) => return Err(error("expected `,` or the end")),
            None => return Err(error("EOF while parsing")),
        }
        Ok(true)
    }

    /// The key of the next member, past its colon.
    fn key(&mut self) -> Result<Option<Cow<'de, str>>, Error> {
        if !self.another(b'}')? {
            return Ok(None);
        }
        let key = self.reader.string(&"a string as key")?;
        if self.reader.peek() != Some(b':') {
            return Err(error("expected `:`"));
        }
        self.reader.at += 1;
        Ok(Some(key))
    }

    /// Not every visitor reads on until it is told that this is the end.
    fn end(mut self, bracket: u8) -> Result<(), Error> {
        if self.open && self.another(bracket)? { Err(error("trailing items")) } else { Ok(()) }
    }
}

impl<'de> SeqAccess<'de> for Items<'_, 'de> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        if self.another(b']')? { seed.deserialize(&mut *self.reader).map(Some) } else { Ok(None) }
    }
}

impl<'de> MapAccess<'de> for Items<'_, 'de> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        match self.key()? {
            Some(key) => seed.deserialize(Key(&key)).map(Some),
            None => Ok(None),
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        seed.deserialize(&mut *self.reader)
    }
}

/// A member's key: always text, and never borrowed.
struct Key<'a>(&'a str);

impl<'de> Deserializer<'de> for Key<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_str(self.0)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct seq tuple
        tuple_struct map struct enum identifier ignored_any
    }
}

impl<'de> Reader<'de> {
    fn read_text<V: Visitor<'de>>(&mut self, visitor: V) -> Result<V::Value, Error> {
        match self.string(&visitor)? {
            Cow::Borrowed(text) => visitor.visit_borrowed_str(text),
            Cow::Owned(text) => visitor.visit_string(text),
        }
    }

    fn read_number<V: Visitor<'de>>(&mut self, visitor: V) -> Result<V::Value, Error> {
        self.number(&visitor)?.deserialize_any(visitor)
    }
}

macro_rules! numbers {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            self.read_number(visitor)
        }
    )*};
}

macro_rules! texts {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            self.read_text(visitor)
        }
    )*};
}

impl<'de> Deserializer<'de> for &mut Reader<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.peek() {
            Some(b'"') => self.read_text(visitor),
            Some(b'{') => self.deserialize_map(visitor),
            Some(b'[') => self.deserialize_seq(visitor),
            Some(b'n') => self.deserialize_unit(visitor),
            Some(b't' | b'f') => self.deserialize_bool(visitor),
            _ => self.read_number(visitor),
        }
    }

    numbers! { deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128 deserialize_u8 deserialize_u16
    deserialize_u32 deserialize_u64 deserialize_u128 deserialize_f32 deserialize_f64 }

    texts! { deserialize_char deserialize_str deserialize_string deserialize_bytes deserialize_byte_buf deserialize_identifier }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let value = self.boolean(&visitor)?;
        visitor.visit_bool(value)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.is_null()? { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.is_null()? { visitor.visit_unit() } else { Err(self.unexpected(&visitor)) }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_unit(visitor)
    }

    /// serde_json knows its own types (raw values) by their names.
    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, Error> {
        if name.starts_with('$') {
            let span = self.span()?;
            return Rest::from_slice(span).deserialize_newtype_struct(name, visitor);
        }
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let mut items = Items::enter(self, b'[', &visitor)?;
        let value = visitor.visit_seq(&mut items)?;
        items.end(b']').map(|()| value)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let mut items = Items::enter(self, b'{', &visitor)?;
        let value = visitor.visit_map(&mut items)?;
        items.end(b'}').map(|()| value)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let span = self.span()?;
        Rest::from_slice(span).deserialize_enum(name, variants, visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.span()?;
        visitor.visit_unit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::views;
    use proptest::prelude::*;
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};
    use std::fmt::Debug;

    /// Both readers take `text` to the same value, or both refuse it.
    fn same<T: DeserializeOwned + PartialEq + Debug>(text: &[u8]) {
        let (ours, theirs) = (from_slice::<T>(text), serde_json::from_slice::<T>(text));
        let shown = String::from_utf8_lossy(text);
        match (&ours, &theirs) {
            (Ok(a), Ok(b)) => assert_eq!(a, b, "{shown}"),
            (Err(_), Err(_)) => {}
            _ => panic!("{shown}: {ours:?}, serde_json: {theirs:?}"),
        }
    }

    #[derive(Debug, PartialEq, Deserialize)]
    enum Policy {
        Always,
        After { seconds: u8 },
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Newtype(i16);

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Everything {
        text: String,
        #[serde(default)]
        policy: Option<Policy>,
        #[serde(default)]
        pair: Option<(u8, String)>,
        #[serde(default)]
        small: Option<Newtype>,
        #[serde(default)]
        share: Option<f64>,
        #[serde(default)]
        either: Option<views::IntOrString>,
        #[serde(default)]
        raw: Option<views::Raw>,
        #[serde(flatten)]
        rest: std::collections::BTreeMap<String, Value>,
    }

    #[test]
    fn ordinary_and_odd_texts() {
        for text in [
            r#"{"text":"a"}"#,
            r#" { "text" : "a\n\u00e4\ud83d\ude00" , "share" : 1.5e3 , "x" : [ ] , "y" : { } } "#,
            r#"{"text":"ä","policy":"Always","pair":[1,"b"],"small":-3,"share":2,"either":5,"raw":{"a": [1, 2]}}"#,
            r#"{"text":"","policy":{"After":{"seconds":7}},"either":"http","raw":"text","unknown":{"a":[true,null]}}"#,
            r#"{"text":null}"#,
            r#"{"text":1}"#,
            r#"{"text":"a","pair":[1]}"#,
            r#"{"text":"a","pair":[1,"b",2]}"#,
            r#"{"text":"a","pair":[256,"b"]}"#,
            r#"{"text":"a","policy":"Never"}"#,
            r#"{"text":"a","small":40000}"#,
            r#"{"text":"a","small":1.0}"#,
            r#"{"text":"a","share":-0}"#,
            r#"{"text":"a","share":01}"#,
            r#"{"text":"a","share":18446744073709551616}"#,
            r#"{"text":"a","either":3000000000}"#,
            r#"{"text":"a","text":"b"}"#,
            r#"{"text":"a",}"#,
            r#"{,"text":"a"}"#,
            r#"{"text":"a" "x":1}"#,
            r#"{"text" "a"}"#,
            r#"{"text":"a","x":[1,]}"#,
            r#"{"text":"a","x":[1 2]}"#,
            r#"{"text":"a","x":{"y":1]}"#,
            r#"{"text":"a","x":tru}"#,
            r#"{"text":"a","x":nul}"#,
            r#"{1:"a"}"#,
            r#"{"text":"a"} x"#,
            r#"{"text":"a"#,
            "{\"text\":\"a\u{1}\"}",
            "{\"text\":\"a\nb\"}",
            r#"{"text":"\ud800"}"#,
            r#"{"text":"\q"}"#,
            "",
            "null",
            "[]",
        ] {
            same::<Everything>(text.as_bytes());
            same::<Value>(text.as_bytes());
            for cut in 0..text.len() {
                same::<Everything>(&text.as_bytes()[..cut]);
            }
        }
        same::<Everything>(b"{\"text\":\"\xff\"}");
    }

    #[test]
    fn depth_is_limited() {
        for depth in [100, 126, 127, 128, 129, 100_000] {
            same::<Value>(&[vec![b'['; depth], vec![b']'; depth]].concat());
        }
    }

    #[test]
    fn errors_say_where() {
        let e = from_slice::<views::Pod>(br#"{"spec":{"priority":"high"}}"#).unwrap_err();
        assert_eq!(e.to_string(), "invalid type: string, expected i32 at byte 20");
        let e = from_slice::<views::Pod>(br#"{"spec":{"containers":{}}}"#).unwrap_err();
        assert_eq!(e.to_string(), "invalid type: map, expected a sequence at byte 22");
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::vec((any::<String>(), inner), 0..6)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_value(value in values()) {
            same::<Value>(value.to_string().as_bytes());
            same::<Value>(format!("{value:#}").as_bytes());
        }

        /// A pod, some of whose bytes are others.
        #[test]
        fn damaged_pods(damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3)) {
            let mut text = json!({
                "metadata": {"name": "a", "labels": {"app": "we\"b"}, "ownerReferences": [{"uid": "u", "controller": true}]},
                "spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80}], "resources": {"limits": {"cpu": 1, "memory": "1Gi"}}}],
                    "priority": -5, "affinity": null, "tolerations": [{"tolerationSeconds": 300}]},
                "status": {"conditions": [{"type": "Ready", "status": "True"}]},
            }).to_string().into_bytes();
            for (at, byte) in damage {
                let at = at.index(text.len());
                text[at] = byte;
            }
            same::<views::Pod>(&text);
        }
    }
}
