//! The real directory.

use super::{Dir, File, Open, Stat};
use std::fs;
use std::io::{self, IoSlice, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// A directory of the system.
#[derive(Debug)]
pub struct RealDir {
    path: PathBuf,
}

impl RealDir {
    /// Opens a directory, making it (0700) and its missing parents durably if need be.
    pub fn open(path: &Path) -> io::Result<RealDir> {
        match fs::metadata(path) {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => return Err(io::Error::new(io::ErrorKind::NotADirectory, "it is not a directory")),
            Err(e) if e.kind() == io::ErrorKind::NotFound => create_durably(path)?,
            Err(e) => return Err(e),
        }
        // An absolute path, so that a later chdir moves nothing.
        Ok(RealDir { path: fs::canonicalize(path)? })
    }

    /// Device and inode: two paths to one directory are one directory.
    pub fn identity(&self) -> io::Result<(u64, u64)> {
        let stat = platform::stat(&fs::metadata(&self.path)?);
        Ok((stat.device, stat.inode))
    }

    /// A directory by its path; whether it is there shows when it is used.
    pub(crate) fn at(path: &Path) -> RealDir {
        RealDir { path: path.to_path_buf() }
    }

    /// The kind of network file system the directory is on, where the system tells: no durability can be promised there.
    pub fn network(&self) -> Option<&'static str> {
        platform::network(&self.path)
    }
}

fn create_durably(path: &Path) -> io::Result<()> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if !parent.is_dir() {
        create_durably(parent)?;
    }
    let mut builder = fs::DirBuilder::new();
    platform::private_dir(&mut builder);
    match builder.create(path) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        Err(e) => return Err(e),
    }
    platform::sync_dir(parent)
}

fn irregular() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        "it is not a regular file (a symlink, a directory, a pipe or a device), and perdure does not touch such",
    )
}

impl Dir for RealDir {
    fn path(&self) -> &Path {
        &self.path
    }

    fn open(&self, name: &str, how: Open) -> io::Result<Box<dyn File>> {
        let path = self.path.join(name);
        let mut options = fs::OpenOptions::new();
        options.read(true).write(how != Open::Read);
        match how {
            Open::Read | Open::Write => {}
            Open::Create => {
                options.create(true);
            }
            Open::CreateNew => {
                options.create_new(true);
            }
        }
        platform::private_file(&mut options);
        let file = options.open(&path).map_err(|e| if platform::is_symlink_refusal(&e) { irregular() } else { e })?;
        if how != Open::CreateNew && !file.metadata()?.is_file() {
            return Err(irregular());
        }
        Ok(Box::new(RealFile(file)))
    }

