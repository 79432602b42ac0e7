//! An in-memory disk that separates synced from unsynced data. A power cut loses a part of the unsynced data: each
//! sector independently, and the last changes of each directory.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
};

use fuser::Errno;
use rand::{RngExt, rngs::StdRng};

/// Size of the unit that a disk writes atomically, bytes.
const SECTOR: usize = 512;
/// Node number of the root folder.
pub const ROOT: u64 = 1;

/// The content of the disk, and its state.
pub struct Disk {
    nodes: BTreeMap<u64, Node>,
    next: u64,
    /// Whether the power is off, so that nothing is read or written.
    pub is_off: bool,
    /// The current fault, if any.
    pub fault: Option<Fault>,
}

/// A fault of the disk.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// The operation that fails.
    pub operation: Operation,
    /// The remaining number of failures.
    pub times: u32,
    /// The error that it fails with.
    pub error: Errno,
}

/// The operations that can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Open,
    Write,
    Sync,
}

/// A file or a folder.
pub enum Node {
    File(File),
    Folder(Folder),
}

/// A file as programs see it (`live`) and as the disk has it (`durable`).
#[derive(Default)]
pub struct File {
    pub live: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
}

enum Change {
    Write { from: usize, data: Vec<u8> },
    Truncate(usize),
}

/// A folder as programs see it (`live`) and as the disk has it (`durable`).
#[derive(Default)]
pub struct Folder {
    pub live: BTreeMap<OsString, u64>,
    durable: BTreeMap<OsString, u64>,
    pending: Vec<Entries>,
}

/// Entries that are added and removed atomically.
struct Entries {
    added: Vec<(OsString, u64)>,
    removed: Vec<OsString>,
}

impl Disk {
    pub fn new() -> Self {
        let nodes = BTreeMap::from([(ROOT, Node::Folder(Folder::default()))]);
        Self { nodes, next: ROOT + 1, is_off: false, fault: None }
    }

    pub fn node(&self, number: u64) -> Option<&Node> {
        self.nodes.get(&number)
    }

    pub fn file(&mut self, number: u64) -> Option<&mut File> {
        match self.nodes.get_mut(&number)? {
            Node::File(file) => Some(file),
            Node::Folder(_) => None,
        }
    }

    pub fn folder(&mut self, number: u64) -> Option<&mut Folder> {
        match self.nodes.get_mut(&number)? {
            Node::Folder(folder) => Some(folder),
            Node::File(_) => None,
        }
    }

    /// Returns the error if an operation must fail now, and decrements the remaining number of failures.
    pub fn failure_of(&mut self, operation: Operation) -> Option<Errno> {
        let fault = self.fault.as_mut().filter(|fault| fault.operation == operation && fault.times > 0)?;
        fault.times -= 1;
        Some(fault.error)
    }

    pub fn add(&mut self, parent: u64, name: &OsStr, node: Node) -> Option<u64> {
        let number = self.next;
        self.folder(parent)?.change(vec![(name.to_owned(), number)], Vec::new());
        self.nodes.insert(number, node);
        self.next += 1;
        Some(number)
    }

    /// Removes an entry. Its node stays until the next power cut, because it may be open.
    pub fn remove(&mut self, parent: u64, name: &OsStr) -> Option<()> {
        self.folder(parent)?.change(Vec::new(), vec![name.to_owned()]);
        Some(())
    }

    pub fn rename(&mut self, from: (u64, &OsStr), to: (u64, &OsStr)) -> Option<()> {
        let number = *self.folder(from.0)?.live.get(from.1)?;
        let (added, removed) = (vec![(to.1.to_owned(), number)], vec![from.1.to_owned()]);
        if from.0 == to.0 {
            self.folder(from.0)?.change(added, removed);
        } else {
            self.folder(to.0)?.change(added, Vec::new());
            self.folder(from.0)?.change(Vec::new(), removed);
        }
        Some(())
    }

    /// Simulates a power cut, which keeps only a part of the unsynced data.
    pub fn lose(&mut self, random: &mut StdRng) {
        // Some disks keep no unsynced data, others all or nearly all of it.
        let kept = [0.0, 0.5, 0.9, 1.0][random.random_range(0..4)];
        for node in self.nodes.values_mut() {
            match node {
                Node::File(file) => file.lose(kept, random),
                Node::Folder(folder) => folder.lose(random),
            }
        }
        let mut reachable = BTreeSet::from([ROOT]);
        let mut folders = vec![ROOT];
        while let Some(Node::Folder(folder)) = folders.pop().and_then(|number| self.nodes.get(&number)) {
            for number in folder.live.values().filter(|number| self.nodes.contains_key(number)) {
                if reachable.insert(*number) && matches!(self.nodes[number], Node::Folder(_)) {
                    folders.push(*number);
                }
            }
        }
        self.nodes.retain(|number, _| reachable.contains(number));
        (self.is_off, self.fault) = (false, None);
    }
}

impl File {
    pub fn write(&mut self, from: usize, data: &[u8]) {
        let change = Change::Write { from, data: data.to_vec() };
        change.apply(&mut self.live);
        self.pending.push(change);
    }

    pub fn truncate(&mut self, length: usize) {
        let change = Change::Truncate(length);
        change.apply(&mut self.live);
        self.pending.push(change);
    }

    pub fn sync(&mut self) {
        for change in self.pending.drain(..) {
            change.apply(&mut self.durable);
        }
    }

    /// Simulates a failed sync: Linux does not write those pages again unless they change.
    pub fn fail_to_sync(&mut self) {
        self.pending.clear();
    }

    fn lose(&mut self, kept: f64, random: &mut StdRng) {
        for change in self.pending.drain(..) {
            match change {
                Change::Write { from, data } => {
                    let mut at = 0;
                    while at < data.len() {
                        let end = data.len().min(at + SECTOR - (from + at) % SECTOR);
                        if random.random_bool(kept) {
                            let data = data[at..end].to_vec();
                            Change::Write { from: from + at, data }.apply(&mut self.durable);
                        }
                        at = end;
                    }
                }
                truncate => {
                    if random.random_bool(kept) {
                        truncate.apply(&mut self.durable);
                    }
                }
            }
        }
        self.live.clone_from(&self.durable);
    }
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write { from, data } => {
                let end = from + data.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[*from..end].copy_from_slice(data);
            }
            Self::Truncate(length) => bytes.resize(*length, 0),
        }
    }
}

impl Folder {
    fn change(&mut self, added: Vec<(OsString, u64)>, removed: Vec<OsString>) {
        let entries = Entries { added, removed };
        entries.apply(&mut self.live);
        self.pending.push(entries);
    }

    pub fn sync(&mut self) {
        for entries in self.pending.drain(..) {
            entries.apply(&mut self.durable);
        }
    }

    /// Loses only the last changes, because file systems preserve the order of a folder's changes.
    fn lose(&mut self, random: &mut StdRng) {
        let kept = random.random_range(0..=self.pending.len());
        for entries in self.pending.drain(..).take(kept) {
            entries.apply(&mut self.durable);
        }
        self.live.clone_from(&self.durable);
    }
}

impl Entries {
    fn apply(&self, folder: &mut BTreeMap<OsString, u64>) {
        for name in &self.removed {
            folder.remove(name);
        }
        folder.extend(self.added.iter().cloned());
    }
}
