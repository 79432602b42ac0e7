//! What can be seen from outside: replicas, requests, cold starts, and a line for each change.

use chrono::{DateTime, Utc};
use serde::Serialize;

/// One function as it is now.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FunctionStatus {
    /// Its name.
    pub name: String,
    /// Those that take requests, oldest first.
    pub replicas: Vec<ReplicaStatus>,
    /// Processes that have not answered yet.
    pub starting: u32,
    /// How many replicas the autoscaler wants.
    pub desired: u32,
    /// Requests since the runtime began.
    pub requests: u64,
    /// Requests that wait for a free replica.
    pub queued: usize,
    /// The latest, oldest first.
    pub cold_starts: Vec<ColdStart>,
    /// Processes that ended without being asked to, since the runtime began.
    pub crashes: u64,
    /// Whether it ends whenever it is started.
    pub crash_loop: bool,
    /// Why the last one ended, with its last words.
    pub last_error: Option<String>,
}

/// One replica.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplicaStatus {
    /// Its process.
    pub pid: u32,
    /// Requests it works on.
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
    /// From there to its first answer, milliseconds.
    pub ms: f64,
}

/// What happened to a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The autoscaler wants another number of replicas; 0 is to zero.
    Scaled {
        /// Which function.
        function: String,
        /// The number.
        to: u32,
    },
    /// A process ended that nobody asked to.
    Crashed {
        /// Which function.
        function: String,
        /// How it ended, and where it logged.
        why: String,
    },
}
