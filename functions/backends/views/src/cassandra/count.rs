//! Counts ids, each shard for itself: an id and the shard's number change in one conditional batch, which succeeds only
//! while the number is the one that was read together with which ids are there. The number grows with every id; so
//! nobody can have counted one of them in between. One read sees both as some replica has both: were the number read
//! for itself, ids that came with it might be missing on the replicas that are asked next.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, TryStreamExt, stream};
use scylla::value::CqlValue;
use tokio::sync::Mutex;
use uuid::Uuid;

use super::{
    CassandraError,
    answer::{Outcome, Rows},
    session::Open,
};

/// One call of a process at a time counts in a shard.
pub(super) type Turn = Mutex<()>;

/// A row that is there from a shard's first user on, so that its number is read with whatever ids; no user's, those
/// have 16 bytes.
const FIRST: &[u8] = &[0];
/// Most ids of one batch; Cassandra warns of large ones.
const BATCH: usize = 100;
/// Shards of a call that are worked on at once.
const AT_ONCE: usize = 32;
/// How long something is tried when others are quicker.
const PATIENCE: Duration = Duration::from_secs(10);

/// Counts those of the ids that were not counted before.
pub(super) async fn count(open: &Open, ids: Vec<Uuid>) -> Result<(), CassandraError> {
    let shards = open.turns.len();
    let mut by_shard: BTreeMap<usize, BTreeSet<Uuid>> = BTreeMap::new();
    for id in ids {
        by_shard.entry(shard(id, shards)).or_default().insert(id);
    }
    let batches = by_shard.into_iter().flat_map(|(shard, ids)| {
        let ids: Vec<_> = ids.into_iter().collect();
        ids.chunks(BATCH).map(|some| (shard, some.to_vec())).collect::<Vec<_>>()
    });
    stream::iter(batches)
        .map(|(shard, ids)| until_counted(open, shard, ids))
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
}

/// The number of ids counted so far.
pub(super) async fn total(open: &Open) -> Result<i64, CassandraError> {
    let shards = (0..i32::try_from(open.turns.len())?).collect::<Vec<_>>();
    let rows = Rows::of(open.session.execute_unpaged(&open.statements.totals, (shards,)).await?)?;
    Ok(rows.all::<(i32, Option<i64>)>()?.into_iter().filter_map(|(_, users)| users).sum())
}

/// Where an id belongs, for ever: FNV-1a, since ids need not be random.
fn shard(id: Uuid, shards: usize) -> usize {
    let hash = id.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    usize::try_from((hash ^ hash >> 32) % shards as u64).unwrap_or(0)
}

async fn until_counted(open: &Open, shard: usize, ids: Vec<Uuid>) -> Result<(), CassandraError> {
    let _turn = open.turns[shard].lock().await;
    let shard = i32::try_from(shard)?;
    let mut tries = Tries::new();
    while !tries.won(try_once(open, shard, &ids).await).await? {}
    Ok(())
}

/// Tries at something that others do as well.
pub(super) struct Tries {
    deadline: Instant,
    count: u32,
    /// Whether the try under way began after the deadline, and so is the last one.
    late: bool,
}

impl Tries {
    pub(super) fn new() -> Self {
        Self { deadline: Instant::now() + PATIENCE, count: 0, late: false }
    }

    /// Whether the last try was the one (true); otherwise waits for the next. What failed in passing may have been done
    /// or not, or be done later: looking again tells, and the condition guards the rest.
    pub(super) async fn won(
        &mut self,
        outcome: Result<bool, CassandraError>,
    ) -> Result<bool, CassandraError> {
        match outcome {
            Ok(true) => return Ok(true),
            Ok(false) if self.late => return Err(CassandraError::Contended),
            Ok(false) => {}
            Err(error) if error.is_passing() && !self.late => {}
            Err(error) => return Err(error),
        }
        self.count += 1;
        pause(self.count).await;
        self.late = Instant::now() > self.deadline;
        Ok(false)
    }
}

/// Looks up which ids are new and counts them; false when somebody else counted others in between.
async fn try_once(open: &Open, shard: i32, ids: &[Uuid]) -> Result<bool, CassandraError> {
    let keys: Vec<&[u8]> = std::iter::once(FIRST).chain(ids.iter().map(|id| &id.as_bytes()[..])).collect();
    let rows = Rows::of(open.session.execute_unpaged(&open.statements.there, (shard, keys)).await?)?;
    let rows = rows.all::<(&[u8], Option<i64>)>()?;
    let users = rows.first().and_then(|(_, users)| *users);
    let there: BTreeSet<_> = rows.into_iter().map(|(id, _)| id).collect();
    let new: Vec<_> = ids.iter().filter(|id| !there.contains(&id.as_bytes()[..])).collect();
    if new.is_empty() {
        // What was read is on a majority of the replicas by now, as reading repairs, so that all see it.
        return Ok(true);
    }
    let after = users.unwrap_or(0) + i64::try_from(new.len())?;
    let first = vec![Some(CqlValue::BigInt(after)), Some(CqlValue::Int(shard)), users.map(CqlValue::BigInt)];
    let insert = |id: &[u8]| vec![Some(CqlValue::Int(shard)), Some(CqlValue::Blob(id.to_vec()))];
    let marker = users.is_none().then(|| insert(FIRST));
    let inserts = new.iter().map(|id| insert(&id.as_bytes()[..]));
    let values: Vec<_> = std::iter::once(first).chain(marker).chain(inserts).collect();
    let batch = open.statements.count(values.len() - 1);
    let outcome = Outcome::of(open.session.batch(&batch, values).await?)?;
    Ok(outcome == Outcome::Applied)
}

/// Waits longer the more often others were quicker, and each process otherwise.
async fn pause(tries: u32) {
    let most = 2_u64 << tries.min(7);
    let random = Uuid::new_v4().as_u64_pair().0;
    tokio::time::sleep(Duration::from_millis(random % most)).await;
}
