//! The two protocols of the views in Cassandra as models, which are searched completely at small sizes. A rule that is
//! left out must be missed: a counterexample shows it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

/// Writing the history across midnight.
mod midnight;
/// Counting ids of a shard by conditional batches.
mod shard;

use std::{collections::BTreeSet, fmt::Debug, hash::Hash};

use stateright::{Checker, HasDiscoveries, Model};

/// Searches a model's whole state space, which must hold all properties, and prints its size.
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

/// Searches for a state without the property, and prints the steps to it.
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
