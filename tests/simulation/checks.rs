//! What must hold in every run, during it and at its end.

use std::collections::{BTreeMap, BTreeSet};

use backend_log::PartitionOffsets;
use domain::User;
use event::Record;
use memory::{MemoryLog, MemoryMaster, MemoryViews};
use serde_json::Value;
use uuid::Uuid;

use crate::world::World;

/// The stores, and what each record of the topic must lead to.
pub struct Checks {
    pub log: MemoryLog,
    pub views: MemoryViews,
    pub master: MemoryMaster,
    pub topic: String,
    pub dead_letters: String,
}

/// A record that became a dead letter: the function that rejected it, and its position in the topic.
type Rejected = (String, i32, i64);

impl Checks {
    /// After a commit of a group: offsets never go back, and below them nothing is unfinished.
    pub fn committed(&self, world: &World, group: &str, before: &PartitionOffsets, now: &PartitionOffsets) {
        let (records, rejected) = (self.log.records(&self.topic), self.rejected());
        for (partition, offset) in now.iter() {
            let from = before.get(partition).copied().unwrap_or(0);
            if *offset < from {
                world.violate(format!("{group} went back from {from} to {offset} in partition {partition}"));
            }
            for at in from..*offset {
                let record = &records[partition][usize::try_from(at).unwrap()];
                let is_rejected = rejected.contains(&(group.to_owned(), *partition, at));
                if !is_rejected && !self.is_done(group, record) {
                    world.violate(format!(
                        "{group} committed {offset} in partition {partition}, but {at} ({}) is neither done nor a dead letter",
                        shown(record)
                    ));
                }
            }
        }
    }

    fn is_done(&self, group: &str, record: &Record) -> bool {
        let Some(user) = user(record) else { return false };
        match group {
            "count" => self.views.has(&user.id),
            _ => self.master.name(&user.id).is_some_and(|name| name == user.name),
        }
    }

    /// Which records are in the dead letters.
    fn rejected(&self) -> BTreeSet<Rejected> {
        let records = self.log.records(&self.dead_letters);
        let rejected = records.values().flatten().filter_map(|letter| {
            let function = header(letter, "ce_knativeerrordest")?.split("//").nth(1)?.split('.').next()?;
            let number = |name| header(letter, name)?.parse::<i64>().ok();
            let partition = number("ce_knativekafkapartition")?;
            let offset = number("ce_knativekafkaoffset")?;
            Some((function.to_owned(), i32::try_from(partition).ok()?, offset))
        });
        rejected.collect()
    }

    /// Whether both groups have finished all records.
    pub fn is_quiet(&self) -> bool {
        let ends: Vec<_> = self.log.records(&self.topic).into_iter().collect();
        ["count", "store"].iter().all(|group| {
            let committed = self.log.committed(&self.topic, group);
            ends.iter().all(|(partition, records)| {
                let committed = committed.get(partition).copied().unwrap_or(0);
                usize::try_from(committed).unwrap() == records.len()
            })
        })
    }

    /// At the end: all layers agree with the log, and the log with what was acknowledged.
    pub fn at_the_end(&self, world: &World, acknowledged: &BTreeSet<(Uuid, String)>) {
        let records = self.log.records(&self.topic);
        let (mut first_names, mut all) = (BTreeMap::new(), BTreeSet::new());
        for user in records.values().flatten().filter_map(user) {
            first_names.entry(user.id).or_insert(user.name.clone());
            all.insert((user.id, user.name));
        }
        for (id, name) in acknowledged.difference(&all) {
            world.violate(format!("{id} {name:?} was acknowledged and is not in the log"));
        }
        let stored = self.master.users();
        if stored != first_names {
            world.violate(format!("stored: {stored:?}, first names in the log: {first_names:?}"));
        }
        let ids: BTreeSet<_> = first_names.keys().copied().collect();
        if self.views.counted() != ids {
            world.violate(format!("{} ids counted, {} in the log", self.views.counted().len(), ids.len()));
        }
        let history = self.views.history();
        if !history.is_sorted_by(|a, b| a.0 <= b.0 && a.1 < b.1) {
            world.violate(format!("the history does not grow strictly: {history:?}"));
        }
        let total = history.last().map_or(0, |(_, count)| *count);
        if usize::try_from(total).unwrap() != ids.len() {
            world.violate(format!("the total is {total} of {} distinct users", ids.len()));
        }
        self.check_dead_letters(world, &records, &first_names);
    }

    /// Each conflict and each undecodable record is in the dead letters, and nothing else.
    fn check_dead_letters(
        &self,
        world: &World,
        records: &BTreeMap<i32, Vec<Record>>,
        first_names: &BTreeMap<Uuid, String>,
    ) {
        let mut due = BTreeSet::new();
        for (partition, records) in records {
            for (offset, record) in (0..).zip(records) {
                let functions: &[&str] = match user(record) {
                    Some(user) if first_names[&user.id] == user.name => &[],
                    Some(_) => &["store"],
                    None => &["count", "store"],
                };
                due.extend(functions.iter().map(|function| ((*function).to_owned(), *partition, offset)));
            }
        }
        let rejected = self.rejected();
        if due != rejected {
            let (lost, wrong): (Vec<_>, Vec<_>) =
                (due.difference(&rejected).collect(), rejected.difference(&due).collect());
            world.violate(format!("missing dead letters: {lost:?}; wrong ones: {wrong:?}"));
        }
    }

    /// The user with the longest name, computed from what is stored; of equally long ones, none is wrong.
    pub fn longest(&self) -> usize {
        self.master.users().values().map(|name| name.chars().count()).max().unwrap_or(0)
    }
}

fn header<'a>(record: &'a Record, name: &str) -> Option<&'a str> {
    let (_, value) = record.headers.iter().find(|(n, _)| n == name)?;
    std::str::from_utf8(value.as_ref()?).ok()
}

/// The user of a record; none if it is not one.
fn user(record: &Record) -> Option<User> {
    let value: Value = serde_json::from_slice(record.value.as_ref()?).ok()?;
    let id = value["id"].as_str()?.parse().ok()?;
    Some(User { id, name: value["name"].as_str()?.to_owned() })
}

fn shown(record: &Record) -> String {
    String::from_utf8_lossy(record.value.as_deref().unwrap_or_default()).into_owned()
}
