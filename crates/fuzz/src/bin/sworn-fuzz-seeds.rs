//! Writes every target's seeds as files, a directory for each: what libFuzzer begins from.
#![forbid(unsafe_code)]

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out: PathBuf = std::env::args_os().nth(1).ok_or("usage: sworn-fuzz-seeds DIRECTORY")?.into();
    for target in sworn_fuzz::TARGETS {
        let dir = out.join(target.name);
        std::fs::create_dir_all(&dir)?;
        for (n, seed) in (target.seeds)().into_iter().enumerate() {
            std::fs::write(dir.join(format!("seed-{n}")), seed)?;
        }
    }
    Ok(())
}
