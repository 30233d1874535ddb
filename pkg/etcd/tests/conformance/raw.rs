//! Any method of the API by name, with messages as JSON: for what client libraries hide, and for comparing whole answers.

use bytes::{Buf, BufMut, Bytes};
use futures::StreamExt;
use http::uri::PathAndQuery;
use prost::Message;
use prost_reflect::{
    DescriptorPool, DynamicMessage, EnumDescriptor, Kind, MessageDescriptor, MethodDescriptor, ReflectMessage, Value,
};
use serde_json::{Map, Value as Json, json};
use std::sync::LazyLock;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    let proto = concat!(env!("CARGO_MANIFEST_DIR"), "/proto");
    let files = ["rpc.proto", "lock.proto", "election.proto"].map(|f| format!("{proto}/{f}"));
    DescriptorPool::from_file_descriptor_set(protox::compile(files, [proto]).unwrap()).unwrap()
});

/// Longer byte strings are shown by their length.
const SHOWN: usize = 64;

pub type Refusal = (i32, String);

/// A message as it is on the wire.
#[derive(Default)]
pub struct Encoded;

impl Codec for Encoded {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Encoded;
    type Decoder = Encoded;
    fn encoder(&mut self) -> Encoded {
        Encoded
    }
    fn decoder(&mut self) -> Encoded {
        Encoded
    }
}

impl Encoder for Encoded {
    type Item = Bytes;
    type Error = Status;
    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(item);
        Ok(())
    }
}

impl Decoder for Encoded {
    type Item = Bytes;
    type Error = Status;
    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

#[derive(Clone)]
pub struct Raw {
    client: Grpc<Channel>,
    token: Option<String>,
}

/// `KV/Put` and such.
fn method(name: &str) -> MethodDescriptor {
    let (service, method) = name.split_once('/').unwrap();
    let found = POOL.services().find(|s| s.name() == service).unwrap_or_else(|| panic!("no service {service}"));
    found.methods().find(|m| m.name() == method).unwrap_or_else(|| panic!("no method {name}"))
}

fn path(method: &MethodDescriptor) -> PathAndQuery {
    format!("/{}/{}", method.parent_service().full_name(), method.name()).parse().unwrap()
}

pub fn refusal(status: &Status) -> Refusal {
    (status.code() as i32, status.message().to_owned())
}

impl Raw {
    pub fn with_token(&self, token: &str) -> Self {
        Raw { token: Some(token.to_owned()), ..self.clone() }
    }

    pub async fn connect(url: &str) -> Self {
        let channel = Endpoint::from_shared(url.to_owned()).unwrap().connect().await.unwrap();
        Raw { client: Grpc::new(channel).max_decoding_message_size(64 << 20), token: None }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("token", token.parse().unwrap());
        }
        request
    }

    pub async fn call(&self, name: &str, request: &Json) -> Result<Json, Refusal> {
        let method = method(name);
        let request = self.request(encode(&method.input(), request));
        let mut client = self.client.clone();
        client.ready().await.unwrap();
        let answer = client.unary(request, path(&method), Encoded).await.map_err(|s| refusal(&s))?;
        Ok(decode(&method.output(), answer.into_inner()))
    }

    /// A stream in both directions, or of answers to one request.
    pub async fn open(
        &self,
        name: &str,
        requests: tokio::sync::mpsc::UnboundedReceiver<Json>,
    ) -> Result<Answers, Refusal> {
        let method = method(name);
        let input = method.input();
        let requests = futures::stream::unfold(requests, move |mut requests| {
            let input = input.clone();
            async move { requests.recv().await.map(|r| (encode(&input, &r), requests)) }
        });
        let only = if method.is_client_streaming() { usize::MAX } else { 1 };
        let requests = requests.take(only);
        let mut client = self.client.clone();
        client.ready().await.unwrap();
        let answer = client.streaming(self.request(requests), path(&method), Encoded).await;
        let stream = answer.map_err(|s| refusal(&s))?.into_inner();
        Ok(Answers { stream, output: method.output() })
    }
}

