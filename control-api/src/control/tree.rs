//! A directory of files as one snapshot for each node key.
//!
//! In: the files as they are now. Out: what has changed since the last look, each part of it either a
//! snapshot or the reasons why the last one stays.

use std::collections::BTreeMap;
use std::fs;
use std::hash::Hasher as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use xxhash_rust::xxh64::Xxh64;

use super::files::{is_hidden, list, read, whole, Content, File, FileProblem};
use crate::server::Snapshot;

/// Every file that counts, and every directory to watch.
#[derive(Debug)]
pub(super) struct Scan {
    pub directories: Vec<PathBuf>,
    common: Result<Vec<File>, FileProblem>,
    keys: BTreeMap<String, Result<Vec<File>, FileProblem>>,
}

impl Scan {
    /// Reads the directory. What cannot be read is noted where it is missed.
    pub(super) fn of(directory: &Path) -> Self {
        let mut directories = vec![directory.to_owned()];
        let mut keys = BTreeMap::new();
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()).filter(|path| !is_hidden(path) && path.is_dir()) {
            let Some(key) = path.file_name().map(|name| name.to_string_lossy().into_owned()) else {
                continue;
            };
            keys.insert(key, files_of(&path));
            directories.push(path);
        }
        Self { directories, common: files_of(directory), keys }
    }
}

fn files_of(directory: &Path) -> Result<Vec<File>, FileProblem> {
    let files = list(directory).and_then(|paths| paths.iter().map(|path| read(path)).collect());
    files.map_err(|error: io::Error| whole(directory, error.to_string()))
}

/// The files of one node key, or those for everybody.
#[derive(Debug, Default)]
pub(super) struct Scope {
    /// Of the content last looked at, good or bad.
    hash: Option<u64>,
    pub files: usize,
    pub problems: Vec<FileProblem>,
    good: Option<Content>,
    /// What is served.
    pub snapshot: Option<Arc<Snapshot>>,
}

/// What became of one scope.
#[derive(Debug)]
pub(super) enum Change {
    /// It has a new snapshot, for everybody or for one key.
    Serve(Option<String>),
    /// It has mistakes, and keeps what it had.
    Keep(Option<String>),
    /// The directory of a key is gone.
    Gone(String),
}

/// The state of the directory.
#[derive(Debug, Default)]
pub(super) struct Tree {
    pub common: Scope,
    pub keys: BTreeMap<String, Scope>,
    /// Clusters that clients have from their bootstrap.
    pub elsewhere: Vec<String>,
}

impl Tree {
    /// Takes in what was read, and says what changed.
    pub(super) fn update(&mut self, scan: Scan) -> Vec<Change> {
        let mut changes = Vec::new();
        let before = self.common.hash;
        if let Some(served) = self.common.look(scan.common, None, &Content::default(), &self.elsewhere) {
            changes.push(if served { Change::Serve(None) } else { Change::Keep(None) });
        }
        // The resources of a key stand beside the good ones for everybody.
        let salt = self.common.hash.or(before);
        let base = self.common.good.clone().unwrap_or_default();
        let gone: Vec<String> =
            self.keys.keys().filter(|key| !scan.keys.contains_key(*key)).cloned().collect();
        for key in gone {
            self.keys.remove(&key);
            changes.push(Change::Gone(key));
        }
        for (key, files) in scan.keys {
            let scope = self.keys.entry(key.clone()).or_default();
            if let Some(served) = scope.look(files, salt, &base, &self.elsewhere) {
                changes.push(if served { Change::Serve(Some(key)) } else { Change::Keep(Some(key)) });
            }
        }
        changes
    }
}

impl Scope {
    /// `None` when nothing is different, else whether there is a new snapshot.
    fn look(
        &mut self,
        files: Result<Vec<File>, FileProblem>,
        salt: Option<u64>,
        base: &Content,
        elsewhere: &[String],
    ) -> Option<bool> {
        let hash = hash_of(files.as_deref(), salt);
        if self.hash == Some(hash) {
            return None;
        }
        self.hash = Some(hash);
        let made = files.map_err(|problem| vec![problem]).and_then(|files| {
            self.files = files.len();
            let own = Content::of(&files)?;
            let mut all = base.clone();
            all.merge(&own);
            let dangling = all.dangling(elsewhere);
            if dangling.is_empty() {
                Ok(all)
            } else {
                Err(dangling)
            }
        });
        match made {
            Ok(content) => {
                self.problems.clear();
                self.snapshot = Some(Arc::new(content.snapshot.clone()));
                self.good = Some(content);
                Some(true)
            }
            Err(problems) => {
                self.problems = problems;
                Some(false)
            }
        }
    }
}

fn hash_of(files: Result<&[File], &FileProblem>, salt: Option<u64>) -> u64 {
    let mut hash = Xxh64::new(salt.unwrap_or_default());
    let mut add = |bytes: &[u8]| {
        hash.write_usize(bytes.len());
        hash.write(bytes);
    };
    match files {
        Ok(files) => {
            for file in files {
                add(file.path.as_os_str().as_encoded_bytes());
                add(&file.text);
            }
        }
        Err(problem) => add(problem.to_string().as_bytes()),
    }
    hash.finish()
}
