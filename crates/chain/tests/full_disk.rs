//! A disk that is full for a while. Alone in its process, whose limits it sets.
#![cfg(target_os = "linux")]

use std::process::Command;

use sworn_chain::Store;
use tokio::signal::unix::{SignalKind, signal};

/// No file may grow, not by a byte; or each as it likes.
fn fill_disk(full: bool) {
    let limit = if full { "--fsize=0:unlimited" } else { "--fsize=unlimited" };
    let set = Command::new("prlimit").args(["--pid", &std::process::id().to_string(), limit]).status();
    assert!(set.unwrap().success());
}

#[tokio::test]
async fn a_store_goes_on_when_there_is_room_again() {
    // What goes beyond a limit is an error only for a process that minds the signal (SIGXFSZ).
    let _minded = signal(SignalKind::from_raw(25)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_as(dir.path().join("store.redb"), "one").unwrap();
    let other = store.clone();
    store.put("t", "a", &1).unwrap();
    for _ in 0..2 {
        fill_disk(true);
        for _ in 0..3 {
            let failure = store.put("t", "a", &2).unwrap_err();
            assert!(failure.to_string().contains("disk"), "{failure}");
        }
        fill_disk(false);
        assert_eq!(other.get::<u32>("t", "a").unwrap(), Some(1));
        assert_eq!(other.all::<u32>("t").unwrap(), [("a".to_owned(), 1)]);
        other.put("t", "b", &3).unwrap();
        assert_eq!(store.get::<u32>("t", "b").unwrap(), Some(3));
        store.remove("t", "b").unwrap();
    }
    drop((store, other));
    assert_eq!(Store::open_as(dir.path().join("store.redb"), "one").unwrap().get::<u32>("t", "a").unwrap(), Some(1));
}
