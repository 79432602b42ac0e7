//! What all resources have in common, and how they refer to each other.

use std::collections::BTreeMap;

use serde::Deserialize;

/// A resource: what all kinds have in common, around their `spec`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Resource<S> {
    /// Group and version.
    pub api_version: String,
    /// Kind.
    pub kind: String,
    /// Name and labels.
    pub metadata: Metadata,
    /// What the kind defines.
    pub spec: S,
}

/// Name and labels of a resource.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Metadata {
    /// Unique among resources of its kind in its namespace.
    #[serde(default)]
    pub name: String,
    /// `default` where absent.
    pub namespace: Option<String>,
    /// Labels, for selectors.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Annotations, which configure controllers.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

impl Metadata {
    /// The namespace, or the default one.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or("default")
    }
}

/// Where events go.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Destination {
    /// A resource by reference; a bare `uri` is not supported here.
    #[serde(rename = "ref")]
    pub reference: Reference,
}

/// A resource by name.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Reference {
    /// Group and version.
    pub api_version: String,
    /// Kind.
    pub kind: String,
    /// Name.
    pub name: String,
    /// The referring resource's namespace where absent.
    pub namespace: Option<String>,
}
