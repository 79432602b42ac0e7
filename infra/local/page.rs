//! What the gateway itself answers: the state of the system as JSON and as a plain page.

use std::{fmt::Write, sync::Arc};

use bytes::Bytes;
use eventing::arrows::{ArrowStatus, Playing};
use http::{HeaderValue, Request, Response, header::CONTENT_TYPE};
use serde_json::json;
use serving::{Serving, status::FunctionStatus};

/// Shows what runs.
pub(crate) struct StatusPage {
    pub(crate) serving: Arc<Serving>,
    pub(crate) playing: Arc<Playing>,
}

impl StatusPage {
    /// The page for people at `/`, and the same as JSON at `/status`.
    pub(crate) async fn answer(&self, request: &Request<Bytes>) -> Response<Bytes> {
        let (functions, arrows) = (self.serving.status(), self.playing.status().await);
        let dead_letters = self.playing.dead_letters();
        let (media_type, body) = match request.uri().path() {
            "/" => ("text/html; charset=utf-8", html(&functions, &arrows, dead_letters)),
            _ => {
                let status = json!({ "functions": functions, "arrows": arrows, "deadLetters": dead_letters });
                ("application/json", status.to_string())
            }
        };
        let mut response = Response::new(Bytes::from(body));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
        response
    }
}

/// Names come from manifests that were read strictly, so that nothing here needs escaping but is escaped anyway.
fn html(functions: &[FunctionStatus], arrows: &[ArrowStatus], dead_letters: usize) -> String {
    let mut html = String::from(HEAD);
    html.push_str("<h2>Functions</h2><table><tr><th>function<th>replicas<th>wanted<th>waiting<th>requests<th>cold starts, ms");
    for function in functions {
        let replicas: Vec<_> =
            function.replicas.iter().map(|r| format!("{} ({} under way)", r.pid, r.in_flight)).collect();
        let starts: Vec<_> =
            function.cold_starts.iter().rev().take(5).map(|start| format!("{:.1}", start.ms)).collect();
        row(
            &mut html,
            &[
                &function.name,
                &if replicas.is_empty() { "none".to_owned() } else { replicas.join(", ") },
                &function.desired.to_string(),
                &function.queued.to_string(),
                &function.requests.to_string(),
                &starts.join(", "),
            ],
        );
    }
    html.push_str("</table><h2>Arrows</h2><table><tr><th>arrow<th>to<th>lag<th>under way<th>delivered<th>tried again<th>dead");
    for arrow in arrows {
        row(
            &mut html,
            &[
                &arrow.name,
                &arrow.function,
                &arrow.lag.map_or_else(|| "unknown".to_owned(), |lag| lag.to_string()),
                &arrow.under_way.to_string(),
                &arrow.delivered.to_string(),
                &arrow.retried.to_string(),
                &arrow.dead.to_string(),
            ],
        );
    }
    let _ =
        write!(html, "</table><h2>Dead letters</h2><p>{dead_letters}, see <code>dead-letters list</code>");
    html
}

const HEAD: &str = r#"<!doctype html>
<html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="2">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>Status</title>
<style>
  :root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
  body { max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
  table { border-collapse: collapse; } th, td { padding: .25rem 1rem .25rem 0; text-align: left; }
  td { font-variant-numeric: tabular-nums; }
</style>
<h1>Status</h1><p><a href="service-analytics/">Analytics</a>, this as <a href="status">JSON</a>
"#;

fn row(html: &mut String, cells: &[&str]) {
    html.push_str("<tr>");
    for cell in cells {
        let cell = cell.replace('&', "&amp;").replace('<', "&lt;");
        let _ = write!(html, "<td>{cell}");
    }
}
