//! The error type of all functions: whose fault it is, and whether a retry helps.

use domain::{Failure, FailureKind, chain};
use http::StatusCode;
use serde::Serialize;

/// The request or event can never succeed unchanged: a 4xx that is not retried.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Rejection {
    /// A 4xx status.
    pub status: StatusCode,
    /// What to change.
    pub detail: String,
}

impl Rejection {
    /// A 400: the data is wrong.
    pub fn bad_data(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    /// A rejection with a specific status.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into() }
    }
}

/// The error of a function's handler.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The sender's fault; sending the same again fails again.
    #[error("{0}")]
    Rejected(#[from] Rejection),
    /// Temporarily unavailable; the same request may succeed later (503 with `Retry-After`).
    #[error("{0}")]
    Unavailable(String),
    /// Overload; nothing was done, and the same request may succeed later (429 with `Retry-After`).
    #[error("{0}")]
    Busy(String),
}

impl Error {
    /// A backend is unavailable; the detail is the backend's own message.
    pub fn unavailable(why: &(dyn std::error::Error + '_)) -> Self {
        Self::Unavailable(chain(why))
    }

    /// The HTTP status of the response.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Rejected(rejection) => rejection.status,
            Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Busy(_) => StatusCode::TOO_MANY_REQUESTS,
        }
    }
}

/// What a store's failure means over HTTP.
impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let detail = failure.to_string();
        match failure.kind {
            FailureKind::Unavailable => Self::Unavailable(detail),
            FailureKind::Overloaded => Self::Busy(detail),
            FailureKind::TooLarge => Rejection::new(StatusCode::PAYLOAD_TOO_LARGE, detail).into(),
        }
    }
}

/// An RFC 9457 problem, the body of every error response.
#[derive(Debug, Serialize)]
pub struct Problem {
    /// The status' reason phrase.
    pub title: &'static str,
    /// The HTTP status, as a number.
    pub status: u16,
    /// What to change.
    pub detail: String,
}

impl Problem {
    /// The problem for a status, saying what to change.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            detail: detail.into(),
        }
    }

    /// The problem as JSON bytes.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        // Serialising strings and a number cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }
}