pub struct Answers {
    stream: Streaming<Bytes>,
    output: MessageDescriptor,
}

impl Answers {
    /// `None`: the stream ended.
    pub async fn next(&mut self) -> Result<Option<Json>, Refusal> {
        let message = self.stream.message().await.map_err(|s| refusal(&s))?;
        Ok(message.map(|bytes| decode(&self.output, bytes)))
    }
}

fn encode(descriptor: &MessageDescriptor, json: &Json) -> Bytes {
    message(descriptor, json).encode_to_vec().into()
}

fn message(descriptor: &MessageDescriptor, json: &Json) -> DynamicMessage {
    let mut out = DynamicMessage::new(descriptor.clone());
    for (name, value) in json.as_object().unwrap_or_else(|| panic!("{json}: not an object")) {
        let field = descriptor
            .get_field_by_name(name)
            .unwrap_or_else(|| panic!("{} has no field {name}", descriptor.full_name()));
        let value = match value {
            Json::Array(list) if field.is_list() => {
                Value::List(list.iter().map(|v| scalar(&field.kind(), v)).collect())
            }
            one => scalar(&field.kind(), one),
        };
        out.set_field(&field, value);
    }
    out
}

/// Bytes are written as text; `$x*300000` is that many.
fn scalar(kind: &Kind, json: &Json) -> Value {
    let text = || json.as_str().unwrap_or_else(|| panic!("{json}: not a string")).to_owned();
    match kind {
        Kind::Bool => Value::Bool(json.as_bool().unwrap()),
        Kind::Int64 => Value::I64(json.as_i64().unwrap()),
        Kind::Uint64 => Value::U64(json.as_u64().unwrap()),
        Kind::String => Value::String(text()),
        Kind::Bytes => {
            let text = text();
            match text.strip_prefix('$').and_then(|t| t.split_once('*')) {
                Some((unit, times)) => Value::Bytes(unit.repeat(times.parse().unwrap()).into()),
                None => Value::Bytes(text.into()),
            }
        }
        Kind::Enum(e) => Value::EnumNumber(match json {
            Json::String(name) => number_of(e, name),
            n => n.as_i64().unwrap() as i32,
        }),
        Kind::Message(m) => Value::Message(message(m, json)),
        other => panic!("{other:?} is not in etcd's API"),
    }
}

fn number_of(e: &EnumDescriptor, name: &str) -> i32 {
    e.get_value_by_name(name).unwrap_or_else(|| panic!("{} has no {name}", e.full_name())).number()
}

fn decode(descriptor: &MessageDescriptor, bytes: Bytes) -> Json {
    shown(&DynamicMessage::decode(descriptor.clone(), bytes).unwrap())
}

/// What differs between any two servers (ids, term) is shown as being there.
fn shown(message: &DynamicMessage) -> Json {
    let header = message.descriptor().name() == "ResponseHeader";
    let mut out = Map::new();
    for (field, value) in message.fields() {
        let name = field.name();
        if header && name != "revision" {
            out.insert("from".into(), json!("a member"));
            continue;
        }
        let json = match value {
            Value::List(list) => list.iter().map(|v| shown_scalar(&field.kind(), v)).collect(),
            one => shown_scalar(&field.kind(), one),
        };
        out.insert(name.to_owned(), json);
    }
    Json::Object(out)
}

fn shown_scalar(kind: &Kind, value: &Value) -> Json {
    match value {
        Value::Bool(b) => json!(b),
        Value::I64(n) => json!(n),
        Value::U64(n) => json!(n),
        Value::U32(n) => json!(n),
        Value::String(s) => json!(s),
        Value::Bytes(b) if b.len() > SHOWN => json!(format!("{} bytes", b.len())),
        Value::Bytes(b) => json!(String::from_utf8_lossy(b)),
        Value::EnumNumber(n) => {
            let named = kind.as_enum().and_then(|e| e.get_value(*n));
            named.map_or_else(|| json!(n), |v| json!(v.name()))
        }
        Value::Message(m) => shown(m),
        other => panic!("{other:?} is not in etcd's API"),
    }
}
