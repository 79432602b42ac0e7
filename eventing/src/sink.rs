//! Where events are sent: a function, by its name. Who implements it decides what HTTP travels over.

use async_trait::async_trait;
use bytes::Bytes;

/// No HTTP answer came; the words say why.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct SinkError(pub String);

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
