//! Whatever a program writes while it works, at its most talkative, it never writes a key or a password.

use std::path::Path;
use std::time::Duration;

use sworn_bindings::JobState;
use sworn_testkit::devnet::{Actor, PASSWORD};
use sworn_testkit::scenario::Stage;

const PATIENCE: Duration = Duration::from_secs(120);

/// A secret in the forms in which it could be written.
fn forms(actor: &Actor) -> Vec<Vec<u8>> {
    let bytes = actor.signer.to_bytes().to_vec();
    let hex = hex::encode(&bytes);
    let decimal: Vec<String> = bytes.iter().map(u8::to_string).collect();
    vec![hex.to_uppercase().into_bytes(), hex.into_bytes(), decimal.join(", ").into_bytes(), bytes]
}

fn search(directory: &Path, secrets: &[Vec<u8>], read: &mut usize) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            search(&path, secrets, read);
            continue;
        }
        // The one file that is meant to hold it.
        if path.file_name().is_some_and(|name| name == "password") {
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        *read += bytes.len();
        for secret in secrets {
            let found = bytes.windows(secret.len()).any(|w| w == secret);
            assert!(!found, "{} holds a secret", path.display());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e2e_keys_and_passwords_are_never_written() {
    let mut stage = Stage::synthetic(5).await.unwrap();
    stage.log = "trace";
    let node = stage.node(&[]).await.unwrap();
    let watcher = stage.watch(&[]).unwrap();
    watcher.wait("started", PATIENCE).await.unwrap();
    let job = stage.ask(&[3, 4, 5, 6], 4).await.unwrap();
    stage.until(job, JobState::Submitted, PATIENCE).await.unwrap();
    watcher.wait("audited", PATIENCE).await.unwrap();
    stage.skip_window().await.unwrap();
    node.wait("withdrawn", PATIENCE).await.unwrap();
    let mut secrets = vec![PASSWORD.as_bytes().to_vec()];
    [&stage.operator, &stage.watcher].iter().for_each(|actor| secrets.extend(forms(actor)));
    let told = format!("{}{}", node.complaint(""), watcher.complaint(""));
    for secret in &secrets {
        assert!(!told.as_bytes().windows(secret.len()).any(|w| w == secret), "a secret was told");
    }
    let mut read = 0;
    search(stage.net.dir.path(), &secrets, &mut read);
    assert!(told.contains("TRACE"), "the programs were to tell everything");
    assert!(read > 100_000, "only {read} bytes were searched");
}
