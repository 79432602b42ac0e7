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
    /// Sends the request and reads the whole answer.
    async fn send(
        &self,
        function: &str,
        request: http::Request<Bytes>,
    ) -> Result<http::Response<Bytes>, SinkError>;
}
