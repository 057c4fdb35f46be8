//! Puts the page where the program takes it from: `page/dist`, as `script/setup` builds it, or a word on how to get it.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

const MISSING: &str = "<!doctype html><meta charset=\"utf-8\"><title>Sworn</title><p>This program was built without its page. \
    Run <code>make build</code> in the checkout: it builds the page first.";

fn main() -> io::Result<()> {
    // Relative to the package, wherever the checkout is: checkouts share what is compiled of this script.
    let from = Path::new("../../page/dist");
    println!("cargo::rerun-if-changed={}", from.display());
    let to = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("page");
    if to.exists() {
        fs::remove_dir_all(&to)?;
    }
    fs::create_dir_all(&to)?;
    if from.join("index.html").is_file() { copy(from, &to) } else { fs::write(to.join("index.html"), MISSING) }
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
