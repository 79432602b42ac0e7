//! Mounts the disk as a FUSE file system.

use std::{
    ffi::OsStr,
    io,
    path::Path,
    process::Command,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow,
    WriteFlags,
};
use rand::rngs::StdRng;
use tempfile::TempDir;

use super::disk::{Disk, File, Folder, Node, Operation};

/// Time that the kernel may cache entries and attributes, which change only through the kernel.
const TTL: Duration = Duration::from_secs(60);
/// Maximum time until killed processes have exited.
const UNMOUNT_TIMEOUT: Duration = Duration::from_secs(20);

/// A mounted disk, unmounted when dropped.
pub struct Mount {
    disk: Arc<Mutex<Disk>>,
    session: Option<BackgroundSession>,
    at: TempDir,
}

impl Mount {
    /// Mounts a new disk. Fails if FUSE is not available.
    pub fn new() -> io::Result<Self> {
        let (disk, at) = (Arc::new(Mutex::new(Disk::new())), tempfile::tempdir()?);
        let session = Some(mount(&disk, at.path())?);
        Ok(Self { disk, session, at })
    }

    pub fn path(&self) -> &Path {
        self.at.path()
    }

    pub fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap()
    }

    /// Cuts the power: the disk no longer reads or writes.
    pub fn cut(&self) {
        self.disk().is_off = true;
    }

    /// Applies the data loss of the power cut and mounts the disk again. All processes that used it must have been
    /// killed.
    pub fn restore(&mut self, random: &mut StdRng) {
        self.unmount();
        self.disk().lose(random);
        self.session = Some(mount(&self.disk, self.at.path()).unwrap());
    }

    fn unmount(&mut self) {
        let Some(session) = self.session.take() else { return };
        let deadline = Instant::now() + UNMOUNT_TIMEOUT;
        // The mount is busy until the last process has exited.
        while !Command::new("umount")
            .arg(self.at.path())
            .stderr(std::process::Stdio::null())
            .status()
            .unwrap()
            .success()
        {
            if Instant::now() > deadline {
                let _ = Command::new("umount").arg("-l").arg(self.at.path()).status();
                panic!("a process still uses {}", self.at.path().display());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = session.join();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.session.is_some() {
            let _ = Command::new("umount").arg("-l").arg(self.at.path()).status();
        }
    }
}

fn mount(disk: &Arc<Mutex<Disk>>, at: &Path) -> io::Result<BackgroundSession> {
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName("power-loss".to_owned())];
    fuser::spawn_mount(Files(disk.clone()), at, &config)
}

/// Implements the kernel's file operations.
struct Files(Arc<Mutex<Disk>>);

impl Files {
    /// Locks the disk. Fails with `EIO` if the power is off.
    fn disk(&self) -> Result<MutexGuard<'_, Disk>, Errno> {
        let disk = self.0.lock().unwrap();
        if disk.is_off { Err(Errno::EIO) } else { Ok(disk) }
    }

    /// Like `disk`, but also fails if the operation has a fault.
    fn disk_for(&self, operation: Operation) -> Result<MutexGuard<'_, Disk>, Errno> {
        let mut disk = self.disk()?;
        disk.failure_of(operation).map_or(Ok(disk), Err)
    }

    fn attributes(&self, number: u64) -> Result<FileAttr, Errno> {
        let disk = self.disk()?;
        attributes(&disk, number)
    }

    fn add(&self, parent: INodeNo, name: &OsStr, node: Node) -> Result<FileAttr, Errno> {
        let mut disk = self.disk_for(Operation::Open)?;
        let number = disk.add(parent.0, name, node).ok_or(Errno::ENOENT)?;
        attributes(&disk, number)
    }

    fn remove(&self, parent: INodeNo, name: &OsStr) -> Result<(), Errno> {
        self.disk()?.remove(parent.0, name).ok_or(Errno::ENOENT)
    }
}

fn attributes(disk: &Disk, number: u64) -> Result<FileAttr, Errno> {
    let (kind, size, perm) = match disk.node(number).ok_or(Errno::ENOENT)? {
        Node::File(file) => (FileType::RegularFile, file.live.len() as u64, 0o600),
        Node::Folder(_) => (FileType::Directory, 0, 0o700),
    };
    Ok(FileAttr {
        ino: INodeNo(number),
        size,
        blocks: size.div_ceil(512),
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm,
        nlink: 1,
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    })
}

