//! A real etcd as a `Store`, over its JSON gateway: plain HTTP/1.1, base64 keys, numbers as strings.

use async_trait::async_trait;
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use isopod_store::*;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// An etcd of our own; it ends with this value.
pub struct Server {
    child: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Server {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (port, peer) = (free_port(), free_port());
        let client = format!("http://127.0.0.1:{port}");
        let peer = format!("http://127.0.0.1:{peer}");
        let child = Command::new("etcd")
            .args(["--name", "referee", "--data-dir"])
            .arg(dir.path())
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("referee={peer}")])
            .env("ETCD_UNSUPPORTED_ARCH", std::env::consts::ARCH)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd is not installed: apt-get install etcd-server, or set ISOPOD_TEST_ETCD=skip");
        let server = Server { child, port, _dir: dir };
        let deadline = Instant::now() + Duration::from_secs(30);
        while post(port, "/v3/kv/range", &json!({ "key": STANDARD.encode("x") })).is_err() {
            assert!(Instant::now() < deadline, "etcd does not answer within 30 s");
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    pub fn store(&self) -> EtcdStore {
        EtcdStore { port: self.port }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[derive(Clone)]
pub struct EtcdStore {
    port: u16,
}

fn failed(text: impl std::fmt::Display) -> StoreError {
    let source = std::io::Error::other(text.to_string());
    StoreError::Backend { context: "etcd answered".into(), source: Arc::new(source) }
}

fn send(port: u16, path: &str, body: &Value) -> std::io::Result<BufReader<TcpStream>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    let body = body.to_string();
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nHost: etcd\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )?;
    stream.write_all(body.as_bytes())?;
    Ok(BufReader::new(stream))
}

/// Reads past the head; true: the body comes in chunks.
fn head(reader: &mut impl BufRead) -> std::io::Result<bool> {
    let mut chunked = false;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if line.trim().is_empty() {
            return Ok(chunked);
        }
        chunked |= line.to_ascii_lowercase().starts_with("transfer-encoding: chunked");
    }
}

/// `None`: the last chunk.
fn chunk(reader: &mut impl BufRead) -> std::io::Result<Option<Vec<u8>>> {
    let mut size = String::new();
    reader.read_line(&mut size)?;
    let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
    if size == 0 {
        return Ok(None);
    }
    let mut data = vec![0; size + 2];
    reader.read_exact(&mut data)?;
    data.truncate(size);
    Ok(Some(data))
}

fn post(port: u16, path: &str, body: &Value) -> Result<Value> {
    let exchange = || -> std::io::Result<Vec<u8>> {
        let mut reader = send(port, path, body)?;
        let mut data = Vec::new();
        if head(&mut reader)? {
            while let Some(part) = chunk(&mut reader)? {
                data.extend(part);
            }
        } else {
            reader.read_to_end(&mut data)?;
        }
        Ok(data)
    };
    let data = exchange().map_err(failed)?;
    let value: Value = serde_json::from_slice(&data).map_err(failed)?;
    match value["error"].as_str().or(value["message"].as_str()) {
        Some(error) => Err(to_error(error)),
        None => Ok(value),
    }
}

fn to_error(text: &str) -> StoreError {
    let table = [
        ("has been compacted", StoreError::Compacted { requested: 0, compacted: 0 }),
        ("is a future revision", StoreError::FutureRevision { requested: 0, newest: 0 }),
        ("duplicate key given", StoreError::DuplicateKey),
        ("key not found", StoreError::KeyNotFound),
        ("requested lease not found", StoreError::LeaseNotFound(0)),
        ("lease already exists", StoreError::LeaseExists(7001)),
    ];
    let known = table.into_iter().find(|(part, _)| text.contains(part));
    known.map_or_else(|| failed(text), |(_, e)| e)
}

fn b64(b: &[u8]) -> Value {
    STANDARD.encode(b).into()
}

fn bytes(v: &Value) -> Bytes {
    STANDARD.decode(v.as_str().unwrap_or_default()).unwrap().into()
}

/// Numbers are strings, and zero is left out.
fn number(v: &Value) -> i64 {
    v.as_str().map_or_else(|| v.as_i64().unwrap_or(0), |s| s.parse().unwrap())
}

fn key_value(v: &Value) -> KeyValue {
    KeyValue {
        key: bytes(&v["key"]),
        value: bytes(&v["value"]),
        create_revision: number(&v["create_revision"]),
        mod_revision: number(&v["mod_revision"]),
        version: number(&v["version"]),
        lease: number(&v["lease"]),
    }
}

