//! Where events are sent: a function, by its name. Who implements it decides what HTTP travels over.

use async_trait::async_trait;
use bytes::Bytes;
use framework::router::FUNCTION;
use http::{Response, StatusCode};

/// No HTTP answer came; the words say why.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct SinkError(pub String);

/// Whether an answer refuses who sent the event, and says nothing about the event itself.
#[must_use]
pub fn is_unauthorized(status: StatusCode) -> bool {
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}

/// The answer, if it is the function's word about the event: it carries the functions' mark, and does not refuse the
/// sender. Anything on the way may answer for a function that is away, with statuses that would be final from the
/// function itself. `credentials` names the settings to check when the sender is refused.
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
    /// Sends the request and reads the whole answer, which is the function's own. What something on the way answers
    /// for the function is an error.
    async fn send(
        &self,
        function: &str,
        request: http::Request<Bytes>,
    ) -> Result<http::Response<Bytes>, SinkError>;

    /// Asked after a try without an answer: whether the function answers others, so that this try counts towards the
    /// event's retries. Tries that do not count go on for as long as the function is away.
    async fn answers(&self, _function: &str) -> bool {
        true
    }

    /// How a dead letter names the function (`knativeerrordest`): its URL in a cluster, unless it is elsewhere.
    fn destination(&self, function: &str, namespace: &str) -> String {
        format!("http://{function}.{namespace}.svc.cluster.local")
    }
}

/// A sink whose every try counts, for whoever does not wait until a function is back.
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
