//! The demo as `make demo` runs it: separate processes, the real model, and what its report must say. Needs what `make test` builds.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

fn demo(arguments: &[&str]) -> std::process::Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    Command::new(env!("CARGO_BIN_EXE_sworn"))
        .args(["demo", "--root"])
        .arg(root)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn wei(value: &Value) -> u128 {
    value.as_str().and_then(|s| s.parse().ok()).unwrap_or_else(|| panic!("{value} is no amount"))
}

#[test]
fn e2e_smollm2_is_paid_for_the_truth_and_slashed_for_a_lie() {
    let output = demo(&["--json", "--lie", "MIX", "--seed", "3"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {stderr}"));
    let (honest, fraud) = (&report["honest"], &report["fraud"]);

    assert_eq!(honest["status"], "final");
    assert_eq!(honest["answer"], "The answer to this classic math problem is 4.");
    assert!(wei(&honest["paid"]) > 0);

    assert_eq!(fraud["status"], "slashed");
    let lie = &fraud["lie"];
    assert_eq!(lie["op"], "MIX");
    assert_ne!(lie["claimed"], lie["computed"]);
    assert!(["layer", "position", "element"].iter().all(|field| lie[*field].is_u64()), "{lie}");
    let bond = wei(&fraud["bond"]);
    assert_eq!(wei(&fraud["reward"]) + wei(&fraud["compensation"]) + wei(&fraud["burned"]), bond);
    assert!(wei(&fraud["refund"]) > 0 && wei(&fraud["burned"]) > 0);
    let receipts = &report["receipts"];
    assert_eq!(receipts["honest"]["answer"], "The capital of France is Paris.");
    assert_eq!(
        (&receipts["batch"]["released"], &receipts["batch"]["amount"]),
        (&true.into(), &receipts["honest"]["price"])
    );
    let lie = &receipts["false"];
    assert_ne!(lie["proven"]["claimed"], lie["proven"]["computed"], "{lie}");
    assert_ne!(lie["receipt"], receipts["honest"]["receipt"]);
    assert_eq!(wei(&lie["reward"]) + wei(&lie["compensation"]) + wei(&lie["burned"]), wei(&lie["taken"]));
    assert!(wei(&lie["reward"]) > 0, "{lie}");
    assert_eq!(report["conserved"], true);

    let answers = fraud["answers"].as_u64().unwrap();
    let sum: u64 = fraud["transactions"].as_array().unwrap().iter().map(|t| t["gas"].as_u64().unwrap()).sum();
    assert_eq!(fraud["gas"]["total"], sum);
    assert!((1..=8).contains(&answers) && fraud["gas"]["challenge"].as_u64().unwrap() <= 1_200_000, "{}", fraud["gas"]);
}

#[test]
#[cfg(target_os = "linux")]
fn e2e_demo_leaves_no_process_behind_when_stopped() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut child = Command::new(env!("CARGO_BIN_EXE_sworn"))
        .args(["demo", "--model", "synthetic", "--root"])
        .arg(root)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Long enough for the chain, and usually for the nodes.
    std::thread::sleep(std::time::Duration::from_secs(12));
    let stopped = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(stopped.success());
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let mut stderr = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut stderr).unwrap();
    let logs = stderr
        .lines()
        .find_map(|l| l.strip_prefix("logs and state are in "))
        .unwrap_or_else(|| panic!("{stderr}"))
        .to_owned();
    assert!(Path::new(&logs).join("anvil.log").is_file());
    // Whoever is left would be named by the state directory among its arguments.
    let left: Vec<String> = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| std::fs::read(entry.ok()?.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(&logs))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    std::fs::remove_dir_all(logs).unwrap();
}
