//! Models of the two protocols of the views in Cassandra, checked exhaustively at small sizes. Each rule must be
//! necessary: without it, the model must have a counterexample.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

/// Writing the history across midnight.
mod midnight;
/// Counting a shard's ids with conditional batches.
mod shard;

use std::{collections::BTreeSet, fmt::Debug, hash::Hash};

use stateright::{Checker, HasDiscoveries, Model};

/// Searches a model's whole state space and prints its size. Panics if a property does not hold.
fn prove<M>(name: &str, model: M)
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync,
    M::Action: Clone + Debug + PartialEq + Send + Sync,
{
    let checker = model.checker().threads(2).spawn_bfs().join();
    println!("{name}: {} states, depth {}", checker.unique_state_count(), checker.max_depth());
    checker.assert_properties();
}

/// Searches for a state that violates the property and prints the steps to it. Panics if it holds in all states.
fn refute<M>(name: &str, model: M, property: &'static str)
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync,
    M::Action: Clone + Debug + PartialEq + Send + Sync,
{
    let found = HasDiscoveries::AnyOf(BTreeSet::from([property]));
    let checker = model.checker().threads(2).finish_when(found).spawn_bfs().join();
    let Some(path) = checker.discovery(property) else {
        panic!("{name}: \"{property}\" holds in all {} states", checker.unique_state_count());
    };
    println!("{name}: not \"{property}\" after {:?}", path.into_actions());
}
