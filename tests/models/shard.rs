//! Model of `functions/backends/views/src/cassandra/count.rs`: an id and its shard's number change in one batch, on the
//! condition that the number is the one that was read together with the ids.

use std::collections::BTreeSet;

use stateright::{Model, Property};

use crate::{prove, refute};

type Id = u8;

/// The rules that apply. If one of them does not, there must be a counterexample.
#[derive(Clone, Copy)]
struct Rules {
    /// The batch is applied only if the number is still the one that was read.
    is_conditional: bool,
    /// The number is read together with the ids.
    reads_at_once: bool,
}

const ALL_RULES: Rules = Rules { is_conditional: true, reads_at_once: true };

/// Writers that count in one shard. Shards are independent of each other.
struct Counting {
    rules: Rules,
    /// The ids of each writer's call. Ids of redelivered events are in several calls.
    calls: Vec<BTreeSet<Id>>,
    /// Maximum number of batches that time out.
    timeouts: u8,
    /// Maximum number of writers that die. Another process gets their events.
    deaths: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Shard {
    /// Value of the static column; `None` until the first id.
    users: Option<u8>,
    ids: BTreeSet<Id>,
    writers: Vec<Writer>,
    /// Batches that timed out and may take effect later.
    late: BTreeSet<Batch>,
    timeouts: u8,
    deaths: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Writer {
    Start,
    /// Has read which of its ids exist, but not yet the number. Occurs only without `reads_at_once`.
    HasIds(BTreeSet<Id>),
    /// Has a batch to send.
    HasBatch(Batch),
    Done,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Batch {
    before: Option<u8>,
    ids: BTreeSet<Id>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Step {
    Read(usize),
    ReadNumber(usize),
    /// The batch is applied or not, and the writer gets the result.
    Send(usize),
    /// The batch is applied or not, and the response is lost.
    LoseAnswer(usize),
    /// The batch has no effect yet, and the writer gets a timeout.
    TimeOut(usize),
    TakeEffect(Batch),
    Vanish(Batch),
    /// The process dies, and its events are delivered again.
    Die(usize),
}

impl Shard {
    /// Applies the batch if its condition is met. Returns whether it was applied.
    fn apply(&mut self, batch: &Batch, rules: Rules) -> bool {
        if rules.is_conditional && self.users != batch.before {
            return false;
        }
        self.users = Some(batch.before.unwrap_or(0) + batch.ids.len() as u8);
        self.ids.extend(&batch.ids);
        true
    }
}

impl Counting {
    /// Returns a writer's next state after it has read the ids and the number.
    fn decide(&self, writer: usize, existing: &BTreeSet<Id>, users: Option<u8>) -> Writer {
        let new: BTreeSet<Id> = self.calls[writer].difference(existing).copied().collect();
        if new.is_empty() { Writer::Done } else { Writer::HasBatch(Batch { before: users, ids: new }) }
    }
}

impl Model for Counting {
    type State = Shard;
    type Action = Step;

    fn init_states(&self) -> Vec<Shard> {
        let writers = vec![Writer::Start; self.calls.len()];
        let (timeouts, deaths) = (self.timeouts, self.deaths);
        vec![Shard { users: None, ids: BTreeSet::new(), writers, late: BTreeSet::new(), timeouts, deaths }]
    }

    fn actions(&self, shard: &Shard, steps: &mut Vec<Step>) {
        for (at, writer) in shard.writers.iter().enumerate() {
            match writer {
                Writer::Start => steps.push(Step::Read(at)),
                Writer::HasIds(_) => steps.push(Step::ReadNumber(at)),
                Writer::HasBatch(_) => {
                    steps.push(Step::Send(at));
                    if shard.timeouts > 0 {
                        steps.extend([Step::LoseAnswer(at), Step::TimeOut(at)]);
                    }
                }
                Writer::Done => {}
            }
            if shard.deaths > 0 && *writer != Writer::Start {
                steps.push(Step::Die(at));
            }
        }
        steps.extend(shard.late.iter().flat_map(|b| [Step::TakeEffect(b.clone()), Step::Vanish(b.clone())]));
    }

    fn next_state(&self, last: &Shard, step: Step) -> Option<Shard> {
        let mut shard = last.clone();
        match step {
            Step::Read(at) => {
                shard.writers[at] = match self.rules.reads_at_once {
                    true => self.decide(at, &last.ids, last.users),
                    false => Writer::HasIds(last.ids.clone()),
                };
            }
            Step::ReadNumber(at) => {
                let Writer::HasIds(existing) = &last.writers[at] else { return None };
                shard.writers[at] = self.decide(at, existing, last.users);
            }
            Step::Send(at) => {
                let Writer::HasBatch(batch) = &last.writers[at] else { return None };
                let applied = shard.apply(batch, self.rules);
                shard.writers[at] = if applied { Writer::Done } else { Writer::Start };
            }
            Step::LoseAnswer(at) => {
                let Writer::HasBatch(batch) = &last.writers[at] else { return None };
                shard.apply(batch, self.rules);
                shard.writers[at] = Writer::Start;
                shard.timeouts -= 1;
            }
            Step::TimeOut(at) => {
                let Writer::HasBatch(batch) = &last.writers[at] else { return None };
                shard.late.insert(batch.clone());
                shard.writers[at] = Writer::Start;
                shard.timeouts -= 1;
            }
            Step::TakeEffect(batch) => {
                shard.apply(&batch, self.rules);
                shard.late.remove(&batch);
            }
            Step::Vanish(batch) => {
                shard.late.remove(&batch);
            }
            Step::Die(at) => {
                shard.writers[at] = Writer::Start;
                shard.deaths -= 1;
            }
        }
        Some(shard)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("the number is that of the ids", |_, shard: &Shard| {
                usize::from(shard.users.unwrap_or(0)) == shard.ids.len()
            }),
            Property::always("what was acknowledged is counted", |model: &Self, shard: &Shard| {
                let done = |(writer, call): (&Writer, &BTreeSet<Id>)| {
                    *writer != Writer::Done || call.is_subset(&shard.ids)
                };
                shard.writers.iter().zip(&model.calls).all(done)
            }),
            Property::sometimes("everything is counted", |_, shard: &Shard| {
                shard.writers.iter().all(|writer| *writer == Writer::Done)
            }),
            Property::sometimes("a batch takes effect late", |_, shard: &Shard| {
                !shard.late.is_empty() && shard.late.iter().all(|batch| batch.before == shard.users)
            }),
        ]
    }
}

fn counting(rules: Rules) -> Counting {
    let calls = [&[0, 1][..], &[1, 2], &[0, 2, 3]].map(|ids| ids.iter().copied().collect());
    Counting { rules, calls: calls.into(), timeouts: 3, deaths: 2 }
}

#[test]
fn three_writers_count_each_id_once_whatever_times_out_or_dies() {
    prove("counting in a shard", counting(ALL_RULES));
}

#[test]
fn each_rule_of_counting_is_needed() {
    for (name, rules) in [
        ("no condition", Rules { is_conditional: false, ..ALL_RULES }),
        ("the number read apart from the ids", Rules { reads_at_once: false, ..ALL_RULES }),
    ] {
        refute(name, counting(rules), "the number is that of the ids");
    }
}
