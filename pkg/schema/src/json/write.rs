//! JSON text as Go's encoder writes it: floats in its form, so that `1.0` is `1` to every reader.

use isopod_api::float;
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
use std::io::{self, Write};

/// Compact JSON, appended.
pub fn append(out: &mut Vec<u8>, value: &(impl Serialize + ?Sized)) {
    let mut writer = Serializer::with_formatter(out, Compact);
    value.serialize(&mut writer).expect("a JSON value always encodes into memory");
}

/// Compact JSON.
pub fn encode(value: &(impl Serialize + ?Sized)) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    append(&mut out, value);
    out
}

/// Indented JSON, for people.
pub fn indented(value: &(impl Serialize + ?Sized)) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    let mut writer = Serializer::with_formatter(&mut out, Indented(PrettyFormatter::new()));
    value.serialize(&mut writer).expect("a JSON value always encodes into memory");
    out
}

struct Compact;

impl Formatter for Compact {
    fn write_f64<W: ?Sized + Write>(&mut self, out: &mut W, x: f64) -> io::Result<()> {
        out.write_all(float::go_json(x).as_bytes())
    }
}

struct Indented(PrettyFormatter<'static>);

impl Formatter for Indented {
    fn write_f64<W: ?Sized + Write>(&mut self, out: &mut W, x: f64) -> io::Result<()> {
        out.write_all(float::go_json(x).as_bytes())
    }
    fn begin_array<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.begin_array(out)
    }
    fn end_array<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.end_array(out)
    }
    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_array_value(out, first)
    }
    fn end_array_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.end_array_value(out)
    }
    fn begin_object<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.begin_object(out)
    }
    fn end_object<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.end_object(out)
    }
    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_object_key(out, first)
    }
    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.begin_object_value(out)
    }
    fn end_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.end_object_value(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn floats_are_written_as_go_writes_them() {
        let value = json!({"a": [1.0, -0.0, 1e20, 1e21, 0.000001, 2.5, 7], "b": {}});
        assert_eq!(
            String::from_utf8(encode(&value)).unwrap(),
            r#"{"a":[1,0,100000000000000000000,1e+21,0.000001,2.5,7],"b":{}}"#
        );
        let value = json!({"a": [1.0], "b": {}, "c": {"d": 1}});
        let text = "{\n  \"a\": [\n    1\n  ],\n  \"b\": {},\n  \"c\": {\n    \"d\": 1\n  }\n}";
        assert_eq!(String::from_utf8(indented(&value)).unwrap(), text);
    }
}
