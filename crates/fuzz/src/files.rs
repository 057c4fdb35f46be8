//! Several files as one input: the first byte says how many, then each has its length in four bytes and its bytes.

use std::path::Path;

/// Joins files.
pub fn join(files: &[Vec<u8>]) -> Vec<u8> {
    let mut out = vec![files.len() as u8];
    for file in files {
        out.extend((file.len() as u32).to_be_bytes());
        out.extend(file);
    }
    out
}

/// Splits what [`join`] joined; of damaged bytes as many files as there are.
pub fn split(bytes: &[u8]) -> Vec<&[u8]> {
    let Some((count, mut rest)) = bytes.split_first() else { return Vec::new() };
    let mut files = Vec::new();
    for _ in 0..*count {
        let Some((length, after)) = rest.split_first_chunk::<4>() else { break };
        let length = (u32::from_be_bytes(*length) as usize).min(after.len());
        let (file, after) = after.split_at(length);
        files.push(file);
        rest = after;
    }
    files
}

/// Reads files of a directory.
///
/// # Panics
/// One is missing.
pub fn read(directory: &Path, names: &[&str]) -> Vec<u8> {
    let files: Vec<Vec<u8>> = names.iter().map(|name| std::fs::read(directory.join(name)).unwrap()).collect();
    join(&files)
}

/// Writes files into a directory.
///
/// # Panics
/// The disk refuses.
pub fn write(bytes: &[u8], directory: &Path, names: &[&str]) {
    for (name, file) in names.iter().zip(split(bytes)) {
        std::fs::write(directory.join(name), file).unwrap();
    }
}