    fn stat(&self, name: &str) -> io::Result<Option<Stat>> {
        match fs::symlink_metadata(self.path.join(name)) {
            Ok(meta) if meta.is_file() => Ok(Some(platform::stat(&meta))),
            Ok(_) => Err(irregular()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        platform::rename(&self.path.join(from), &self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn sync(&self) -> io::Result<()> {
        platform::sync_dir(&self.path)
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            // A name that is no UTF-8 cannot be one of ours.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }
}

#[derive(Debug)]
struct RealFile(fs::File);

impl File for RealFile {
    fn stat(&self) -> io::Result<Stat> {
        Ok(platform::stat(&self.0.metadata()?))
    }

    fn read_from(&self, offset: u64) -> io::Result<Vec<u8>> {
        let len = self.0.metadata()?.len().saturating_sub(offset);
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(usize::try_from(len).map_err(io::Error::other)?)?;
        let mut file = &self.0;
        file.seek(SeekFrom::Start(offset))?;
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn read_some(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut file = &self.0;
        file.seek(SeekFrom::Start(offset))?;
        let mut bytes = Vec::with_capacity(len);
        file.take(len as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn write_at(&self, offset: u64, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        if let [piece] = pieces {
            return platform::write_all_at(&self.0, piece, offset);
        }
        let mut file = &self.0;
        file.seek(SeekFrom::Start(offset))?;
        let mut pieces: Vec<IoSlice<'_>> = pieces.iter().filter(|p| !p.is_empty()).copied().collect();
        let mut pieces = pieces.as_mut_slice();
        while !pieces.is_empty() {
            match file.write_vectored(pieces) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => IoSlice::advance_slices(&mut pieces, count),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data() // F_FULLFSYNC on macOS
    }

    fn sync_all(&self) -> io::Result<()> {
        self.0.sync_all()
    }

    fn try_lock(&self) -> io::Result<bool> {
        match self.0.try_lock() {
            Ok(()) => Ok(true),
            Err(fs::TryLockError::WouldBlock) => Ok(false),
            Err(fs::TryLockError::Error(e)) => Err(e),
        }
    }

    fn unlock(&self) -> io::Result<()> {
        self.0.unlock()
    }
}

#[cfg(unix)]
mod platform {
    use super::super::Stat;
    use std::fs;
    use std::io;
    use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
    use std::path::Path;

    pub fn write_all_at(file: &fs::File, bytes: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(bytes, offset)
    }

    pub fn stat(meta: &fs::Metadata) -> Stat {
        let mtime_ns = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
        Stat { device: meta.dev(), inode: meta.ino(), len: meta.len(), mtime_ns }
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    pub fn network(path: &Path) -> Option<&'static str> {
        // statfs(2): the magic numbers of file systems whose disks are elsewhere.
        match rustix::fs::statfs(path).ok()?.f_type as u32 {
            0x6969 => Some("NFS"),
            0x517b | 0xff53_4d42 | 0xfe53_4d42 => Some("SMB"),
            0x0102_1997 => Some("9P"),
            0x00c3_6400 => Some("Ceph"),
            0x5346_414f => Some("AFS"),
            0x0bd0_0bd0 => Some("Lustre"),
            0x4750_4653 => Some("GPFS"),
            _ => None,
        }
    }

    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    pub fn network(_: &Path) -> Option<&'static str> {
        None
    }

    pub fn private_dir(builder: &mut fs::DirBuilder) {
        builder.mode(0o700);
    }

    pub fn private_file(options: &mut fs::OpenOptions) {
        // NONBLOCK: a pipe that nobody writes to must not hang us; it means nothing to a regular file.
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        options.mode(0o600).custom_flags(flags.bits() as i32);
    }

    pub fn is_symlink_refusal(error: &io::Error) -> bool {
        error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
            || error.raw_os_error() == Some(rustix::io::Errno::NXIO.raw_os_error())
    }

    pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    pub fn sync_dir(path: &Path) -> io::Result<()> {
        fs::File::open(path)?.sync_all()
    }
}

#[cfg(windows)]
mod platform {
    use super::super::Stat;
    use std::fs;
    use std::io;
    use std::os::windows::fs::{FileExt, MetadataExt};
    use std::path::Path;
    use std::time::Duration;

    pub fn write_all_at(file: &fs::File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            let count = file.seek_write(bytes, offset)?;
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            offset += count as u64;
            bytes = bytes.get(count..).unwrap_or_default();
        }
        Ok(())
    }

    pub fn stat(meta: &fs::Metadata) -> Stat {
        // 100 ns since 1601; only ever compared with itself.
        Stat { device: 0, inode: 0, len: meta.file_size(), mtime_ns: i128::from(meta.last_write_time()) * 100 }
    }

    pub fn network(_: &Path) -> Option<&'static str> {
        None
    }

    pub fn private_dir(_: &mut fs::DirBuilder) {}

    pub fn private_file(_: &mut fs::OpenOptions) {}

    pub fn is_symlink_refusal(_: &io::Error) -> bool {
        false
    }

    pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
        // A reader or a virus scanner that has the target open makes the replacement fail for a moment.
        let mut wait = Duration::from_millis(1);
        loop {
            match fs::rename(from, to) {
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied && wait < Duration::from_secs(1) => {
                    std::thread::sleep(wait);
                    wait *= 2;
                }
                done => return done,
            }
        }
    }

    pub fn sync_dir(_: &Path) -> io::Result<()> {
        Ok(()) // NTFS journals directory changes itself; there is no call to wait for it
    }
}