/// Replies with the result or with the error.
macro_rules! answer {
    ($reply:ident, $result:expr, $found:pat => $send:expr) => {
        match $result {
            Ok($found) => $send,
            Err(error) => $reply.error(error),
        }
    };
}

impl Filesystem for Files {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.disk().and_then(|mut disk| {
            let folder = disk.folder(parent.0).ok_or(Errno::ENOENT)?;
            let number = *folder.live.get(name).ok_or(Errno::ENOENT)?;
            attributes(&disk, number)
        });
        answer!(reply, found, attributes => reply.entry(&TTL, &attributes, Generation(0)));
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        answer!(reply, self.attributes(number.0), attributes => reply.attr(&TTL, &attributes));
    }

    fn setattr(
        &self,
        _: &Request,
        number: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = self.disk().and_then(|mut disk| {
            if let (Some(size), Some(file)) = (size, disk.file(number.0)) {
                file.truncate(size as usize);
            }
            attributes(&disk, number.0)
        });
        answer!(reply, set, attributes => reply.attr(&TTL, &attributes));
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        let made = self.add(parent, name, Node::Folder(Folder::default()));
        answer!(reply, made, attributes => reply.entry(&TTL, &attributes, Generation(0)));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer!(reply, self.remove(parent, name), () => reply.ok());
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer!(reply, self.remove(parent, name), () => reply.ok());
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let renamed = self.disk().and_then(|mut disk| {
            disk.rename((parent.0, name), (new_parent.0, new_name)).ok_or(Errno::ENOENT)
        });
        answer!(reply, renamed, () => reply.ok());
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let opened = self.disk_for(Operation::Open).map(drop);
        answer!(reply, opened, () => reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE));
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        let made = self.add(parent, name, Node::File(File::default()));
        answer!(reply, made, attributes => {
            reply.created(&TTL, &attributes, Generation(0), FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
        });
    }

    fn read(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let read = self.disk().and_then(|mut disk| {
            let bytes = &disk.file(number.0).ok_or(Errno::ENOENT)?.live;
            let from = bytes.len().min(offset as usize);
            Ok(bytes[from..bytes.len().min(from + size as usize)].to_vec())
        });
        answer!(reply, read, bytes => reply.data(&bytes));
    }

    fn write(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = self.disk_for(Operation::Write).and_then(|mut disk| {
            disk.file(number.0).ok_or(Errno::ENOENT)?.write(offset as usize, data);
            Ok(data.len() as u32)
        });
        answer!(reply, written, length => reply.written(length));
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        answer!(reply, self.disk().map(drop), () => reply.ok());
    }

    fn fsync(&self, _: &Request, number: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let synced = self.disk().and_then(|mut disk| {
            let failure = disk.failure_of(Operation::Sync);
            let file = disk.file(number.0).ok_or(Errno::ENOENT)?;
            if let Some(error) = failure {
                file.fail_to_sync();
                return Err(error);
            }
            file.sync();
            Ok(())
        });
        answer!(reply, synced, () => reply.ok());
    }

    fn readdir(&self, _: &Request, number: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let entries = self.disk().and_then(|mut disk| {
            let folder = disk.folder(number.0).ok_or(Errno::ENOTDIR)?.live.clone();
            let kind = |number: &u64| match disk.node(*number) {
                Some(Node::Folder(_)) => FileType::Directory,
                _ => FileType::RegularFile,
            };
            let dots = [(".", number.0), ("..", number.0)].map(|(name, number)| (name.into(), number));
            let all = dots.into_iter().chain(folder);
            Ok(all.map(|(name, number)| (kind(&number), name, number)).collect::<Vec<_>>())
        });
        answer!(reply, entries, entries => {
            for (at, (kind, name, number)) in entries.into_iter().enumerate().skip(offset as usize) {
                if reply.add(INodeNo(number), at as u64 + 1, kind, name) {
                    break;
                }
            }
            reply.ok();
        });
    }

    fn fsyncdir(&self, _: &Request, number: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let synced = self.disk_for(Operation::Sync).and_then(|mut disk| {
            disk.folder(number.0).ok_or(Errno::ENOTDIR)?.sync();
            Ok(())
        });
        answer!(reply, synced, () => reply.ok());
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(1 << 24, 1 << 23, 1 << 23, 1 << 20, 1 << 20, 4096, 255, 4096);
    }
}
