//! What the cluster holds at one revision, read in pages.

use super::cluster::{Cluster, Repeat, client};
use super::messages;
use crate::pb::etcdserverpb as pb;
use bytes::Bytes;
use isopod_store::*;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Keys of one read, and entries of one part.
const PAGE: usize = 1000;

/// Every key at `revision`. They come in the order of their revisions, so all are read before the first is handed out.
pub(super) async fn start(cluster: Arc<Cluster>, revision: Revision) -> Result<Export> {
    let (parts, entries) = mpsc::channel(2);
    tokio::spawn(async move {
        let read = tokio::select! {
            read = everything(&cluster, revision) => read,
            () = parts.closed() => return,
        };
        match read {
            Ok(all) => {
                for part in all.chunks(PAGE) {
                    if parts.send(Ok(part.to_vec())).await.is_err() {
                        return;
                    }
                }
            }
            Err(e) => drop(parts.send(Err(e)).await),
        }
    });
    Ok(Export { revision, compacted: revision, entries })
}

async fn everything(cluster: &Cluster, revision: Revision) -> Result<Vec<HistoryEntry>> {
    let mut all: Vec<KeyValue> = Vec::new();
    let mut from = Bytes::from_static(b"\0");
    loop {
        let request = pb::RangeRequest {
            key: from,
            range_end: Bytes::from_static(b"\0"),
            revision,
            limit: PAGE as i64,
            ..Default::default()
        };
        let ask = |c| {
            let request = request.clone();
            async move { client!(c, kv_client::KvClient).range(request).await }
        };
        let answer = cluster.call("cannot export", Repeat::Safe, ask).await;
        let page = messages::range_response(answer.map_err(|e| super::error::about(e, revision, cluster.compacted()))?);
        all.extend(page.kvs);
        match all.last() {
            Some(last) if page.more => from = [&last.key[..], b"\0"].concat().into(),
            _ => break,
        }
    }
    // Keys that were written together stand in their own order.
    all.sort_by_key(|kv| kv.mod_revision);
    let mut entries: Vec<HistoryEntry> = Vec::with_capacity(all.len());
    for kv in all {
        let sub = entries.last().filter(|e| e.revision == kv.mod_revision).map_or(0, |e| e.sub + 1);
        entries.push(HistoryEntry { revision: kv.mod_revision, sub, key: kv.key.clone(), kv: Some(kv) });
    }
    Ok(entries)
}
