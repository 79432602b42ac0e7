//! What the gateway itself answers: the state of the system as JSON and as a plain page.

use std::{
    fmt::Write,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use eventing::event_sources::{RunningSources, SourceStatus};
use framework::supervise::TaskStatus;
use http::{HeaderValue, Request, Response, header::CONTENT_TYPE};
use serde_json::json;
use serving::{Serving, status::FunctionStatus};
use tokio::{
    sync::{Mutex as AsyncMutex, mpsc, oneshot},
    time::timeout,
};

use crate::{data_folder::DataFolder, terminal};

/// How long a request waits for the sources' lag. Then it is answered without.
const LAG_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of requests that wait for the lag.
const QUEUE: usize = 1_000;

/// The status page.
pub(crate) struct StatusPage {
    serving: Arc<Serving>,
    sources: Arc<RunningSources>,
    folder: Arc<DataFolder>,
    ask: mpsc::Sender<oneshot::Sender<Vec<SourceStatus>>>,
    /// The last known status of the sources, without their lag.
    last: Mutex<Vec<SourceStatus>>,
}

/// What the page shows.
struct Status {
    functions: Vec<FunctionStatus>,
    arrows: Vec<SourceStatus>,
    dead_letters: usize,
    tasks: Vec<TaskStatus>,
    problems: Vec<String>,
}

impl StatusPage {
    /// Queries the log for the lag in a task of its own: a cancelled request interrupts no query, and at most one query
    /// runs at a time, however many requests wait.
    pub(crate) fn new(serving: Arc<Serving>, sources: Arc<RunningSources>, folder: Arc<DataFolder>) -> Self {
        let (ask, asked) = mpsc::channel(QUEUE);
        let (asked, tasks, arrows) =
            (Arc::new(AsyncMutex::new(asked)), serving.supervised(), sources.clone());
        tokio::spawn(async move {
            tasks.supervise("status", || answer_lag(asked.clone(), arrows.clone())).await;
        });
        Self { serving, sources, folder, ask, last: Mutex::default() }
    }

    /// The page for people at `/`, and the same as JSON at `/status`.
    pub(crate) async fn answer(&self, request: &Request<Bytes>) -> Response<Bytes> {
        let status = Status {
            arrows: self.arrows().await,
            functions: self.serving.status(),
            dead_letters: self.sources.dead_letters(),
            tasks: self.serving.supervised().status().into_iter().chain(self.sources.tasks()).collect(),
            problems: self.folder.check().err().iter().map(ToString::to_string).collect(),
        };
        let (media_type, body) = match request.uri().path() {
            "/" => ("text/html; charset=utf-8", html(&status)),
            _ => {
                let Status { functions, arrows, dead_letters, tasks, problems } = status;
                let status = json!({
                    "functions": functions,
                    "arrows": arrows,
                    "deadLetters": dead_letters,
                    "tasks": tasks,
                    "problems": problems,
                });
                ("application/json", terminal::json(&status))
            }
        };
        let mut response = Response::new(Bytes::from(body));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
        response
    }

    /// The sources' status as of after the request arrived; without the lag if the log does not answer.
    async fn arrows(&self) -> Vec<SourceStatus> {
        let (answer, answered) = oneshot::channel();
        let asked = self.ask.try_send(answer).is_ok();
        let fresh = match asked {
            true => timeout(LAG_TIMEOUT, answered).await.ok().and_then(Result::ok),
            false => None,
        };
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match fresh {
            Some(arrows) => {
                *last = arrows.iter().map(|arrow| SourceStatus { lag: None, ..arrow.clone() }).collect();
                arrows
            }
            None => last.clone(),
        }
    }
}

/// Answers all requests that arrived before a query began with its result. Ends when the page is dropped.
async fn answer_lag(
    asked: Arc<AsyncMutex<mpsc::Receiver<oneshot::Sender<Vec<SourceStatus>>>>>,
    sources: Arc<RunningSources>,
) {
    let (mut asked, mut asking) = (asked.lock().await, Vec::new());
    while asked.recv_many(&mut asking, QUEUE).await > 0 {
        let arrows = sources.status().await;
        for answer in asking.drain(..) {
            // The client may have disconnected.
            let _ = answer.send(arrows.clone());
        }
    }
}

/// Names come from validated manifests, so they need no escaping; they are escaped all the same.
fn html(status: &Status) -> String {
    let Status { functions, arrows, dead_letters, tasks, problems } = status;
    let mut html = String::from(HEAD);
    for problem in problems {
        let _ = write!(html, "<p><strong>{}</strong>", text(problem));
    }
    html.push_str("<h2>Functions</h2><table><tr><th>function<th>replicas<th>wanted<th>waiting<th>requests<th>cold starts, ms<th>crashes<th>last error");
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
                &function.crashes.to_string(),
                function.last_error.as_deref().unwrap_or_default(),
            ],
        );
    }
    html.push_str("</table><h2>Arrows</h2><table><tr><th>arrow<th>to<th>lag<th>under way<th>delivered<th>tried again<th>dead<th>restarts<th>last error");
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
                &arrow.restarts.to_string(),
                arrow.last_error.as_deref().unwrap_or_default(),
            ],
        );
    }
    let _ =
        write!(html, "</table><h2>Dead letters</h2><p>{dead_letters}, see <code>dead-letters list</code>");
    html.push_str("<h2>Tasks</h2><table><tr><th>task<th>restarts<th>last error");
    for TaskStatus { name, restarts, last_error } in tasks {
        row(&mut html, &[name, &restarts.to_string(), last_error.as_deref().unwrap_or_default()]);
    }
    html.push_str("</table>");
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
        let _ = write!(html, "<td>{}", text(cell));
    }
}

/// Escapes text that stands between tags.
fn text(text: &str) -> String {
    terminal::escape(text).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_functions_say_is_text_on_the_page() {
        let task = TaskStatus { name: "a".into(), restarts: 1, last_error: Some("<script>\u{202e}&".into()) };
        let status = Status {
            functions: Vec::new(),
            arrows: Vec::new(),
            dead_letters: 0,
            tasks: vec![task],
            problems: vec!["<b>".into()],
        };
        let html = html(&status);
        assert!(html.contains("&lt;script&gt;\\u{202e}&amp;") && html.contains("&lt;b&gt;"), "{html}");
    }
}
