//! What an agent keeps on disk: one redb file, tables of JSON values, bound to one deployment on one chain.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition, TableError};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Chain, Error, Result};

/// A table's name. Names are the caller's; `sworn/…` are this crate's.
pub type Table = &'static str;

const IDENTITY: Table = "sworn/identity";

/// An agent's file. Every write is on disk when the call returns. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    /// Closed from a failure of the disk until it can be opened again.
    db: Arc<RwLock<Option<Database>>>,
    path: Arc<PathBuf>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.path.display())
    }
}

/// Writes that belong together: [`Store::apply`] does all of them or none.
#[derive(Debug, Default)]
pub struct Changes {
    list: Vec<(Table, String, Option<Vec<u8>>)>,
}

impl Changes {
    /// Sets a value.
    ///
    /// # Errors
    /// The value cannot be written as JSON.
    pub fn put<T: Serialize + ?Sized>(mut self, table: Table, key: impl Into<String>, value: &T) -> Result<Self> {
        let bytes = serde_json::to_vec(value).map_err(|e| Error::Answer(format!("{table}: {e}")))?;
        self.list.push((table, key.into(), Some(bytes)));
        Ok(self)
    }

    /// Removes a value, if there is one.
    #[must_use]
    pub fn remove(mut self, table: Table, key: impl Into<String>) -> Self {
        self.list.push((table, key.into(), None));
        self
    }
}

const fn definition(table: Table) -> TableDefinition<'static, &'static str, &'static [u8]> {
    TableDefinition::new(table)
}

impl Store {
    /// Opens or creates a file and checks that it belongs to `chain`'s deployment.
    ///
    /// # Errors
    /// Another process uses it, it belongs to another chain, or the disk fails.
    pub fn open(path: impl AsRef<Path>, chain: &Chain) -> Result<Self> {
        let d = chain.deployment();
        let identity = format!("{}/{}/{}", d.chain_id, chain.genesis(), d.market);
        Self::open_as(path, &identity)
    }

