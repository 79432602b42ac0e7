//! Writes records: those of an append are handed to librdkafka together and confirmed together.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use event::Record;
use rdkafka::{
    ClientContext, Message,
    client::Client,
    config::RDKafkaLogLevel,
    error::KafkaError,
    message::{BorrowedMessage, Header, OwnedHeaders},
    producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer},
    types::RDKafkaErrorCode,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::{
    blocking_drop::BlockingDrop,
    client,
    error::KafkaFailure,
    url::{KafkaUrl, Side},
};

/// Confirmed by all in-sync replicas, once and in order, whatever is retried.
const FIXED: &[(&str, &str)] = &[
    ("acks", "all"),
    ("enable.idempotence", "true"),
    // The partitioner of Java's clients, so that a user's records share a partition whoever wrote them.
    ("partitioner", "murmur2_random"),
];
/// A request waits for the result: no lingering, and a timeout of five seconds.
const DEFAULTS: &[(&str, &str)] = &[("linger.ms", "0"), ("message.timeout.ms", "5000")];
/// Maximum number of unconfirmed records of a process, unless `queue.buffering.max.messages` is set.
const QUEUE: usize = 100_000;
/// Maximum size of a record unless `message.max.bytes` is set; librdkafka's own default.
const MAX_RECORD: usize = 1_000_000;

/// A producer, which librdkafka serves by threads of its own.
pub(super) struct Producer {
    native: BlockingDrop<ThreadedProducer<Reports>>,
    /// One permit for each unconfirmed record.
    room: Arc<Semaphore>,
    /// Bytes of the largest record that is handed over.
    max_record: usize,
    /// Whether Kafka confirmed anything.
    has_written: AtomicBool,
}

impl Producer {
    pub(super) fn open(url: &KafkaUrl) -> Result<Self, KafkaFailure> {
        let config = url.config(Side::Producer, DEFAULTS, FIXED);
        let native = config.create_with_context(Reports::default()).map_err(KafkaFailure::Open)?;
        let queue = url.get("queue.buffering.max.messages").and_then(|text| text.parse().ok());
        // Zero means no limit to librdkafka.
        let queue = queue.filter(|queue| *queue != 0).unwrap_or(QUEUE);
        let limit = |key| url.get(key).and_then(|text| text.parse().ok());
        let max_record = limit("message.max.bytes").unwrap_or(MAX_RECORD);
        Ok(Self {
            max_record,
            native: BlockingDrop::new(native),
            room: Arc::new(Semaphore::new(queue)),
            has_written: AtomicBool::new(false),
        })
    }

    /// Writes all records; returns once Kafka has confirmed them all, or one has failed and none is pending.
    pub(super) async fn append(&self, topic: &str, records: &[Record]) -> Result<(), KafkaFailure> {
        let count = records.len();
        if count == 0 {
            return Ok(());
        }
        if records.iter().any(|record| wire_size(record) > self.max_record) {
            return Err(KafkaFailure::TooLarge { limit: self.max_record });
        }
        let room = u32::try_from(count).ok().and_then(|n| self.room.clone().try_acquire_many_owned(n).ok());
        let (append, confirmed) = Append::new(count, room.ok_or(KafkaFailure::Full)?);
        for (sent, record) in records.iter().enumerate() {
            match self.native.send(message(topic, record, append.clone())) {
                Ok(()) => {}
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) if sent == 0 => {
                    return Err(KafkaFailure::Full);
                }
                Err((error, _)) => {
                    append.report(count - sent, Some(error));
                    break;
                }
            }
        }
        let confirmed = confirmed.await.map_err(|_| KafkaFailure::Ended)?;
        let mut trouble = self.native.context().trouble();
        match confirmed {
            Ok(()) => {
                *trouble = None;
                self.has_written.store(true, Ordering::Relaxed);
                Ok(())
            }
            Err(source) if is_too_large(&source) => Err(KafkaFailure::TooLarge { limit: self.max_record }),
            Err(source) => Err(KafkaFailure::Unconfirmed { trouble: trouble.clone(), source }),
        }
    }

    /// The fatal error, if any: the producer must be replaced.
    pub(super) fn fatal_error(&self) -> Option<String> {
        let (code, reason) = self.native.client().fatal_error()?;
        Some(format!("{code}: {reason}"))
    }

    /// Whether Kafka has confirmed any record of this producer.
    pub(super) fn has_written(&self) -> bool {
        self.has_written.load(Ordering::Relaxed)
    }

    pub(super) fn client(&self) -> &Client<Reports> {
        self.native.client()
    }
}

