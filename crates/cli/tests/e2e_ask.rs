//! A sampled answer bought on a devnet, as a user's shell would: order, answer, and an audit of what the chain says about it.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use sworn_model::small::{Family, Layout, write};

/// Ends a process with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Asked to, a devnet ends its chain as well.
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

fn sworn(home: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sworn"));
    for (variable, _) in std::env::vars_os().filter(|(v, _)| v.to_string_lossy().starts_with("SWORN_")) {
        command.env_remove(variable);
    }
    command.env("SWORN_HOME", home).current_dir(home).args(arguments).arg("--json").stdin(Stdio::null());
    command
}

fn json(home: &Path, arguments: &[&str]) -> Value {
    let output = sworn(home, arguments).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !stderr.contains("panicked"), "{arguments:?}: {stderr}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The value of the first line that a process prints.
fn first_line(child: &mut Child) -> Value {
    let mut text = String::new();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    lines.read_line(&mut text).unwrap();
    // What comes later must not fill the pipe.
    std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

#[test]
fn e2e_a_sampled_answer_is_bought_and_audited() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path();
    let file = write(Family::Llama3, Layout::Blocks, 7, home).unwrap();
    json(home, &["model", "import", file.to_str().unwrap(), "--name", "tiny"]);
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let devnet = ["devnet", "--port", "0", "--model", "tiny", "--root", root.to_str().unwrap()];
    let mut devnet = Running(sworn(home, &devnet).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    let ready = first_line(&mut devnet.0);
    let key = |name: &str| {
        let accounts = ready["accounts"].as_array().unwrap();
        accounts.iter().find(|a| a["name"] == name).unwrap()["key"].as_str().unwrap().to_owned()
    };
    let (operator, user) = (key("operator"), key("user"));
    let config = ready["config"].as_str().unwrap();
    let with = |key: &str, arguments: &[&str]| json(home, &[arguments, &["--config", config, "--key", key]].concat());
    with(&operator, &["node", "stake", "100"]);
    // A port that is free now.
    let listen = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    with(&operator, &["node", "register", "--endpoint", &format!("http://{listen}")]);
    with(&operator, &["node", "price", "tiny", "--input", "0.001", "--output", "0.01", "--longest", "100"]);
    let node = ["node", "run", "--backend", "cpu", "--listen", &listen, "--config", config, "--key", &operator];
    let _node = Running(sworn(home, &node).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());

    let order = [
        "Once upon",
        "--raw",
        "--max-tokens",
        "20",
        "--logprobs",
        "4",
        "--temperature",
        "1.2",
        "--top-p",
        "0.98",
        "--seed",
        "5",
    ];
    let asked = with(&user, &[&["ask"], &order[..]].concat());
    assert_eq!(asked["status"], "submitted");
    assert_eq!((&asked["sampling"]["inverse_temperature"], &asked["sampling"]["top_p"]), (&3413.into(), &64225.into()));
    let seed = asked["seed"].as_str().unwrap();
    // The market's seed is not the user's alone.
    assert_eq!(asked["user_seed"], format!("0x{:064x}", 5));
    assert!(seed != asked["user_seed"] && seed != format!("0x{}", "0".repeat(64)), "{seed}");

    let shown = with(&user, &["job", "show", &asked["job"].to_string()]);
    std::fs::write(home.join("job.json"), shown.to_string()).unwrap();
    assert_eq!(json(home, &["audit", "job.json", "--backend", "cpu"])["ok"], true);
    // With the seed that the market formed, the same run gives the same answer here.
    let mut flags = [&["run"], &order[..]].concat();
    *flags.last_mut().unwrap() = seed;
    flags.extend(["--model", "tiny", "--backend", "cpu"]);
    let here = json(home, &flags);
    assert_eq!((&here["tokens"], &here["trace_root"]), (&asked["tokens"], &asked["trace_root"]));
    // What the node opened is what the run gives here.
    let opened = asked["logprobs"].as_array().unwrap();
    assert_eq!(Value::from(opened.clone()), here["logprobs"]);
    assert_eq!(opened.len(), asked["tokens"].as_array().unwrap().len());
    for (token, row) in asked["tokens"].as_array().unwrap().iter().zip(opened) {
        assert_eq!(&row["token"], token);
        let p = |v: &Value| v["logprob_q14"].as_i64().unwrap();
        assert_eq!(row["logprob"].as_f64().unwrap(), p(row) as f64 / 16384.0);
        let top = row["top"].as_array().unwrap();
        assert!(
            top.len() == 4 && top.windows(2).all(|w| p(&w[0]) >= p(&w[1])) && p(row) <= p(&top[0]) && p(&top[0]) <= 0
        );
    }

    let created = with(&user, &["job", "create", "Once upon", "--raw", "--max-tokens", "3"]);
    assert!(created["job"].as_u64() > asked["job"].as_u64());
    assert_eq!(created["sampling"]["inverse_temperature"], 0);

    // Cut where it is shown, not where it is paid for.
    let greedy =
        json(home, &["run", "Once upon", "--raw", "--max-tokens", "20", "--model", "tiny", "--backend", "cpu"]);
    let text = greedy["text"].as_str().unwrap();
    let stop = text.chars().nth(text.chars().count() / 2).unwrap().to_string();
    let cut = with(&user, &["ask", "Once upon", "--raw", "--max-tokens", "20", "--stop", &stop]);
    assert_eq!(cut["text"], text.split(&stop).next().unwrap());
    assert_eq!(cut["tokens"], greedy["tokens"]);
    assert_eq!(cut.get("logprobs"), None);
}
