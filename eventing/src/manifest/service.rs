//! `serving.knative.dev/v1 Service`: a function. Fields that only concern a cluster are accepted and ignored.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::resource::{Metadata, Resource};

/// A function.
pub type Service = Resource<ServiceSpec>;

/// The spec of a function.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceSpec {
    /// The template of each revision.
    pub template: RevisionTemplate,
    /// How traffic is split between revisions; a laptop has one.
    pub traffic: Option<Value>,
}

/// The template of each revision.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevisionTemplate {
    /// Contains the autoscaler's annotations.
    #[serde(default)]
    pub metadata: Metadata,
    /// Concurrency, timeout and containers.
    pub spec: RevisionSpec,
}

/// Concurrency, timeout and containers.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RevisionSpec {
    /// Maximum number of concurrent requests per replica; 0 means no limit.
    #[serde(default)]
    pub container_concurrency: u32,
    /// Timeout of a request, seconds.
    pub timeout_seconds: Option<u32>,
    /// Exactly one is supported here.
    pub containers: Vec<Container>,
    /// Only for a cluster.
    pub service_account_name: Option<String>,
    /// Only for a cluster.
    pub automount_service_account_token: Option<bool>,
    /// Only for a cluster.
    pub enable_service_links: Option<bool>,
    /// Only for a cluster.
    pub image_pull_secrets: Option<Value>,
    /// Only for a cluster.
    pub volumes: Option<Value>,
}

/// A container; on a laptop, a child process of the runtime.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Container {
    /// Only for a cluster.
    pub image: String,
    /// Only for a cluster.
    pub name: Option<String>,
    /// Only for a cluster.
    pub image_pull_policy: Option<String>,
    /// Environment variables: the function's configuration keys.
    #[serde(default)]
    pub env: Vec<EnvVar>,
    /// Environment variables from a cluster's resources; a laptop has its own.
    pub env_from: Option<Value>,
    /// Ignored: a laptop passes each replica a socket.
    pub ports: Option<Value>,
    /// Only for a cluster.
    pub readiness_probe: Option<Value>,
    /// Only for a cluster.
    pub liveness_probe: Option<Value>,
    /// Only for a cluster.
    pub startup_probe: Option<Value>,
    /// Only for a cluster.
    pub security_context: Option<Value>,
    /// Only for a cluster.
    pub resources: Option<Value>,
    /// Only for a cluster.
    pub volume_mounts: Option<Value>,
}

/// An environment variable.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct EnvVar {
    /// Name.
    pub name: String,
    /// Value; absent if it comes from a cluster's resource.
    pub value: Option<String>,
    /// Only for a cluster.
    pub value_from: Option<Value>,
}

impl Service {
    /// The annotations of the revision, which the autoscaler reads.
    #[must_use]
    pub fn annotations(&self) -> &BTreeMap<String, String> {
        &self.spec.template.metadata.annotations
    }
}
