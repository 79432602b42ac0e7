//! Counts ids per shard. An id and the shard's number change in one conditional batch, which succeeds only if the
//! number is still the one that was read together with the existing ids. The number grows with every id, so nobody can
//! have counted one of them in between. A single read returns both from the same replicas; with a separate read of the
//! number, the replicas asked next might lack the ids that came with it.

use std::collections::{BTreeMap, BTreeSet};

use backon::Retryable;
use futures_util::{StreamExt, TryStreamExt, stream};
use scylla::value::CqlValue;
use uuid::Uuid;

use super::{
    answer::{Outcome, Rows},
    error::CassandraError,
    keyspace::Keyspace,
    retry::{BACKOFF, may_retry},
};

/// Marker row, so that the static count comes back even if none of the requested ids exists. One byte long, so it
/// cannot collide with an id.
const MARKER: &[u8] = &[0];
/// Maximum number of ids in a batch; Cassandra warns about large ones.
const BATCH: usize = 100;
/// Maximum number of shards that a call works on concurrently.
const CONCURRENT_BATCHES: usize = 32;

/// Counts the ids that were not counted before.
pub(super) async fn count(keyspace: &Keyspace, ids: Vec<Uuid>) -> Result<(), CassandraError> {
    let shards = keyspace.shard_locks.len();
    let mut by_shard: BTreeMap<usize, BTreeSet<Uuid>> = BTreeMap::new();
    for id in ids {
        by_shard.entry(shard(id, shards)).or_default().insert(id);
    }
    let batches = by_shard.into_iter().flat_map(|(shard, ids)| {
        let ids: Vec<_> = ids.into_iter().collect();
        ids.chunks(BATCH).map(|chunk| (shard, chunk.to_vec())).collect::<Vec<_>>()
    });
    stream::iter(batches)
        .map(|(shard, ids)| count_with_retry(keyspace, shard, ids))
        .buffer_unordered(CONCURRENT_BATCHES)
        .try_collect()
        .await
}

/// The number of ids counted so far.
pub(super) async fn total(keyspace: &Keyspace) -> Result<i64, CassandraError> {
    let shards = (0..i32::try_from(keyspace.shard_locks.len())?).collect::<Vec<_>>();
    let rows = Rows::of(keyspace.session.execute_unpaged(&keyspace.statements.totals, (shards,)).await?)?;
    Ok(rows.all::<(i32, Option<i64>)>()?.into_iter().filter_map(|(_, users)| users).sum())
}

/// The shard of an id, which never changes: FNV-1a, because ids need not be random.
fn shard(id: Uuid, shards: usize) -> usize {
    let hash = id.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    usize::try_from((hash ^ hash >> 32) % shards as u64).unwrap_or(0)
}

async fn count_with_retry(keyspace: &Keyspace, shard: usize, ids: Vec<Uuid>) -> Result<(), CassandraError> {
    let _lock = keyspace.shard_locks[shard].lock().await;
    let shard = i32::try_from(shard)?;
    (|| try_once(keyspace, shard, &ids)).retry(BACKOFF).when(may_retry()).await
}

/// Finds new ids and counts them. Fails with [`CassandraError::Contended`] if another writer counted in this shard in
/// between.
async fn try_once(keyspace: &Keyspace, shard: i32, ids: &[Uuid]) -> Result<(), CassandraError> {
    let keys: Vec<&[u8]> = std::iter::once(MARKER).chain(ids.iter().map(|id| &id.as_bytes()[..])).collect();
    let rows =
        Rows::of(keyspace.session.execute_unpaged(&keyspace.statements.existing, (shard, keys)).await?)?;
    let rows = rows.all::<(&[u8], Option<i64>)>()?;
    let users = rows.first().and_then(|(_, users)| *users);
    let existing: BTreeSet<_> = rows.into_iter().map(|(id, _)| id).collect();
    let new: Vec<_> = ids.iter().filter(|id| !existing.contains(&id.as_bytes()[..])).collect();
    if new.is_empty() {
        // Read repair has put what was read on a majority of the replicas, so that everybody sees it.
        return Ok(());
    }
    let after = users.unwrap_or(0) + i64::try_from(new.len())?;
    let first = vec![Some(CqlValue::BigInt(after)), Some(CqlValue::Int(shard)), users.map(CqlValue::BigInt)];
    let insert = |id: &[u8]| vec![Some(CqlValue::Int(shard)), Some(CqlValue::Blob(id.to_vec()))];
    let marker = users.is_none().then(|| insert(MARKER));
    let inserts = new.iter().map(|id| insert(&id.as_bytes()[..]));
    let values: Vec<_> = std::iter::once(first).chain(marker).chain(inserts).collect();
    let batch = keyspace.statements.count(values.len() - 1);
    match Outcome::of(keyspace.session.batch(&batch, values).await?)? {
        Outcome::Applied => Ok(()),
        Outcome::Lost => Err(CassandraError::Contended),
    }
}