fn key_values(v: &Value) -> Vec<KeyValue> {
    v.as_array().map(|a| a.iter().map(key_value).collect()).unwrap_or_default()
}

fn with_range(mut v: Value, range: &KeyRange) -> Value {
    v["key"] = b64(&range.start);
    if !range.end.is_empty() {
        v["range_end"] = b64(&range.end);
    }
    v
}

fn range_json(r: &RangeRequest) -> Value {
    let v = json!({
        "revision": r.revision.to_string(), "limit": r.limit.to_string(),
        "keys_only": r.keys_only, "count_only": r.count_only,
    });
    with_range(v, &r.range)
}

fn compare_json(c: &Compare) -> Value {
    let (target, field, value) = match &c.target {
        CompareTarget::CreateRevision(n) => ("CREATE", "create_revision", n.to_string().into()),
        CompareTarget::ModRevision(n) => ("MOD", "mod_revision", n.to_string().into()),
        CompareTarget::Version(n) => ("VERSION", "version", n.to_string().into()),
        CompareTarget::Lease(n) => ("LEASE", "lease", n.to_string().into()),
        CompareTarget::Value(v) => ("VALUE", "value", b64(v)),
    };
    let result = match c.op {
        CompareOp::Equal => "EQUAL",
        CompareOp::NotEqual => "NOT_EQUAL",
        CompareOp::Greater => "GREATER",
        CompareOp::Less => "LESS",
    };
    with_range(json!({ "target": target, "result": result, field: value }), &c.range)
}

fn op_json(op: &Op) -> Value {
    match op {
        Op::Range(r) => json!({ "request_range": range_json(r) }),
        Op::Put { key, value, lease, prev_kv, ignore_value, ignore_lease } => json!({ "request_put": {
            "key": b64(key), "value": b64(value), "lease": lease.to_string(), "prev_kv": prev_kv,
            "ignore_value": ignore_value, "ignore_lease": ignore_lease,
        }}),
        Op::Delete { range, prev_kv } => {
            json!({ "request_delete_range": with_range(json!({ "prev_kv": prev_kv }), range) })
        }
        Op::Txn(t) => json!({ "request_txn": txn_json(t) }),
    }
}

fn txn_json(t: &Txn) -> Value {
    json!({
        "compare": t.compare.iter().map(compare_json).collect::<Vec<_>>(),
        "success": t.success.iter().map(op_json).collect::<Vec<_>>(),
        "failure": t.failure.iter().map(op_json).collect::<Vec<_>>(),
    })
}

fn range_response(v: &Value) -> RangeResponse {
    RangeResponse {
        revision: number(&v["header"]["revision"]),
        kvs: key_values(&v["kvs"]),
        count: number(&v["count"]) as u64,
        more: v["more"].as_bool().unwrap_or(false),
    }
}

fn op_response(v: &Value) -> OpResponse {
    if let Some(r) = v.get("response_range") {
        OpResponse::Range(range_response(r))
    } else if let Some(p) = v.get("response_put") {
        OpResponse::Put { prev: p.get("prev_kv").map(key_value) }
    } else if let Some(d) = v.get("response_delete_range") {
        OpResponse::Delete { deleted: number(&d["deleted"]) as u64, prev: key_values(&d["prev_kvs"]) }
    } else {
        OpResponse::Txn(txn_response(&v["response_txn"]))
    }
}

fn txn_response(v: &Value) -> TxnResponse {
    TxnResponse {
        revision: number(&v["header"]["revision"]),
        succeeded: v["succeeded"].as_bool().unwrap_or(false),
        responses: v["responses"].as_array().map(|a| a.iter().map(op_response).collect()).unwrap_or_default(),
    }
}

fn event(v: &Value) -> Event {
    let kind = if v["type"] == "DELETE" { EventKind::Delete } else { EventKind::Put };
    Event { kind, kv: key_value(&v["kv"]), prev: v.get("prev_kv").map(key_value) }
}

