//! The dashboard: one static page that asks `analytics` of the same place every few seconds.

use framework::router::{Response, answer};
use http::StatusCode;

/// The page; its only request is relative, so it works behind any prefix.
pub fn page() -> Response {
    answer(StatusCode::OK, "text/html; charset=utf-8", include_str!("dashboard.html"))
}
