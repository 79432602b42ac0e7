//! Model of `functions/backends/views/src/cassandra/history.rs` and `window.rs`: each day's partition stores its newest
//! point, and a point is written on the condition that the newest is the one that was read. Around midnight, writers
//! with different clocks write to two days.

use stateright::{Model, Property};

use crate::{prove, refute};

/// The rules that apply. If one of them does not, there must be a counterexample.
#[derive(Clone, Copy)]
struct Rules {
    /// A day is registered before a point is written to it.
    registers_first: bool,
    /// A point is written only if the newest is still the one that was read.
    is_conditional: bool,
    /// A reader omits a day's points that do not exceed the newest point of the days before.
    reads_older_days: bool,
}

const ALL_RULES: Rules = Rules { registers_first: true, is_conditional: true, reads_older_days: true };

/// Number of days: one before and one after midnight.
const DAYS: usize = 2;

/// Writers that each count one user and write a point with the total that they read.
struct History {
    rules: Rules,
    writers: usize,
    /// Maximum number of writes that time out.
    timeouts: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Views {
    /// Users counted so far.
    total: u8,
    /// Whether each day is registered.
    registered: [bool; DAYS],
    /// The count of each day's newest point.
    newest: [Option<u8>; DAYS],
    writers: Vec<Writer>,
    late: Vec<Write>,
    timeouts: u8,
    /// The newest count that a reader has read.
    answered: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Writer {
    phase: Phase,
    /// The total that it read. The writer is done once the history has reached it.
    total: u8,
    /// The day that it writes to, and the newest count of the days before.
    day: Option<(usize, u8)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Phase {
    Start,
    /// Has read the total; next, it determines its day.
    Counted,
    /// Has a new day; next, it reads the newest point of the days before.
    Finds(usize),
    /// Has a day; next, it reads the day's newest point.
    HasDay,
    HasNewest(Option<u8>),
    /// Has written; next, it registers its day, which changes something only without `registers_first`.
    Written,
    Done,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Write {
    day: usize,
    before: Option<u8>,
    count: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Step {
    /// A writer counts a user and reads the total.
    Count(usize),
    /// A writer reads this day from its clock.
    Look(usize, usize),
    Find(usize),
    ReadNewest(usize),
    Send(usize),
    LoseAnswer(usize),
    TimeOut(usize),
    Register(usize),
    TakeEffect(usize),
    Vanish(usize),
    /// A reader reads the newest point.
    Answer,
}

impl Views {
    fn apply(&mut self, write: &Write, rules: Rules) -> bool {
        if rules.is_conditional && self.newest[write.day] != write.before {
            return false;
        }
        self.newest[write.day] = Some(write.count);
        true
    }

    fn newest_day(&self) -> Option<usize> {
        (0..DAYS).rev().find(|day| self.registered[*day])
    }

    /// The newest count of the registered days before a day.
    fn before(&self, day: usize) -> u8 {
        let older = (0..day).rev().filter(|day| self.registered[*day]);
        older.filter_map(|day| self.newest[day]).next().unwrap_or(0)
    }

    /// The newest count that a reader sees.
    fn answer(&self, rules: Rules) -> u8 {
        let days = (0..DAYS).rev().filter(|day| self.registered[*day]);
        let mut counts = days.filter_map(|day| self.newest[day]);
        match rules.reads_older_days {
            true => counts.max().unwrap_or(0),
            false => counts.next().unwrap_or(0),
        }
    }
}

impl Model for History {
    type State = Views;
    type Action = Step;

    fn init_states(&self) -> Vec<Views> {
        let writer = Writer { phase: Phase::Start, total: 0, day: None };
        vec![Views {
            total: 0,
            registered: [false; DAYS],
            newest: [None; DAYS],
            writers: vec![writer; self.writers],
            late: Vec::new(),
            timeouts: self.timeouts,
            answered: 0,
        }]
    }

    fn actions(&self, views: &Views, steps: &mut Vec<Step>) {
        for (at, writer) in views.writers.iter().enumerate() {
            match writer.phase {
                Phase::Start => steps.push(Step::Count(at)),
                // Clocks differ: each may pass midnight at any time.
                Phase::Counted => steps.extend((0..DAYS).map(|day| Step::Look(at, day))),
                Phase::Finds(_) => steps.push(Step::Find(at)),
                Phase::HasDay => steps.push(Step::ReadNewest(at)),
                Phase::HasNewest(_) => {
                    steps.push(Step::Send(at));
                    if views.timeouts > 0 {
                        steps.extend([Step::LoseAnswer(at), Step::TimeOut(at)]);
                    }
                }
                Phase::Written => steps.push(Step::Register(at)),
                Phase::Done => {}
            }
        }
        steps.extend((0..views.late.len()).flat_map(|at| [Step::TakeEffect(at), Step::Vanish(at)]));
        if views.answer(self.rules) != views.answered {
            steps.push(Step::Answer);
        }
    }

    fn next_state(&self, last: &Views, step: Step) -> Option<Views> {
        let mut views = last.clone();
        match step {
            Step::Count(at) => {
                views.total += 1;
                views.writers[at].total = views.total;
                views.writers[at].phase = Phase::Counted;
            }
            Step::Look(at, today) => {
                let writer = &mut views.writers[at];
                match writer.day {
                    Some((day, _)) if day >= today => writer.phase = Phase::HasDay,
                    _ => {
                        let day = last.newest_day().map_or(today, |newest| newest.max(today));
                        views.registered[day] |= self.rules.registers_first;
                        writer.phase = Phase::Finds(day);
                    }
                }
            }
            Step::Find(at) => {
                let Phase::Finds(day) = last.writers[at].phase else { return None };
                views.writers[at].day = Some((day, last.before(day)));
                views.writers[at].phase = Phase::HasDay;
            }
            Step::ReadNewest(at) => {
                let writer = &mut views.writers[at];
                let (day, before) = writer.day?;
                let newest = last.newest[day];
                let is_there = newest.unwrap_or(before) >= writer.total;
                writer.phase = if is_there { Phase::Done } else { Phase::HasNewest(newest) };
            }
            Step::Send(at) | Step::LoseAnswer(at) | Step::TimeOut(at) => {
                let writer = &last.writers[at];
                let (Phase::HasNewest(before), Some((day, _))) = (&writer.phase, writer.day) else {
                    return None;
                };
                let write = Write { day, before: *before, count: writer.total };
                let applied = match step {
                    Step::TimeOut(_) => {
                        views.late.push(write);
                        views.late.sort();
                        false
                    }
                    _ => views.apply(&write, self.rules),
                };
                let told = matches!(step, Step::Send(_));
                views.timeouts -= u8::from(!told);
                views.writers[at].phase = if told && applied { Phase::Written } else { Phase::Counted };
            }
            Step::Register(at) => {
                let (day, _) = last.writers[at].day?;
                views.registered[day] = true;
                views.writers[at].phase = Phase::Done;
            }
            Step::TakeEffect(at) => {
                let write = views.late.remove(at);
                views.apply(&write, self.rules);
            }
            Step::Vanish(at) => drop(views.late.remove(at)),
            Step::Answer => views.answered = last.answer(self.rules),
        }
        Some(views)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("what was acknowledged is in the history", |model: &Self, views: &Views| {
                let answer = views.answer(model.rules);
                views.writers.iter().all(|writer| writer.phase != Phase::Done || writer.total <= answer)
            }),
            Property::always("answers never fall", |model: &Self, views: &Views| {
                views.answer(model.rules) >= views.answered
            }),
            Property::always("no answer exceeds the total", |model: &Self, views: &Views| {
                views.answer(model.rules) <= views.total
            }),
            Property::sometimes("both days have points", |_, views: &Views| {
                views.newest.iter().all(Option::is_some)
            }),
            Property::sometimes("all writers are done", |_, views: &Views| {
                views.writers.iter().all(|writer| writer.phase == Phase::Done)
            }),
        ]
    }
}

fn history(rules: Rules) -> History {
    History { rules, writers: 3, timeouts: 1 }
}

#[test]
fn three_writers_at_midnight_never_make_the_history_fall() {
    prove("midnight", history(ALL_RULES));
}

#[test]
fn each_rule_of_the_history_is_needed() {
    for (name, rules, property) in [
        (
            "a day registered late",
            Rules { registers_first: false, ..ALL_RULES },
            "what was acknowledged is in the history",
        ),
        ("no condition", Rules { is_conditional: false, ..ALL_RULES }, "answers never fall"),
        ("older days not read", Rules { reads_older_days: false, ..ALL_RULES }, "answers never fall"),
    ] {
        refute(name, history(rules), property);
    }
}
