//! The prefixes that lead to functions, read from the cluster's HTTPRoute, so that laptop and cluster have the same.

use std::path::PathBuf;

use anyhow::{Context, bail};
use eventing::files;
use serde_json::Value;
use serving::Route;

/// The cluster's HTTPRoute, used if the manifests contain none.
const DEFAULT: &str = include_str!("../knative/routes/gateway/routes.yaml");
const GROUP: &str = "gateway.networking.k8s.io/";

/// Reads the HTTPRoutes among these files and folders.
///
/// # Errors
/// A file cannot be read, or a route needs what the gateway does not support.
pub(crate) fn read(paths: &[PathBuf]) -> anyhow::Result<Vec<Route>> {
    let mut routes = Vec::new();
    for (file, text) in files::read(paths)?.into_iter().filter(|(_, text)| text.contains("HTTPRoute")) {
        routes.extend(parse(&text).with_context(|| file)?);
    }
    if routes.is_empty() { parse(DEFAULT).context("the built-in HTTPRoute") } else { Ok(routes) }
}

fn parse(text: &str) -> anyhow::Result<Vec<Route>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text)?;
    let is_route = |document: &&Value| {
        document["kind"] == "HTTPRoute"
            && document["apiVersion"].as_str().is_some_and(|version| version.starts_with(GROUP))
    };
    let rules = documents.iter().filter(is_route).flat_map(|route| items(&route["spec"]["rules"]));
    let mut routes = Vec::new();
    for rule in rules {
        let function = function(rule)?;
        for path_match in items(&rule["matches"]) {
            routes.push(Route { prefix: prefix(path_match)?, function: function.clone() });
        }
    }
    Ok(routes)
}

/// The function that a rule leads to: by the host name that it sets, or else by its backend's Service.
fn function(rule: &Value) -> anyhow::Result<String> {
    let rewrites = items(&rule["filters"]).iter().filter(|filter| filter["type"] == "URLRewrite");
    let mut hostname = None;
    let mut strips_prefix = false;
    for rewrite in rewrites.map(|filter| &filter["urlRewrite"]) {
        hostname = rewrite["hostname"].as_str().or(hostname);
        let path = &rewrite["path"];
        strips_prefix |= path["type"] == "ReplacePrefixMatch" && path["replacePrefixMatch"] == "/";
    }
    if !strips_prefix {
        bail!("a rule of an HTTPRoute must replace its prefix with `/` (URLRewrite, ReplacePrefixMatch)");
    }
    let host = hostname.or(rule["backendRefs"][0]["name"].as_str());
    let name = host.and_then(|host| host.split('.').next()).filter(|name| !name.is_empty());
    Ok(name.context("a rule of an HTTPRoute names no function: set `hostname` or `backendRefs`")?.to_owned())
}

fn prefix(path_match: &Value) -> anyhow::Result<String> {
    let path = &path_match["path"];
    let prefix = path["value"].as_str().map(|value| value.trim_end_matches('/'));
    match prefix {
        Some(prefix) if path["type"] == "PathPrefix" && prefix.starts_with('/') => Ok(prefix.to_owned()),
        _ => bail!("a match of an HTTPRoute must be a PathPrefix like /ingress"),
    }
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_routes_are_those_of_the_cluster() {
        let routes = read(&[]).unwrap();
        let routes: Vec<_> =
            routes.iter().map(|route| (route.prefix.as_str(), route.function.as_str())).collect();
        assert_eq!(routes, [("/ingress", "ingest"), ("/service-analytics", "analytics")]);
    }

    #[test]
    fn a_rule_that_the_gateway_cannot_follow_is_an_error() {
        for (valid, unsupported) in [
            ("type: PathPrefix", "type: Exact"),
            ("replacePrefixMatch: /", "replacePrefixMatch: /api"),
            ("type: URLRewrite", "type: RequestMirror"),
            ("value: /ingress", "value: /"),
        ] {
            assert!(DEFAULT.contains(valid), "{valid}");
            assert!(parse(&DEFAULT.replace(valid, unsupported)).is_err(), "{unsupported}");
        }
    }

    #[test]
    fn without_a_host_name_the_backend_is_the_function() {
        let text = DEFAULT
            .replace("            hostname: ingest.lambda.svc.cluster.local\n", "")
            .replace("kourier-internal", "audit");
        assert_eq!(parse(&text).unwrap()[0].function, "audit");
    }
}
