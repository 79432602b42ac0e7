//! Retries of an event and the meaning of statuses (knative-extensions/eventing-kafka-broker, the dispatcher's
//! `WebClientCloudEventSender`, and Knative's `DeliverySpec`).

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use tokio::time::{sleep, timeout};

use crate::{
    manifest::{Backoff, DeliverySpec},
    sink::Sink,
};

/// Maximum delay before a retry that does not count: how late the recovery of a function is noticed.
const MAX_UNCOUNTED_DELAY: Duration = Duration::from_secs(5);

/// Retries and timeout of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivery {
    /// Attempts after the first.
    pub retry: u32,
    /// How the delay grows from retry to retry.
    pub policy: Backoff,
    /// The base of the delay.
    pub delay: Duration,
    /// Timeout of one attempt.
    pub timeout: Duration,
}

impl Delivery {
    /// Of a KafkaSource without a `delivery`.
    pub const KAFKA_SOURCE: Self = Self {
        retry: 10,
        policy: Backoff::Exponential,
        delay: Duration::from_millis(300),
        timeout: Duration::from_secs(600),
    };

    /// Of every PingSource (knative/eventing `pkg/adapter/mtping`).
    pub const PING_SOURCE: Self = Self {
        retry: 4,
        policy: Backoff::Exponential,
        delay: Duration::from_millis(25),
        timeout: Duration::from_secs(600),
    };

    /// If `delivery` is set, it is used as is: without `retry` there are no retries.
    #[must_use]
    pub fn of(spec: Option<&DeliverySpec>) -> Self {
        let Some(spec) = spec else { return Self::KAFKA_SOURCE };
        Self {
            retry: spec.retry.unwrap_or(0),
            policy: spec.backoff_policy.unwrap_or(Backoff::Exponential),
            delay: spec.backoff_delay.map_or(Self::KAFKA_SOURCE.delay, |delay| delay.0),
            timeout: spec.timeout.map_or(Self::KAFKA_SOURCE.timeout, |timeout| timeout.0),
        }
    }

    /// Delay before retry `n`, from 1, without jitter and cap.
    #[must_use]
    pub fn delay_before(&self, n: u32) -> Duration {
        let times = match self.policy {
            Backoff::Linear => n,
            Backoff::Exponential => 2_u32.saturating_pow(n),
        };
        self.delay.saturating_mul(times)
    }
}

/// What an answer means for the event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The function accepted it.
    Delivered,
    /// The function may accept it later.
    Retry,
    /// The function will never accept it.
    Rejected,
}

/// The meaning of a status; `None` stands for no answer.
#[must_use]
pub fn verdict(status: Option<StatusCode>) -> Verdict {
    match status.map(|status| status.as_u16()) {
        Some(100..300) => Verdict::Delivered,
        None | Some(404 | 408 | 409 | 429 | 500..) => Verdict::Retry,
        Some(_) => Verdict::Rejected,
    }
}

/// Why an event was not delivered, after its last attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The last answer; `None` if there was none.
    pub answer: Option<Answer>,
    /// The reason, for a log line.
    pub why: String,
}

/// An HTTP answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

/// Sends an event until it is accepted, rejected or out of retries. Calls `retried` with the reason before each retry. An
/// attempt without an answer only counts if the function answers other requests, so that an outage of the function
/// rejects no event.
pub async fn deliver(
    sink: &dyn Sink,
    function: &str,
    request: Request<Bytes>,
    delivery: &Delivery,
    retried: impl Fn(&Failure),
) -> Result<(), Failure> {
    let (mut retries, mut uncounted) = (0, 0);
    loop {
        let failure = match timeout(delivery.timeout, sink.send(function, request.clone())).await {
            Ok(Ok(response)) => {
                let (head, body) = response.into_parts();
                let why = format!("it answered {}: {}", head.status, String::from_utf8_lossy(&body));
                Failure { answer: Some(Answer { status: head.status, headers: head.headers, body }), why }
            }
            Ok(Err(error)) => Failure { answer: None, why: error.to_string() },
            Err(_) => Failure { answer: None, why: format!("no answer within {:?}", delivery.timeout) },
        };
        match verdict(failure.answer.as_ref().map(|answer| answer.status)) {
            Verdict::Delivered => return Ok(()),
            Verdict::Rejected => return Err(failure),
            Verdict::Retry => {}
        }
        let delay = if failure.answer.is_some() || sink.answers(function).await {
            if retries >= delivery.retry {
                return Err(failure);
            }
            retries += 1;
            delivery.delay_before(retries)
        } else {
            uncounted += 1;
            delivery.delay_before(uncounted).min(MAX_UNCOUNTED_DELAY)
        };
        retried(&failure);
        sleep(delay).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_is_delivered_retried_or_rejected() {
        for code in 100..=599 {
            let expected = match code {
                ..300 => Verdict::Delivered,
                404 | 408 | 409 | 429 | 500.. => Verdict::Retry,
                _ => Verdict::Rejected,
            };
            assert_eq!(verdict(Some(StatusCode::from_u16(code).unwrap())), expected, "{code}");
        }
        assert_eq!(verdict(None), Verdict::Retry);
    }

    #[test]
    fn delays_grow_as_the_policy_says() {
        let millis = |delivery: Delivery| (1..=5).map(move |n| delivery.delay_before(n).as_millis() as u64);
        assert!(millis(Delivery::PING_SOURCE).eq([50, 100, 200, 400, 800]));
        assert!(millis(Delivery::KAFKA_SOURCE).eq([600, 1_200, 2_400, 4_800, 9_600]));
        let linear =
            Delivery { policy: Backoff::Linear, delay: Duration::from_millis(20), ..Delivery::KAFKA_SOURCE };
        assert!(millis(linear).eq([20, 40, 60, 80, 100]));
    }

    #[test]
    fn a_delivery_that_is_given_is_taken_as_it_is() {
        assert_eq!(Delivery::of(None), Delivery::KAFKA_SOURCE);
        let spec: DeliverySpec = serde_json::from_str("{}").unwrap();
        assert_eq!(Delivery::of(Some(&spec)).retry, 0);
    }
}