/// Bytes of a record as Kafka counts them, but for a few of its own.
fn wire_size(record: &Record) -> usize {
    let bytes = |field: &Option<bytes::Bytes>| field.as_ref().map_or(0, bytes::Bytes::len);
    let headers = record.headers.iter().map(|(name, value)| name.len() + bytes(value));
    bytes(&record.key) + bytes(&record.value) + headers.sum::<usize>()
}

/// Whether the client or a broker rejects a record for its size, so that retrying is useless.
fn is_too_large(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{InvalidMessageSize, MessageBatchTooLarge, MessageSizeTooLarge};
    matches!(
        error.rdkafka_error_code(),
        Some(MessageSizeTooLarge | InvalidMessageSize | MessageBatchTooLarge)
    )
}

fn message<'a>(
    topic: &'a str,
    record: &'a Record,
    append: Arc<Append>,
) -> BaseRecord<'a, [u8], [u8], Arc<Append>> {
    let mut message = BaseRecord::with_opaque_to(topic, append);
    message.key = record.key.as_deref();
    message.payload = record.value.as_deref();
    if !record.headers.is_empty() {
        let headers = OwnedHeaders::new_with_capacity(record.headers.len());
        let insert = |headers: OwnedHeaders, (name, value): &(String, Option<bytes::Bytes>)| {
            headers.insert(Header { key: name, value: value.as_deref() })
        };
        message.headers = Some(record.headers.iter().fold(headers, insert));
    }
    message
}

/// Records that were handed over together.
pub(super) struct Append {
    state: Mutex<State>,
    /// Released when the last of its records is reported.
    _room: OwnedSemaphorePermit,
}

struct State {
    /// Records without a delivery report.
    left: usize,
    error: Option<KafkaError>,
    answer: Option<oneshot::Sender<Result<(), KafkaError>>>,
}

impl Append {
    fn new(
        records: usize,
        room: OwnedSemaphorePermit,
    ) -> (Arc<Self>, oneshot::Receiver<Result<(), KafkaError>>) {
        let (answer, confirmed) = oneshot::channel();
        let state = State { left: records, error: None, answer: Some(answer) };
        (Arc::new(Self { state: Mutex::new(state), _room: room }), confirmed)
    }

    fn report(&self, records: usize, error: Option<KafkaError>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.left -= records;
        if let Some(error) = error {
            state.error.get_or_insert(error);
        }
        if state.left == 0 {
            let outcome = state.error.take().map_or(Ok(()), Err);
            if let Some(answer) = state.answer.take() {
                let _ = answer.send(outcome);
            }
        }
    }
}

/// Callbacks of a producer.
#[derive(Default)]
pub(super) struct Reports {
    /// What went wrong since something was confirmed.
    trouble: Mutex<Option<String>>,
}

impl Reports {
    fn trouble(&self) -> MutexGuard<'_, Option<String>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, "Kafka: {reason}");
        // Follows each broker's own error, and says less.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            *self.trouble() = Some(reason.to_owned());
        }
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Arc<Append>;

    fn delivery(&self, delivery: &DeliveryResult<'_>, append: Arc<Append>) {
        let failed = |(error, message): &(KafkaError, BorrowedMessage<'_>)| {
            tracing::debug!(%error, topic = message.topic(), partition = message.partition(), "a record was not confirmed");
            error.clone()
        };
        append.report(1, delivery.as_ref().err().map(failed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_is_refused_for_its_size_is_told_from_one_that_may_be_taken_later() {
        for (code, too_large) in [
            (RDKafkaErrorCode::MessageSizeTooLarge, true),
            (RDKafkaErrorCode::MessageBatchTooLarge, true),
            (RDKafkaErrorCode::InvalidMessageSize, true),
            (RDKafkaErrorCode::MessageTimedOut, false),
            (RDKafkaErrorCode::QueueFull, false),
        ] {
            assert_eq!(is_too_large(&KafkaError::MessageProduction(code)), too_large, "{code:?}");
        }
    }
}
