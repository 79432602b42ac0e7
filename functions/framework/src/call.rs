//! The id that a gateway gives a call (OpenFaaS' `X-Call-Id`). It is returned with the response and added to every log
//! line of the call.

use std::future::Future;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::router::Response;

/// The header that carries the id.
pub const CALL_ID: HeaderName = HeaderName::from_static("x-call-id");

tokio::task_local! {
    static CURRENT: HeaderValue;
}

/// Answers a call with its id, if it has one, in scope.
pub(crate) async fn answered(id: Option<HeaderValue>, answering: impl Future<Output = Response>) -> Response {
    let Some(id) = id else { return answering.await };
    let mut response = CURRENT.scope(id.clone(), answering).await;
    response.headers_mut().insert(CALL_ID, id);
    response
}

/// The id of a request.
pub(crate) fn id(headers: &HeaderMap) -> Option<HeaderValue> {
    headers.get(CALL_ID).cloned()
}

/// The id of the current call.
pub(crate) fn current() -> Option<String> {
    CURRENT.try_with(|id| String::from_utf8_lossy(id.as_bytes()).into_owned()).ok()
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::router::empty;

    #[tokio::test]
    async fn a_call_id_comes_back_and_is_known_meanwhile() {
        let id = Some(HeaderValue::from_static("c-1"));
        let answer = answered(id, async {
            assert_eq!(current().as_deref(), Some("c-1"));
            empty(StatusCode::NO_CONTENT)
        });
        assert_eq!(answer.await.headers()[CALL_ID], "c-1");
        assert_eq!(current(), None);
    }

    #[tokio::test]
    async fn a_call_without_an_id_gets_none() {
        let answer = answered(None, async { empty(StatusCode::OK) }).await;
        assert!(!answer.headers().contains_key(CALL_ID));
    }
}
