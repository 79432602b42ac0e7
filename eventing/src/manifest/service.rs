//! `serving.knative.dev/v1 Service`: what is run of it, and what is a cluster's alone.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::{Metadata, Resource};

/// A function.
pub type Service = Resource<ServiceSpec>;

/// What is wanted of a function.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceSpec {
    /// What each revision is like.
    pub template: RevisionTemplate,
    /// Which revision gets how much; a laptop has one revision.
    pub traffic: Option<Value>,
}

/// What each revision is like.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevisionTemplate {
    /// The autoscaler's annotations are here.
    #[serde(default)]
    pub metadata: Metadata,
    /// Concurrency, time and containers.
    pub spec: RevisionSpec,
}

/// Concurrency, time and containers.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RevisionSpec {
    /// Most requests at once in a replica; 0 is no limit.
    #[serde(default)]
    pub container_concurrency: u32,
    /// How long a request may take, seconds.
    pub timeout_seconds: Option<u32>,
    /// Exactly one runs here.
    pub containers: Vec<Container>,
    /// A cluster's alone.
    pub service_account_name: Option<String>,
    /// A cluster's alone.
    pub automount_service_account_token: Option<bool>,
    /// A cluster's alone.
    pub enable_service_links: Option<bool>,
    /// A cluster's alone.
    pub image_pull_secrets: Option<Value>,
    /// A cluster's alone.
    pub volumes: Option<Value>,
}

/// A container; its process is a child of the runtime on a laptop.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Container {
    /// A cluster's alone.
    pub image: String,
    /// A cluster's alone.
    pub name: Option<String>,
    /// A cluster's alone.
    pub image_pull_policy: Option<String>,
    /// Variables of the environment.
    #[serde(default)]
    pub env: Vec<EnvVar>,
    /// The cluster's part of the environment; a laptop has its own.
    pub env_from: Option<Value>,
    /// A laptop chooses a free port for each replica.
    pub ports: Option<Value>,
    /// A cluster's alone.
    pub readiness_probe: Option<Value>,
    /// A cluster's alone.
    pub liveness_probe: Option<Value>,
    /// A cluster's alone.
    pub startup_probe: Option<Value>,
    /// A cluster's alone.
    pub security_context: Option<Value>,
    /// A cluster's alone.
    pub resources: Option<Value>,
    /// A cluster's alone.
    pub volume_mounts: Option<Value>,
}

/// A variable of the environment.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct EnvVar {
    /// Name.
    pub name: String,
    /// Value; absent where it comes from a cluster's resource.
    pub value: Option<String>,
    /// A cluster's alone.
    pub value_from: Option<Value>,
}

impl Service {
    /// The annotations of the revision, which the autoscaler reads.
    #[must_use]
    pub fn annotations(&self) -> &BTreeMap<String, String> {
        &self.spec.template.metadata.annotations
    }
}
