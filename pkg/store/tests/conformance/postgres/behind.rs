//! A server that has not heard of the newest yet, while clients that have come to it: what it owes them is decided by what
//! they know, not by what it has shown.

use super::proxy::{Loss, Proxy};
use super::server::Cluster;
use super::{connect, open};
use crate::BUFFER;
use crate::suite::{next, show};
use isopod_store::postgres::PostgresStore;
use isopod_store::*;
use std::sync::Arc;

/// Two servers on one database, of which the second one can be cut off from it.
struct Pair {
    cluster: Cluster,
    ahead: Arc<PostgresStore>,
    behind: PostgresStore,
    proxy: Proxy,
    schema: &'static str,
}

impl Pair {
    async fn start(schema: &'static str) -> Self {
        let cluster = Cluster::start("");
        let proxy = Proxy::start(&cluster);
        let ahead = open(&cluster, schema).await;
        let options = Options { watch_buffer: BUFFER, ..Options::default() };
        let behind = PostgresStore::open(proxy.options(schema), options).await.unwrap();
        Pair { cluster, ahead, behind, proxy, schema }
    }

    async fn put(&self, key: &str) -> Revision {
        let success = vec![Op::put(format!("k/{key}"), "v")];
        self.ahead.txn(Txn { success, ..Default::default() }).await.unwrap().revision
    }

    /// Both servers have shown it.
    async fn put_for_both(&self, key: &str) -> Revision {
        let rev = self.put(key).await;
        assert_eq!(self.behind.revisions().await.unwrap().0, rev);
        rev
    }

    async fn watch_behind(&self, start: Revision) -> Watch {
        self.behind.watch(WatchRequest { range: KeyRange::prefix("k/"), start }).await.unwrap()
    }

    /// The database forgets what came after `base`, as one that is set back to a backup does.
    async fn lose_after(&self, base: Revision) {
        let first = (base + 1) << 20;
        let sql = format!(
            "SET search_path = {}; BEGIN; UPDATE meta SET revision = {base}; DELETE FROM newest WHERE id >= {first}; \
             DELETE FROM log WHERE id >= {first}; COMMIT",
            self.schema
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut connect(&self.cluster).await).await.unwrap();
    }

    async fn close(self) {
        self.ahead.close().await.unwrap();
        self.behind.close().await.unwrap();
    }
}

fn is_compacted(end: Result<WatchMessage>) -> bool {
    matches!(end, Err(StoreError::Compacted { .. }))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compaction_ends_no_watch_that_begins_after_it() {
    let pair = Pair::start("late").await;
    let base = pair.put_for_both("a").await;
    pair.proxy.lose(Loss::Everything);
    let mut newest = base;
    for key in ["b", "c", "d", "e"] {
        newest = pair.put(key).await;
    }
    let compacted = newest - 1;
    pair.ahead.compact(compacted).await.unwrap();
    let mut missed = pair.watch_behind(base + 1).await;
    let (mut first, mut last) = (pair.watch_behind(compacted).await, pair.watch_behind(newest + 1).await);
    pair.proxy.lose(Loss::Nothing);
    pair.put("f").await;
    assert!(is_compacted(next(&mut missed).await), "what it wanted is gone");
    assert_eq!(show(compacted, next(&mut first).await.unwrap()), "0: +k/d=v(new)");
    assert_eq!(show(newest, next(&mut first).await.unwrap()), "0: +k/e=v(new)");
    assert_eq!(show(newest, next(&mut last).await.unwrap()), "1: +k/f=v(new)");
    pair.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_for_what_follows_a_lost_revision_ends() {
    let pair = Pair::start("gap").await;
    let base = pair.put_for_both("a").await;
    pair.proxy.lose(Loss::Everything);
    let lost = pair.put("lost").await;
    // Its client has heard of `lost` from the other server, and nothing is lost of what this one has shown.
    let (mut misled, mut kept) = (pair.watch_behind(lost + 1).await, pair.watch_behind(base + 1).await);
    pair.lose_after(base).await;
    let (first, _) = pair.ahead.revisions().await.unwrap();
    assert!(first > lost + 1, "an epoch is open");
    pair.proxy.lose(Loss::Nothing);
    pair.put("b").await;
    assert!(is_compacted(next(&mut misled).await));
    assert_eq!(show(first, next(&mut kept).await.unwrap()), "1: +k/b=v(new)");
    pair.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_for_what_follows_the_loss_goes_on() {
    let pair = Pair::start("after").await;
    let base = pair.put_for_both("a").await;
    let lost = pair.put_for_both("lost").await;
    let mut misled = pair.watch_behind(lost + 1).await;
    pair.proxy.lose(Loss::Everything);
    pair.lose_after(base).await;
    let (first, _) = pair.ahead.revisions().await.unwrap();
    assert_eq!(pair.put("b").await, first + 1);
    // Its client knows the new epoch from the other server.
    let (mut begun, mut later) = (pair.watch_behind(first + 1).await, pair.watch_behind(first + 2).await);
    pair.proxy.lose(Loss::Nothing);
    pair.put("c").await;
    assert!(is_compacted(next(&mut misled).await));
    assert_eq!(show(first, next(&mut begun).await.unwrap()), "1: +k/b=v(new)");
    assert_eq!(show(first, next(&mut later).await.unwrap()), "2: +k/c=v(new)");
    pair.close().await;
}
