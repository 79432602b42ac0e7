//! Where events are sent: a function, by name. The implementation decides how HTTP reaches it.

use async_trait::async_trait;
use bytes::Bytes;
use framework::router::FUNCTION;
use http::{Response, StatusCode};

/// There was no HTTP answer; the text says why.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct SinkError(pub String);

/// Whether a status refuses the sender, and says nothing about the event.
#[must_use]
pub fn is_unauthorized(status: StatusCode) -> bool {
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}

/// Returns the answer if it comes from the function itself: it carries the function's header, and does not refuse the
/// sender. A gateway may answer for a function that is down, with a status that would be final from the function.
/// `credentials` names the settings to check if the sender is refused.
pub fn from_function(answer: Response<Bytes>, credentials: &str) -> Result<Response<Bytes>, SinkError> {
    let status = answer.status();
    if is_unauthorized(status) {
        return Err(SinkError(format!("the sender was refused with {status}: check {credentials}")));
    }
    if !answer.headers().contains_key(FUNCTION) {
        return Err(SinkError(format!("the function did not answer; the gateway answered {status} for it")));
    }
    Ok(answer)
}

/// Sends requests to functions.
#[async_trait]
pub trait Sink: Send + Sync {
    /// Sends the request and reads the function's whole answer. An answer of something in between is an error.
    async fn send(
        &self,
        function: &str,
        request: http::Request<Bytes>,
    ) -> Result<http::Response<Bytes>, SinkError>;

    /// Whether the function answers other requests. Asked after an attempt without an answer: only if it does, the attempt
    /// counts towards the event's retries, so that an outage of the function creates no dead letters.
    async fn answers(&self, _function: &str) -> bool {
        true
    }

    /// The function's URL in a dead letter (`knativeerrordest`); by default that of a cluster.
    fn destination(&self, function: &str, namespace: &str) -> String {
        format!("http://{function}.{namespace}.svc.cluster.local")
    }
}

/// A sink whose attempts all count, for callers that give up on a function that is down.
pub(crate) struct Limited<'a>(pub(crate) &'a dyn Sink);

#[async_trait]
impl Sink for Limited<'_> {
    async fn send(
        &self,
        function: &str,
        request: http::Request<Bytes>,
    ) -> Result<http::Response<Bytes>, SinkError> {
        self.0.send(function, request).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_with_the_functions_mark_is_the_functions() {
        let answer = |status: u16, marked: bool| {
            let mut answer = Response::builder().status(status);
            if marked {
                answer = answer.header(FUNCTION, "store");
            }
            from_function(answer.body(Bytes::new()).unwrap(), "EVENT_TOKEN")
        };
        for status in [200, 204, 404, 405, 500, 503] {
            assert!(answer(status, false).is_err(), "{status}");
            assert_eq!(answer(status, true).unwrap().status(), status);
        }
        for (status, marked) in [(401, true), (403, true), (401, false)] {
            assert!(answer(status, marked).unwrap_err().0.contains("EVENT_TOKEN"), "{status}");
        }
    }
}