    /// Opens or creates a file that belongs to whatever `identity` names.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_as(path: impl AsRef<Path>, identity: &str) -> Result<Self> {
        let path = path.as_ref();
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|e| Error::Store { path: parent.to_owned(), reason: e.to_string() })?;
        }
        let db = Database::create(path).map_err(|e| cannot_open(path, e))?;
        let store = Store { db: Arc::new(RwLock::new(Some(db))), path: Arc::new(path.to_owned()) };
        match store.get::<String>(IDENTITY, "chain")? {
            None => store.put(IDENTITY, "chain", identity)?,
            Some(known) if known == identity => {}
            Some(_) => return Err(Error::OtherChain { path: path.to_owned() }),
        }
        Ok(store)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads or writes, in one transaction. Once the disk has failed, redb does nothing until it is closed and opened again; then what was
    /// committed is there and nothing else, so that the same transaction is tried once more.
    fn with<T>(&self, work: impl Fn(&Database) -> Result<T, redb::Error>) -> Result<T> {
        let try_it = |db: &Option<Database>| match db.as_ref().map(&work) {
            None | Some(Err(redb::Error::Io(_) | redb::Error::PreviousIo)) => None,
            Some(other) => Some(other.map_err(|e| self.fail(e))),
        };
        if let Some(result) = try_it(&self.db.read().unwrap_or_else(PoisonError::into_inner)) {
            return result;
        }
        let mut db = self.db.write().unwrap_or_else(PoisonError::into_inner);
        *db = None;
        // Not created: a journal that is gone must not be taken for an empty one.
        let db = db.insert(Database::open(&*self.path).map_err(|e| cannot_open(&self.path, e))?);
        work(db).map_err(|e| self.fail(e))
    }

    fn fail(&self, e: impl std::fmt::Display) -> Error {
        Error::Store { path: self.path.to_path_buf(), reason: e.to_string() }
    }

    /// A value.
    ///
    /// # Errors
    /// The disk fails, or the value is of another shape.
    pub fn get<T: DeserializeOwned>(&self, table: Table, key: &str) -> Result<Option<T>> {
        let value = self.with(|db| match db.begin_read()?.open_table(definition(table)) {
            Ok(table) => Ok(table.get(key)?.map(|v| v.value().to_vec())),
            Err(TableError::TableDoesNotExist(_)) => Ok(None),
            Err(e) => Err(e.into()),
        })?;
        value.map(|v| serde_json::from_slice(&v).map_err(|e| self.fail(e))).transpose()
    }

    /// All of a table, by rising key.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn all<T: DeserializeOwned>(&self, table: Table) -> Result<Vec<(String, T)>> {
        let rows = self.with(|db| match db.begin_read()?.open_table(definition(table)) {
            Ok(table) => table
                .iter()?
                .map(|row| row.map(|(key, value)| (key.value().to_owned(), value.value().to_vec())))
                .collect::<Result<Vec<_>, _>>()
                .map_err(redb::Error::from),
            Err(TableError::TableDoesNotExist(_)) => Ok(Vec::new()),
            Err(e) => Err(e.into()),
        })?;
        rows.into_iter().map(|(key, v)| Ok((key, serde_json::from_slice(&v).map_err(|e| self.fail(e))?))).collect()
    }

    /// Sets a value.
    ///
    /// # Errors
    /// The disk fails; then the old value stands.
    pub fn put<T: Serialize + ?Sized>(&self, table: Table, key: &str, value: &T) -> Result<()> {
        self.apply(&Changes::default().put(table, key, value)?)
    }

    /// Removes a value, if there is one.
    ///
    /// # Errors
    /// The disk fails; then the value stands.
    pub fn remove(&self, table: Table, key: &str) -> Result<()> {
        self.apply(&Changes::default().remove(table, key))
    }

    /// Does several writes at once: after a crash, all of them are there or none.
    ///
    /// # Errors
    /// The disk fails; then everything is as it was.
    pub fn apply(&self, changes: &Changes) -> Result<()> {
        self.with(|db| {
            let write = db.begin_write()?;
            for (name, key, value) in &changes.list {
                let mut table = write.open_table(definition(name))?;
                match value {
                    Some(bytes) => drop(table.insert(key.as_str(), &bytes[..])?),
                    None => drop(table.remove(key.as_str())?),
                }
            }
            Ok(write.commit()?)
        })
    }
}

fn cannot_open(path: &Path, e: DatabaseError) -> Error {
    match e {
        DatabaseError::DatabaseAlreadyOpen => Error::Locked { path: path.to_owned() },
        e => Error::Store { path: path.to_owned(), reason: e.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_and_the_file_has_one_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/er/store.redb");
        let store = Store::open_as(&path, "one").unwrap();
        assert_eq!(store.get::<u32>("t", "a").unwrap(), None);
        assert!(store.all::<u32>("t").unwrap().is_empty());
        store.put("t", "b", &2).unwrap();
        store.put("t", "a", &1).unwrap();
        assert!(matches!(Store::open_as(&path, "one"), Err(Error::Locked { .. })));
        drop(store);
        let store = Store::open_as(&path, "one").unwrap();
        assert_eq!(store.all::<u32>("t").unwrap(), [("a".to_owned(), 1), ("b".to_owned(), 2)]);
        let both = Changes::default().put("u", "c", &3).unwrap().remove("t", "b");
        store.apply(&both).unwrap();
        assert_eq!((store.get::<u32>("u", "c").unwrap(), store.get::<u32>("t", "b").unwrap()), (Some(3), None));
        store.remove("t", "a").unwrap();
        assert_eq!(store.get::<u32>("t", "a").unwrap(), None);
        assert!(store.get::<String>("u", "c").is_err());
        drop(store);
        assert!(matches!(Store::open_as(&path, "two"), Err(Error::OtherChain { .. })));
        fs::write(&path, "garbage").unwrap();
        assert!(Store::open_as(&path, "one").is_err());
    }
}
