//! Scripts of requests with the answers that a real etcd gave, whole: `scripts/*.txt`. Each runs on every server.
//!
//! A line is a comment (`#`), an answer (`=`), or one of
//!
//! ```text
//! login USER PASSWORD            Auth/Authenticate; the lines of USER carry the token from now on
//! USER SERVICE/METHOD JSON       a request; `-` is nobody
//! USER begin NAME METHOD JSON    a request that waits; `end NAME` tells its answer
//! USER open NAME METHOD JSON?    a stream; `send NAME JSON`, `next NAME`, `quiet NAME` (nothing more comes), `drop NAME`
//! gather NAME N                  the next N events of a watch, however they are packed
//! sleep MILLISECONDS             for what goes by the clock
//! ```
//!
//! `ISOPOD_WRITE_SCRIPTS=1` writes what etcd answers into the files.

use crate::raw::{Raw, Refusal};
use serde_json::{Value as Json, json};
use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;

const PATIENCE: Duration = Duration::from_secs(10);
/// Nothing came for so long: nothing comes.
const QUIET: Duration = Duration::from_millis(150);

struct Runner {
    raw: Raw,
    tokens: HashMap<String, String>,
    waiting: HashMap<String, JoinHandle<Result<Json, Refusal>>>,
    streams: HashMap<String, Stream>,
    member: u64,
}

/// The stream's end is told as an answer.
struct Stream {
    requests: UnboundedSender<Json>,
    answers: UnboundedReceiver<String>,
    task: JoinHandle<()>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Stream {
    fn open(raw: Raw, method: &str) -> Self {
        let (requests, sent) = unbounded_channel();
        let (out, answers) = unbounded_channel();
        let method = method.to_owned();
        // A server may say nothing before it has an answer, not even that the stream is open.
        let task = tokio::spawn(async move {
            let end = match raw.open(&method, sent).await {
                Err(e) => answer(Err(e)),
                Ok(mut answers) => loop {
                    match answers.next().await {
                        Ok(Some(json)) => out.send(json.to_string()).unwrap_or_default(),
                        Ok(None) => break "ended".into(),
                        Err(e) => break answer(Err(e)),
                    }
                },
            };
            let _ = out.send(end);
        });
        Stream { requests, answers, task }
    }
}

fn answer(result: Result<Json, Refusal>) -> String {
    match result {
        Ok(json) => json.to_string(),
        Err((code, message)) => format!("{code} {message}"),
    }
}

/// The first word, and what follows it.
fn word(line: &str) -> (&str, &str) {
    line.split_once(' ').map_or((line, ""), |(w, rest)| (w, rest.trim()))
}

impl Runner {
    async fn new(url: &str) -> Self {
        let raw = Raw::connect(url).await;
        let list = raw.call("Cluster/MemberList", &json!({})).await.unwrap();
        let member = list["members"][0]["ID"].as_u64().unwrap();
        Runner { raw, tokens: HashMap::new(), waiting: HashMap::new(), streams: HashMap::new(), member }
    }

