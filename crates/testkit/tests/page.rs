//! The gateway's page in a real browser: a wallet pays, an answer comes under oath, and its false receipt's trial is drawn.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sworn_model::ModelStore;
use sworn_testkit::devnet::{Guard, root};
use sworn_testkit::scenario::Stage;

const LIAR: &str = env!("CARGO_BIN_EXE_sworn-liar");
const PATIENCE: Duration = Duration::from_secs(120);

/// The browser's script.
struct Script {
    child: Guard,
    stdin: ChildStdin,
    lines: Receiver<String>,
}

impl Script {
    fn start(told: &Value) -> Self {
        let mut command = Command::new("node");
        command.arg(root().join("page/tests/page.mjs")).arg(told.to_string()).current_dir(root());
        let mut child: Child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("node starts");
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = send.send(line);
            }
        });
        Script { child: Guard(child), stdin, lines }
    }

    /// The next thing it says; its complaints are on this test's stderr.
    async fn says(&mut self) -> Value {
        let start = Instant::now();
        loop {
            if let Ok(line) = self.lines.try_recv() {
                return serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
            }
            let ended = self.child.0.try_wait().unwrap();
            assert!(
                ended.is_none() && start.elapsed() < PATIENCE,
                "the browser's script ended ({ended:?}) or says nothing"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn tell(&mut self, value: &Value) {
        writeln!(self.stdin, "{value}").unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn e2e_a_wallet_pays_an_answer_comes_and_its_trial_is_drawn() {
    let model = ModelStore::from_env().unwrap().load("smollm2-135m").unwrap();
    let mut stage = Stage::stored(model).await.unwrap();
    let signer = stage.net.actor("gateway").await.unwrap();
    let liar = stage.liar(Path::new(LIAR), &["--lie", "LINEAR", "--seed", "3", "--redeem-at", "1"]).await.unwrap();
    let (gateway, url) = stage.gateway(&signer, "smollm2-135m", &[]).await.unwrap();
    // Screenshots stay where the build's other results are.
    let shots = Path::new(LIAR).parent().unwrap().join("page-screenshots");
    let mut script = Script::start(&json!({
        "gateway": url,
        "rpc": stage.net.rpc,
        "key": format!("0x{}", hex::encode(stage.user.signer.to_bytes())),
        "shots": shots,
        "chromium": std::env::var("SWORN_CHROMIUM").unwrap_or_else(|_| "/usr/bin/chromium".into()),
    }));
    let chatted = script.says().await;
    assert_eq!(chatted["answer"], "The capital of France is Paris.", "{}", gateway.complaint(""));
    // What the page shows is what the gateway keeps.
    let kept = reqwest::get(format!("{url}/v1/receipts/{}", chatted["receipt"].as_str().unwrap())).await.unwrap();
    let kept: Value = kept.json().await.unwrap();
    assert_eq!(kept["digest"], chatted["receipt"], "{kept}");

    let watcher = stage.watch(&[]).unwrap();
    let mut proven = match watcher.wait("proven", PATIENCE).await {
        Ok(proven) => proven,
        Err(e) => panic!("{e}\n{}", liar.complaint("")),
    };
    watcher.wait("convicted", PATIENCE).await.unwrap();
    let lied = liar.wait("lied", Duration::ZERO).await.unwrap();
    assert_eq!(lied["claimed"], proven["claimed"]);
    // As text: numbers of trials are beyond what JavaScript counts.
    proven["job"] = proven["job"].to_string().into();
    proven["node"] = stage.operator.address().to_string().into();
    script.tell(&proven);
    assert_eq!(script.says().await["done"], true);
    eprintln!("screenshots: {}", shots.display());
}