/// Reads a watch's stream; each message is split again at its transactions.
fn pump(mut reader: BufReader<TcpStream>, send: &dyn Fn(Result<WatchMessage>) -> bool) -> std::io::Result<()> {
    let mut buffer = Vec::new();
    while let Some(part) = chunk(&mut reader)? {
        buffer.extend(part);
        while let Some(end) = buffer.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            let value: Value = serde_json::from_slice(&line)?;
            let result = &value["result"];
            if result["canceled"] == true {
                let compacted = number(&result["compact_revision"]);
                send(Err(StoreError::Compacted { requested: 0, compacted }));
                return Ok(());
            }
            let events: Vec<Event> =
                result["events"].as_array().map(|a| a.iter().map(event).collect()).unwrap_or_default();
            for transaction in events.chunk_by(|a, b| a.kv.mod_revision == b.kv.mod_revision) {
                let message = WatchMessage::Events(transaction[0].kv.mod_revision, transaction.into());
                if !send(Ok(message)) {
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

impl EtcdStore {
    async fn ask(&self, path: &'static str, body: Value) -> Result<Value> {
        let port = self.port;
        tokio::task::spawn_blocking(move || post(port, path, &body)).await.unwrap()
    }
}

#[async_trait]
impl Store for EtcdStore {
    async fn range(&self, req: RangeRequest) -> Result<RangeResponse> {
        Ok(range_response(&self.ask("/v3/kv/range", range_json(&req)).await?))
    }
    async fn txn(&self, txn: Txn) -> Result<TxnResponse> {
        Ok(txn_response(&self.ask("/v3/kv/txn", txn_json(&txn)).await?))
    }
    async fn watch(&self, req: WatchRequest) -> Result<Watch> {
        let create = with_range(json!({ "start_revision": req.start.to_string(), "prev_kv": true }), &req.range);
        let body = json!({ "create_request": create });
        let (sender, receiver) = tokio::sync::mpsc::channel(10_000);
        let port = self.port;
        let opened = tokio::task::spawn_blocking(move || -> std::io::Result<BufReader<TcpStream>> {
            let mut reader = send(port, "/v3/watch", &body)?;
            head(&mut reader)?;
            // "created": from here on nothing is missed.
            chunk(&mut reader)?;
            Ok(reader)
        });
        let reader = opened.await.unwrap().map_err(failed)?;
        std::thread::spawn(move || pump(reader, &|message| sender.blocking_send(message).is_ok()));
        Ok(Watch { receiver, request_progress: Arc::new(|| {}) })
    }
    async fn compact(&self, rev: Revision) -> Result<()> {
        self.ask("/v3/kv/compaction", json!({ "revision": rev.to_string() })).await.map(|_| ())
    }
    async fn revisions(&self) -> Result<(Revision, Revision)> {
        let v = self.ask("/v3/kv/range", json!({ "key": b64(b"x"), "count_only": true })).await?;
        Ok((number(&v["header"]["revision"]), 1))
    }
    async fn lease_grant(&self, id: LeaseId, ttl_seconds: i64) -> Result<LeaseStatus> {
        let body = json!({ "ID": id.to_string(), "TTL": ttl_seconds.to_string() });
        let v = self.ask("/v3/lease/grant", body).await?;
        let ttl = number(&v["TTL"]);
        Ok(LeaseStatus { id: number(&v["ID"]), granted_ttl: ttl, ttl, keys: Vec::new() })
    }
    async fn lease_revoke(&self, id: LeaseId) -> Result<()> {
        self.ask("/v3/lease/revoke", json!({ "ID": id.to_string() })).await.map(|_| ())
    }
    async fn lease_keep_alive(&self, id: LeaseId) -> Result<LeaseStatus> {
        let v = self.ask("/v3/lease/keepalive", json!({ "ID": id.to_string() })).await?;
        let ttl = number(&v["result"]["TTL"]);
        if ttl == 0 {
            return Err(StoreError::LeaseNotFound(id));
        }
        Ok(LeaseStatus { id, granted_ttl: ttl, ttl, keys: Vec::new() })
    }
    async fn lease_status(&self, id: LeaseId) -> Result<LeaseStatus> {
        let v = self.ask("/v3/lease/timetolive", json!({ "ID": id.to_string(), "keys": true })).await?;
        let ttl = number(&v["TTL"]);
        if ttl < 0 {
            return Err(StoreError::LeaseNotFound(id));
        }
        let keys = v["keys"].as_array().map(|a| a.iter().map(bytes).collect()).unwrap_or_default();
        Ok(LeaseStatus { id, granted_ttl: number(&v["grantedTTL"]), ttl, keys })
    }
    async fn leases(&self) -> Result<Vec<LeaseId>> {
        let v = self.ask("/v3/lease/leases", json!({})).await?;
        Ok(v["leases"].as_array().map(|a| a.iter().map(|l| number(&l["ID"])).collect()).unwrap_or_default())
    }
    async fn size(&self) -> Result<u64> {
        Ok(number(&self.ask("/v3/maintenance/status", json!({})).await?["dbSize"]) as u64)
    }
    async fn close(&self) -> Result<()> {
        Ok(())
    }
}
