//! Reads the bodies of requests, within a limit and a time, and tells the connection about bodies that are left.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use tokio::time::timeout;

use super::activity::Activity;
use crate::router::{Response, problem};

/// How long a client may take to send a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(20);

tokio::task_local! {
    /// The connection whose request this task answers.
    pub(super) static RECEIVING: Arc<Activity>;
}

/// Marks a response after which its connection closes, because the request's body was not read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unread;

/// Reads a body of at most `limit` bytes, or returns the error response (400, 408 or 413).
pub async fn read_body(mut body: Incoming, limit: usize) -> Result<Bytes, Box<Response>> {
    let activity = RECEIVING.try_with(Arc::clone).ok();
    let _receiving = activity.as_ref().map(|activity| activity.receiving());
    let read = timeout(BODY_TIMEOUT, read(&mut body, limit)).await.unwrap_or_else(|_| {
        Err(Box::new(problem(StatusCode::REQUEST_TIMEOUT, "the body took too long; send it faster")))
    });
    read.map_err(|response| Box::new(unread(*response, body)))
}

/// A response to a request whose body was not read completely. It announces that the connection closes. The connection
/// discards for a while what the client still sends, and is then cut.
#[must_use]
pub fn unread<B>(mut response: http::Response<B>, body: Incoming) -> http::Response<B> {
    if !body.is_end_stream() {
        ends_connection(&mut response);
    }
    response
}

async fn read(body: &mut Incoming, limit: usize) -> Result<Bytes, Box<Response>> {
    let too_large = || {
        Box::new(problem(StatusCode::PAYLOAD_TOO_LARGE, format!("the body must have at most {limit} bytes")))
    };
    if body.size_hint().lower() > limit as u64 {
        return Err(too_large());
    }
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| {
            Box::new(problem(StatusCode::BAD_REQUEST, format!("the body did not come whole: {e}")))
        })?;
        let Ok(data) = frame.into_data() else { continue };
        if whole.len() + data.len() > limit {
            return Err(too_large());
        }
        // Most bodies arrive in one frame, which needs no copy.
        if whole.is_empty() && body.is_end_stream() {
            return Ok(data);
        }
        whole.extend_from_slice(&data);
    }
    // HTTP/2 allows a client to end a stream cleanly before it sent the announced length.
    if body.size_hint().lower() > 0 {
        let detail = "the body did not come whole: it is shorter than its `Content-Length`";
        return Err(Box::new(problem(StatusCode::BAD_REQUEST, detail)));
    }
    Ok(whole.freeze())
}

/// Has a connection end with this answer where the protocol ends connections so.
fn ends_connection<B>(response: &mut http::Response<B>) {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response.extensions_mut().insert(Unread);
}