    fn request(&self, text: &str) -> Json {
        let text = text.replace("\"$member\"", &self.member.to_string());
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    fn raw_of(&self, user: &str) -> Raw {
        if user == "-" {
            return self.raw.clone();
        }
        self.raw.with_token(self.tokens.get(user).unwrap_or_else(|| panic!("{user} did not log in")))
    }

    /// The answer; `None`: there is none.
    async fn run(&mut self, line: &str) -> Option<String> {
        let (first, rest) = word(line);
        match first {
            "sleep" => tokio::time::sleep(Duration::from_millis(rest.parse().unwrap())).await,
            "login" => return Some(self.login(rest).await),
            "end" => {
                let task = self.waiting.remove(rest).unwrap();
                return Some(match tokio::time::timeout(PATIENCE, task).await {
                    Ok(result) => answer(result.unwrap()),
                    Err(_) => "no answer".into(),
                });
            }
            "send" => {
                let (name, json) = word(rest);
                let request = self.request(json);
                self.streams[name].requests.send(request).unwrap();
            }
            "next" => return Some(self.next(rest, PATIENCE).await.unwrap_or_else(|| "no answer".into())),
            "quiet" => return Some(self.next(rest, QUIET).await.unwrap_or_else(|| "quiet".into())),
            "gather" => {
                let (name, n) = word(rest);
                return Some(self.gather(name, n.parse().unwrap()).await);
            }
            "drop" => {
                self.streams.remove(rest).unwrap();
            }
            user => return self.request_line(user, rest).await,
        }
        None
    }

    async fn login(&mut self, rest: &str) -> String {
        let (name, password) = word(rest);
        let request = json!({ "name": name, "password": password });
        match self.raw.call("Auth/Authenticate", &request).await {
            Ok(mut json) => {
                let token = json["token"].as_str().unwrap().to_owned();
                self.tokens.insert(name.to_owned(), token);
                json["token"] = json!("TOKEN");
                answer(Ok(json))
            }
            Err(e) => answer(Err(e)),
        }
    }

    async fn request_line(&mut self, user: &str, rest: &str) -> Option<String> {
        let raw = self.raw_of(user);
        let (second, rest) = word(rest);
        match second {
            "begin" => {
                let (name, rest) = word(rest);
                let (method, json) = word(rest);
                let (method, json) = (method.to_owned(), self.request(json));
                let task = tokio::spawn(async move { raw.call(&method, &json).await });
                self.waiting.insert(name.to_owned(), task);
                None
            }
            "open" => {
                let (name, rest) = word(rest);
                let (method, json) = word(rest);
                let stream = Stream::open(raw, method);
                if !json.is_empty() {
                    stream.requests.send(self.request(json)).unwrap();
                }
                self.streams.insert(name.to_owned(), stream);
                None
            }
            method => Some(self.named(answer(raw.call(method, &self.request(rest)).await))),
        }
    }

    async fn next(&mut self, name: &str, patience: Duration) -> Option<String> {
        let stream = self.streams.get_mut(name).unwrap_or_else(|| panic!("{name} is not open"));
        let got = tokio::time::timeout(patience, stream.answers.recv()).await.ok()?;
        Some(self.named(got.unwrap_or_else(|| "nothing after the end".into())))
    }

    async fn gather(&mut self, name: &str, n: usize) -> String {
        let mut events = Vec::new();
        while events.len() < n {
            let Some(text) = self.next(name, PATIENCE).await else { return "no answer".into() };
            match serde_json::from_str::<Json>(&text).ok().and_then(|json| json["events"].as_array().cloned()) {
                Some(more) => events.extend(more),
                None => return text,
            }
        }
        Json::Array(events).to_string()
    }

    fn named(&self, text: String) -> String {
        text.replace(&self.member.to_string(), "\"$member\"")
    }
}

async fn transcript(script: &str, url: &str) -> String {
    let mut runner = Runner::new(url).await;
    let mut out = String::new();
    for line in script.lines().filter(|l| !l.starts_with('=')) {
        out += line;
        out.push('\n');
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(answer) = runner.run(line.trim()).await {
            out += &format!("= {answer}\n");
        }
    }
    out
}

/// Where it differs, with the request before it.
fn differences(want: &str, got: &str) -> Vec<String> {
    let mut request = "";
    let mut out = Vec::new();
    for (w, g) in want.lines().zip(got.lines()) {
        if w != g {
            out.push(format!("{request}\n    want {w}\n    got  {g}"));
        }
        request = w;
    }
    if want.lines().count() != got.lines().count() {
        out.push(format!("{} lines, not {}", got.lines().count(), want.lines().count()));
    }
    out
}

/// Runs one on a server of its own; tells what was answered otherwise.
pub async fn run(name: &str, server: &str, url: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance/scripts").join(format!("{name}.txt"));
    let want = std::fs::read_to_string(&path).unwrap();
    let got = transcript(&want, url).await;
    if server == "etcd" && std::env::var_os("ISOPOD_WRITE_SCRIPTS").is_some() {
        std::fs::write(&path, got).unwrap();
        return Vec::new();
    }
    differences(&want, &got).into_iter().map(|d| format!("{server}, {name}: {d}")).collect()
}
