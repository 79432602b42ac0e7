//! Offset requests. Each blocks on a broker, so call them on a blocking thread.

use std::{ops::Range, thread::sleep, time::Instant};

use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{Consumer, StreamConsumer},
    error::KafkaError,
    types::RDKafkaErrorCode::{LeaderNotAvailable, NotLeaderForPartition},
};

use super::{
    blocking_drop::BlockingDrop,
    client::{REQUEST_TIMEOUT, TOPIC_RETRY_INTERVAL},
    error::KafkaFailure,
    rebalance::RebalanceQueue,
};
use crate::{PartitionOffsets, Start, Watermarks};

/// A consumer of librdkafka.
pub(super) type Client = BlockingDrop<StreamConsumer<RebalanceQueue>>;

/// Partitions of the topic, each at an offset.
pub(super) fn list(
    topic: &str,
    offsets: impl IntoIterator<Item = (i32, Offset)>,
) -> Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::new();
    for (partition, offset) in offsets {
        list.add_partition_offset(topic, partition, offset)?;
    }
    Ok(list)
}

/// Low and high watermarks per partition. One request for all partitions, because a broker answers one request after
/// the other and may hold a fetch for half a second.
pub(super) fn watermarks(client: &Client, topic: &str, partitions: &[i32]) -> Result<Watermarks, KafkaError> {
    let first = at(client, topic, partitions, Offset::Beginning)?;
    let end = at(client, topic, partitions, Offset::End)?;
    let range = |(partition, end)| Some((partition, *first.get(&partition)?..end));
    Ok(end.into_iter().filter_map(range).collect())
}

/// Per partition, the first offset at or after a time; none where no record is that late. Kafka's times know the
/// beginning and the end too.
fn at(
    client: &Client,
    topic: &str,
    partitions: &[i32],
    time: Offset,
) -> Result<PartitionOffsets, KafkaError> {
    let deadline = Instant::now() + REQUEST_TIMEOUT;
    loop {
        let times = list(topic, partitions.iter().map(|partition| (*partition, time)))?;
        let found = client.offsets_for_times(times, REQUEST_TIMEOUT).and_then(|found| numbers(&found));
        match found.as_ref().err().and_then(KafkaError::rdkafka_error_code) {
            // The topic is new, or its leader went away; the next one is elected soon.
            Some(NotLeaderForPartition | LeaderNotAvailable) if Instant::now() < deadline => {
                sleep(TOPIC_RETRY_INTERVAL)
            }
            _ => return found,
        }
    }
}

/// Committed offsets of the client's group, per partition; membership is not required.
pub(super) fn committed(
    client: &Client,
    topic: &str,
    partitions: &[i32],
) -> Result<PartitionOffsets, KafkaError> {
    let asked = list(topic, partitions.iter().map(|partition| (*partition, Offset::Invalid)))?;
    numbers(&client.committed_offsets(asked, REQUEST_TIMEOUT)?)
}

/// The current offset of `start`, per partition.
pub(super) fn start(
    client: &Client,
    topic: &str,
    partitions: &[i32],
    start: Start,
) -> Result<PartitionOffsets, KafkaFailure> {
    let watermarks = watermarks(client, topic, partitions).map_err(KafkaFailure::Read)?;
    let times = match start {
        Start::Earliest => {
            return Ok(watermarks.into_iter().map(|(partition, kept)| (partition, kept.start)).collect());
        }
        Start::Latest => PartitionOffsets::default(),
        Start::Time(ms) => at(client, topic, partitions, Offset::Offset(ms)).map_err(KafkaFailure::Read)?,
    };
    // Where no record is that late, the next one is the first.
    let begin = |(partition, kept): (i32, Range<i64>)| {
        (partition, times.get(&partition).copied().unwrap_or(kept.end))
    };
    Ok(watermarks.into_iter().map(begin).collect())
}

fn numbers(list: &TopicPartitionList) -> Result<PartitionOffsets, KafkaError> {
    let mut numbers = PartitionOffsets::default();
    for element in list.elements() {
        element.error()?;
        if let Offset::Offset(number) = element.offset() {
            numbers.insert(element.partition(), number);
        }
    }
    Ok(numbers)
}
