//! Status and change events of functions: replicas, requests, cold starts, crashes.

use chrono::{DateTime, Utc};
use serde::Serialize;

/// Current status of a function.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FunctionStatus {
    /// Its name.
    pub name: String,
    /// Ready replicas, oldest first.
    pub replicas: Vec<ReplicaStatus>,
    /// Number of processes that are not ready yet.
    pub starting: u32,
    /// Number of replicas that the autoscaler wants.
    pub desired: u32,
    /// Requests since the runtime began.
    pub requests: u64,
    /// Requests that wait for a free replica.
    pub queued: usize,
    /// The most recent cold starts, oldest first.
    pub cold_starts: Vec<ColdStart>,
    /// Unexpected exits since the runtime started.
    pub crashes: u64,
    /// Whether the function is in a crash loop.
    pub crash_loop: bool,
    /// Reason of the last crash, with the end of its log.
    pub last_error: Option<String>,
}

/// One replica.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaStatus {
    /// Its process.
    pub pid: u32,
    /// Number of requests in flight.
    pub in_flight: u32,
    /// When it was started.
    pub started: DateTime<Utc>,
}

/// One start of a process.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ColdStart {
    /// When it was started.
    pub time: DateTime<Utc>,
    /// Time to its first response, milliseconds.
    pub ms: f64,
}

/// A change of a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The desired number of replicas changed; 0 means scaled to zero.
    Scaled {
        /// Which function.
        function: String,
        /// The number.
        to: u32,
    },
    /// A process exited unexpectedly.
    Crashed {
        /// Which function.
        function: String,
        /// How it ended, and where it logged.
        why: String,
    },
}
