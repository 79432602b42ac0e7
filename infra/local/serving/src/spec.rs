//! What a function's manifest says, as the runtime needs it.

use std::{collections::BTreeMap, time::Duration};

use http::Uri;

/// Default time from a process' start to its first response.
const START_TIMEOUT: Duration = Duration::from_secs(15);

/// What a function's manifest says.
#[derive(Debug, Clone)]
pub struct FunctionSpec {
    /// Its name.
    pub name: String,
    /// Maximum number of concurrent requests per replica; 0 means no limit.
    pub container_concurrency: u32,
    /// Time limit of one request, including the time it waits for a replica.
    pub timeout: Duration,
    /// The template's annotations.
    pub annotations: BTreeMap<String, String>,
    /// Environment variables of its container.
    pub env: Vec<(String, String)>,
    /// Variables of its container whose values come from the cluster's configuration (`valueFrom`). The function may
    /// read these keys and no others; whoever starts it gives their values.
    pub keys: Vec<String>,
    /// Time limit from a process' start to its first response. After that the process is killed.
    pub start_timeout: Duration,
    /// How its replicas are probed.
    pub liveness: LivenessProbe,
}

impl FunctionSpec {
    /// A function with Knative's defaults: any number of requests at once, 300 s for each.
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            container_concurrency: 0,
            timeout: Duration::from_secs(300),
            annotations: BTreeMap::new(),
            env: Vec::new(),
            keys: Vec::new(),
            start_timeout: START_TIMEOUT,
            liveness: LivenessProbe::default(),
        }
    }
}

/// Settings of the liveness probe: the container's `livenessProbe`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LivenessProbe {
    /// Path and query of the `GET`.
    pub path: Uri,
    /// Interval between probes (`periodSeconds`).
    pub period: Duration,
    /// Time limit of one probe (`timeoutSeconds`).
    pub timeout: Duration,
    /// Consecutive failures after which the replica is killed (`failureThreshold`).
    pub failure_threshold: u32,
}

impl Default for LivenessProbe {
    fn default() -> Self {
        Self {
            path: Uri::from_static("/healthz"),
            period: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            failure_threshold: 3,
        }
    }
}
