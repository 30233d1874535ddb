//! The space quota and the alarms. Once the quota is reached, writes that add are refused until space was made and the alarm
//! was taken back.
//!
//! Invariant: asking for the size costs a read, so it is not asked for each write: what was let in since the last look is
//! added to it, generously, and the true size decides.

use crate::status;
use isopod_base::errors::Chain;
use isopod_store::{Alarm, Op, Store, Txn};
use parking_lot::Mutex;
use std::sync::Arc;
use tonic::Status;

const DEFAULT: u64 = 2 << 30;
/// What a key and a lease cost beside their bytes; etcd's figures.
const KEY: u64 = 256;
const LEASE: u64 = 64;

pub(crate) struct Quota {
    store: Arc<dyn Store>,
    /// `None`: no quota.
    limit: Option<u64>,
    state: Mutex<State>,
}

struct State {
    size: u64,
    since: u64,
    alarms: Vec<Alarm>,
}

impl Quota {
    pub async fn new(store: Arc<dyn Store>, bytes: i64) -> isopod_store::Result<Self> {
        let limit = match bytes {
            0 => Some(DEFAULT),
            n => u64::try_from(n).ok(),
        };
        let size = store.usage().await?.size;
        let alarms = store.alarms().await?;
        Ok(Quota { store, limit, state: Mutex::new(State { size, since: 0, alarms }) })
    }

    /// Bytes, as the status tells them: negative is no quota.
    pub fn limit(&self) -> i64 {
        self.limit.map_or(-1, |n| n as i64)
    }

    pub fn alarms(&self) -> Vec<Alarm> {
        self.state.lock().alarms.clone()
    }

    /// True: it was not so before.
    pub async fn set_alarm(&self, alarm: Alarm, raised: bool) -> isopod_store::Result<bool> {
        let changed = self.store.set_alarm(alarm, raised).await;
        // Also where the disk is too full to note it, the alarm counts.
        let mut state = self.state.lock();
        state.alarms.retain(|a| *a != alarm);
        if raised || changed.is_err() {
            state.alarms.push(alarm);
            state.alarms.sort_unstable();
        }
        changed
    }

    /// May anything be changed at all?
    pub fn check_sound(&self) -> Result<(), Status> {
        if self.state.lock().alarms.contains(&Alarm::Corrupt) { Err(status::corrupt()) } else { Ok(()) }
    }

    pub async fn admit_lease(&self) -> Result<(), Status> {
        self.admit(LEASE).await
    }

    pub async fn admit_txn(&self, txn: &Txn) -> Result<(), Status> {
        if reads_only(txn) { Ok(()) } else { self.admit(cost(txn)).await }
    }

    async fn admit(&self, cost: u64) -> Result<(), Status> {
        self.check_sound()?;
        if cost == 0 {
            return Ok(());
        }
        let Some(limit) = self.limit else { return Ok(()) };
        {
            let mut state = self.state.lock();
            if state.alarms.contains(&Alarm::NoSpace) {
                return Err(status::no_space());
            }
            state.since += cost;
            // A sixteenth of what is left may pass before the next look: the file may grow by more than the bytes of the keys.
            if state.size + state.since < limit && state.since <= limit.saturating_sub(state.size) / 16 + (64 << 10) {
                return Ok(());
            }
        }
        let size = self.store.usage().await.map_err(status::of)?.size;
        {
            let mut state = self.state.lock();
            (state.size, state.since) = (size, cost);
            if size + cost < limit {
                return Ok(());
            }
        }
        tracing::warn!(
            size,
            quota = limit,
            "the space quota is reached: writes are refused until the alarm is taken back"
        );
        if let Err(e) = self.set_alarm(Alarm::NoSpace, true).await {
            tracing::warn!(error = %Chain(&e), "the alarm is not kept over a restart");
        }
        Err(status::no_space())
    }
}

/// Nothing that a branch could do changes anything; to etcd what is nested always could.
fn reads_only(txn: &Txn) -> bool {
    txn.success.iter().chain(&txn.failure).all(|op| matches!(op, Op::Range(_)))
}

/// Of the branch that costs more.
fn cost(txn: &Txn) -> u64 {
    let branch = |ops: &[Op]| -> u64 {
        let each = ops.iter().map(|op| match op {
            Op::Put { key, value, .. } => KEY + (key.len() + value.len()) as u64,
            Op::Txn(nested) => cost(nested),
            Op::Range(_) | Op::Delete { .. } => 0,
        });
        each.sum()
    };
    branch(&txn.success).max(branch(&txn.failure))
}
