//! What the command does without a chain: slips, missing things, dead and wrong chains. Each gives its exit code and an error
//! that names the cure; none panics.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

struct Sworn {
    dir: tempfile::TempDir,
}

impl Sworn {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sworn"));
        for (variable, _) in std::env::vars_os().filter(|(v, _)| v.to_string_lossy().starts_with("SWORN_")) {
            command.env_remove(variable);
        }
        command.env("SWORN_HOME", self.dir.path()).current_dir(self.dir.path()).args(arguments).stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let output = self.command(arguments).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!stderr.contains("panicked"), "{arguments:?}: {stderr}");
        output
    }

    /// Runs, expects this code, nothing on stdout and all of `words` on stderr.
    fn fails(&self, code: i32, arguments: &[&str], words: &[&str]) {
        let output = self.run(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(output.stdout.is_empty(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
        for word in words {
            assert!(stderr.contains(word), "{arguments:?} does not mention {word:?}: {stderr}");
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A key with a password file beside it.
    fn key(&self) -> (String, String) {
        std::fs::write(self.path("password"), "secret\n").unwrap();
        let (key, password) = (text(&self.path("key.json")), text(&self.path("password")));
        let output = self.run(&["key", "new", &key, "--password-file", &password, "--json"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (key, password)
    }

    fn deployment(&self) -> String {
        let address = |n: u8| format!("0x{}{n:02x}", "00".repeat(19));
        let file = serde_json::json!({
            "chainId": 31337, "token": address(1), "models": address(2), "nodes": address(3), "market": address(4),
            "challenges": address(5), "stepVerifier": address(6), "channels": address(7), "trials": address(8), "block": 0
        });
        std::fs::write(self.path("deployment.json"), file.to_string()).unwrap();
        text(&self.path("deployment.json"))
    }
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// A chain that knows nothing but its id.
fn chain_with_id(id: u64) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let mut request = Vec::new();
                let mut buffer = [0; 4096];
                while let Ok(n) = stream.read(&mut buffer) {
                    request.extend_from_slice(&buffer[..n]);
                    let text = String::from_utf8_lossy(&request).into_owned();
                    let Some((head, body)) = text.split_once("\r\n\r\n") else {
                        if n == 0 { return } else { continue }
                    };
                    let length = head
                        .to_lowercase()
                        .split("content-length:")
                        .nth(1)
                        .and_then(|l| l.lines().next()?.trim().parse().ok())
                        .unwrap_or(0usize);
                    if body.len() < length {
                        if n == 0 { return } else { continue }
                    }
                    let call: Value = serde_json::from_str(body).unwrap_or_default();
                    let result = if call["method"] == "eth_chainId" { format!("{id:#x}") } else { "0x".to_owned() };
                    let answer = serde_json::json!({"jsonrpc": "2.0", "id": call["id"], "result": result}).to_string();
                    let _ = write!(
                        stream,
                        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{answer}",
                        answer.len()
                    );
                    request.clear();
                }
            });
        }
    });
    format!("http://{address}")
}

#[test]
fn slips_exit_with_two() {
    let sworn = Sworn::new();
    sworn.fails(2, &["run", "--no-such-flag"], &["--no-such-flag"]);
    sworn.fails(2, &["rum"], &["rum"]);
    sworn.fails(2, &["run", "x", "--backend", "abacus"], &["abacus", "cpu", "wgpu"]);
    sworn.fails(2, &["run", "x", "--max-tokens", "many"], &["many"]);
    sworn.fails(2, &["run"], &["PROMPT"]);
    sworn.fails(2, &["ask", "x", "--node", "0x12"], &["0x12"]);
    sworn.fails(2, &["model", "list", "--log", "=="], &["--log", "filter"]);
    sworn.fails(2, &["demo", "--lie", "sloth"], &["sloth", "LINEAR", "withhold"]);
    sworn.fails(2, &["devnet"], &["--root", "checkout"]);
    sworn.fails(2, &["devnet", "--root", "."], &["no Sworn checkout"]);
    sworn.fails(2, &[], &["Usage"]);
}

#[test]
fn help_is_a_result() {
    let sworn = Sworn::new();
    for arguments in [&["--help"][..], &["help", "node", "run"], &["ask", "--help"], &["--version"]] {
        let output = sworn.run(arguments);
        assert!(output.status.success() && !output.stdout.is_empty() && output.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn every_flag_has_a_variable_and_a_line() {
    let sworn = Sworn::new();
    // The variable reaches the verb: a model that does not exist is named.
    let output = sworn.command(&["model", "list", "--json"]).output().unwrap();
    assert_eq!(output.stdout, b"[]\n");
    let output = sworn.command(&["run", "hi"]).env("SWORN_MODEL", "of-the-variable").output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("of-the-variable"));
    std::fs::write(sworn.path("sworn.toml"), "model = \"of-the-file\"\n[audit]\nmodel = \"of-the-table\"\n").unwrap();
    sworn.fails(1, &["run", "hi"], &["of-the-file"]);
    sworn.fails(1, &["run", "hi", "--model", "of-the-flag"], &["of-the-flag"]);
    std::fs::write(sworn.path("sworn.toml"), "modell = \"x\"\n").unwrap();
    sworn.fails(2, &["run", "hi"], &["modell", "sworn.toml"]);
    std::fs::write(sworn.path("sworn.toml"), "model = \n").unwrap();
    sworn.fails(2, &["run", "hi"], &["sworn.toml"]);
    sworn.fails(2, &["run", "hi", "--config", "none.toml"], &["none.toml", "--config"]);
}

#[test]
fn unknown_models_name_the_cure() {
    let sworn = Sworn::new();
    sworn.fails(1, &["model", "show", "nobody"], &["nobody", "sworn model pull"]);
    sworn.fails(1, &["model", "pull", "nobody"], &["nobody", "sworn model import"]);
    sworn.fails(1, &["model", "show", "../../etc"], &["../../etc"]);
    sworn.fails(1, &["run", "hi", "--model", "0xac91fafb93c5"], &["0xac91fafb93c5", "sworn model list"]);
    std::fs::write(sworn.path("garbage.gguf"), b"GGUF and then nothing of the kind").unwrap();
    sworn.fails(1, &["model", "import", "garbage.gguf"], &["GGUF"]);
    sworn.fails(1, &["model", "import", "nowhere.gguf"], &["nowhere.gguf"]);
    sworn.fails(2, &["run", "  "], &["empty"]);
}

#[test]
fn keys_are_missing_wrong_or_locked() {
    let sworn = Sworn::new();
    let deployment = sworn.deployment();
    sworn.fails(2, &["node", "stake", "1", "--deployment", &deployment], &["--key", "sworn key new"]);
    sworn.fails(1, &["key", "show", "none.json"], &["none.json", "sworn key new"]);
    let (key, password) = sworn.key();
    let output = sworn.run(&["key", "show", "--key", &key, "--json"]);
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(shown["address"].as_str().is_some_and(|a| a.starts_with("0x") && a.len() == 42), "{shown}");
    // Never overwritten.
    sworn.fails(1, &["key", "new", &key, "--password-file", &password], &["never overwritten"]);
    sworn.fails(1, &["key", "new", "k2.json", "--password-file", "none"], &["none"]);
    sworn.fails(1, &["key", "new", "k2.json"], &["password"]);
    std::fs::write(sworn.path("broken.json"), "{\"version\": 3}").unwrap();
    sworn.fails(1, &["key", "show", "broken.json"], &["broken.json"]);
}

#[test]
fn chains_are_missing_dead_wrong_or_empty() {
    let sworn = Sworn::new();
    let deployment = sworn.deployment();
    let (key, password) = sworn.key();
    sworn.fails(2, &["job", "list"], &["--deployment", "sworn devnet"]);
    sworn.fails(1, &["job", "list", "--deployment", "none.json"], &["none.json"]);
    std::fs::write(sworn.path("bad.json"), "{}").unwrap();
    sworn.fails(1, &["job", "list", "--deployment", "bad.json"], &["bad.json"]);
    sworn.fails(1, &["job", "list", "--deployment", &deployment, "--rpc", "not a url"], &["not a url"]);
    // Nobody listens on a port that was just given back.
    let dead = format!("http://{}", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    for verb in [&["job", "list"][..], &["money"], &["node", "run"], &["watch"], &["dispute", "list"]] {
        let flags = ["--deployment", &deployment, "--rpc", &dead, "--key", &key, "--password-file", &password];
        sworn.fails(1, &[verb, &flags].concat(), &["127.0.0.1", "check"]);
    }
    let other = chain_with_id(1);
    sworn.fails(1, &["job", "list", "--deployment", &deployment, "--rpc", &other], &["chain 1", "31337"]);
    let empty = chain_with_id(31337);
    sworn.fails(1, &["job", "list", "--deployment", &deployment, "--rpc", &empty], &["no contract", "deploy again"]);
}

#[test]
fn saved_answers_are_checked_before_use() {
    let sworn = Sworn::new();
    sworn.fails(1, &["audit", "none.json"], &["none.json", "--save"]);
    std::fs::write(sworn.path("a.json"), "{}").unwrap();
    sworn.fails(1, &["audit", "a.json"], &["a.json", "--save"]);
    sworn.fails(1, &["eval", "--text", "none.txt"], &["none.txt", "--text"]);
}

#[test]
fn the_doctor_names_faults_and_cures() {
    let sworn = Sworn::new();
    let output = sworn.run(&["doctor", "--offline", "--json", "--model", "nobody"]);
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["ok"], false);
    let checks = report["checks"].as_array().unwrap();
    let model = checks.iter().find(|c| c["what"] == "model").unwrap();
    assert_eq!(model["state"], "fault");
    assert!(model["cure"].as_str().unwrap().contains("sworn model pull"));
    assert!(checks.iter().any(|c| c["what"] == "disk" && c["state"] == "ok"));
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let sworn = Sworn::new();
    let mut child = sworn
        .command(&["doctor", "--offline", "--model", "nobody"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_synthetic_model_runs_is_saved_and_audited() {
    let sworn = Sworn::new();
    let model = sworn_model::synthetic(&sworn_model::SyntheticSpec::default(), sworn.path("models/tiny")).unwrap();
    let run = [
        "run",
        "--model",
        "tiny",
        "--backend",
        "cpu",
        "--max-tokens",
        "8",
        "--save",
        "a.json",
        "--json",
        "Hello there",
    ];
    let output = sworn.run(&run);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    for field in [
        "tokens",
        "text",
        "trace_root",
        "prefill_tok_s",
        "decode_tok_s",
        "backend",
        "adapter",
        "model_id",
        "input_tokens",
    ] {
        assert!(!answer[field].is_null(), "{field}");
    }
    assert_eq!(answer["model_id"], format!("0x{}", hex::encode(model.id())));
    // By id, streamed: the same text.
    let id = format!("0x{}", hex::encode(model.id()));
    let output = sworn.run(&["run", "--model", &id[..20], "--backend", "cpu", "--max-tokens", "8", "Hello there"]);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim_end_matches('\n'),
        answer["text"].as_str().unwrap().trim_end_matches('\n')
    );

    let audited = sworn.run(&["audit", "a.json", "--backend", "cpu", "--json"]);
    assert!(audited.status.success(), "{}", String::from_utf8_lossy(&audited.stderr));
    let report: Value = serde_json::from_slice(&audited.stdout).unwrap();
    assert_eq!((report["ok"].as_bool(), &report["trace_root"]), (Some(true), &answer["trace_root"]));

    let saved: Value = serde_json::from_str(&std::fs::read_to_string(sworn.path("a.json")).unwrap()).unwrap();
    let differs = |change: &dyn Fn(&mut Value), what: &str| {
        let mut changed = saved.clone();
        change(&mut changed);
        std::fs::write(sworn.path("b.json"), changed.to_string()).unwrap();
        let output = sworn.run(&["audit", "b.json", "--backend", "cpu", "--json"]);
        assert_eq!(output.status.code(), Some(1));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["difference"]["what"], what, "{report}");
    };
    differs(&|a| a["tokens"][3] = Value::from((a["tokens"][3].as_u64().unwrap() + 1) % 256), "token");
    differs(&|a| a["trace_root"] = Value::from(format!("0x{}", "11".repeat(32))), "root");
    // What `run` and `job show` print can be audited as well.
    std::fs::write(sworn.path("c.json"), answer.to_string()).unwrap();
    assert!(sworn.run(&["audit", "c.json", "--backend", "cpu"]).status.success());
    std::fs::write(sworn.path("c.json"), saved.to_string().replace("sworn-answer/1", "sworn-answer/9")).unwrap();
    sworn.fails(1, &["audit", "c.json"], &["sworn-answer/9"]);
    let verified = sworn.run(&["model", "verify", "tiny", "--json"]);
    assert!(verified.status.success());
}

/// A disk that takes no more than a megabyte of a file: the import says so and leaves nothing half-made.
#[test]
fn smollm2_on_a_full_disk() {
    let store = sworn_model::ModelStore::from_env().unwrap();
    sworn_model::pull("smollm2-135m", store.home(), &mut |_| {}).unwrap();
    let gguf = text(&store.source_file("smollm2-135m").unwrap());
    let sworn = Sworn::new();
    let limited = |arguments: &[&str]| {
        let direct = sworn.command(arguments);
        let mut command = Command::new("sh");
        // The signal ignored, a write over the limit fails like one on a full disk.
        command.args([
            "-c",
            "trap '' XFSZ; ulimit -f 2048; exec \"$0\" \"$@\"",
            &text(Path::new(direct.get_program())),
        ]);
        command.args(direct.get_args()).current_dir(sworn.dir.path()).stdin(Stdio::null());
        command.env("SWORN_HOME", sworn.dir.path()).output().unwrap()
    };
    let output = limited(&["model", "import", &gguf, "--name", "small"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("File too large") && !stderr.contains("panicked"), "{stderr}");
    sworn.fails(1, &["model", "show", "small"], &["small"]);
    let left: Vec<_> = std::fs::read_dir(sworn.path("models")).map_or_else(|_| Vec::new(), |d| d.flatten().collect());
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[test]
fn a_result_that_cannot_be_written_is_an_error() {
    let sworn = Sworn::new();
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = sworn.command(&["model", "list", "--json"]).stdout(full).stderr(Stdio::piped()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("No space left") && !stderr.contains("panicked"), "{stderr}");
}
