//! Models on this machine, by name.

use std::path::{MAIN_SEPARATOR, Path, PathBuf};

use crate::{
    directory,
    error::{ModelError, Result},
    load::Model,
    pull,
};

/// `$SWORN_HOME`, by default `~/.sworn`.
///
/// # Errors
/// Neither variable is set.
pub fn sworn_home() -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("SWORN_HOME").or_else(|| set("HOME").map(|h| h.join(".sworn"))).ok_or_else(|| {
        ModelError::Argument(
            "neither SWORN_HOME nor HOME is set; set SWORN_HOME to the directory that models are kept in".into(),
        )
    })
}

/// The models under one home directory.
#[derive(Clone, Debug)]
pub struct ModelStore {
    home: PathBuf,
}

impl ModelStore {
    /// The store of `home`.
    pub fn new(home: impl Into<PathBuf>) -> Self {
        ModelStore { home: home.into() }
    }

    /// The store of [`sworn_home`].
    ///
    /// # Errors
    /// As [`sworn_home`].
    pub fn from_env() -> Result<Self> {
        Ok(Self::new(sworn_home()?))
    }

    /// Its home directory.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Where models lie.
    pub fn models(&self) -> PathBuf {
        self.home.join("models")
    }

    /// The directory of a model of this name, whether it exists or not.
    ///
    /// # Errors
    /// The name is empty or would leave the store.
    pub fn directory(&self, name: &str) -> Result<PathBuf> {
        let plain = !name.is_empty()
            && !name.starts_with('.')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
        if !plain {
            return Err(ModelError::Argument(format!(
                "{name:?} is no model name; use letters, digits, '-', '_' and '.'"
            )));
        }
        Ok(self.models().join(name))
    }

    /// Where the file that a pulled model was imported from is kept; there only after a pull.
    ///
    /// # Errors
    /// As [`Self::directory`].
    pub fn source_file(&self, name: &str) -> Result<PathBuf> {
        Ok(self.directory(name)?.with_file_name(format!("{name}.gguf")))
    }

    /// The directory that a name or a path means. A path is what contains a separator or is a model directory as it stands.
    ///
    /// # Errors
    /// There is no model there.
    pub fn resolve(&self, name_or_path: &str) -> Result<PathBuf> {
        let path = Path::new(name_or_path);
        if name_or_path.contains(MAIN_SEPARATOR) || path.join(directory::MANIFEST).is_file() {
            return if path.join(directory::MANIFEST).is_file() {
                Ok(path.to_owned())
            } else {
                Err(ModelError::Directory {
                    path: path.to_owned(),
                    what: format!("it holds no {}", directory::MANIFEST),
                })
            };
        }
        let dir = self.directory(name_or_path)?;
        if dir.join(directory::MANIFEST).is_file() {
            Ok(dir)
        } else {
            Err(ModelError::Unknown {
                name: name_or_path.to_owned(),
                home: self.home.clone(),
                known: pull::DEFAULT_MODEL,
            })
        }
    }

    /// Loads the model that a name or a path means.
    ///
    /// # Errors
    /// There is none, or it is damaged.
    pub fn load(&self, name_or_path: &str) -> Result<Model> {
        Model::load(self.resolve(name_or_path)?)
    }

    /// Names of the models that are here, sorted.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn list(&self) -> Result<Vec<String>> {
        let dir = self.models();
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(ModelError::io("reading", &dir)(e)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(ModelError::io("reading", &dir))?;
            if let Some(name) = entry.file_name().to_str()
                && self.directory(name).is_ok_and(|d| d.join(directory::MANIFEST).is_file())
            {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }
}
