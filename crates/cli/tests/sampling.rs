//! Models from published files to sampled answers: imports, parameters, seeds, stop strings, and what an audit makes of the files.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use sworn_model::small::{Family, Layout, write};

struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.run_with(arguments, &[])
    }

    fn run_with(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sworn"));
        for (variable, _) in std::env::vars_os().filter(|(v, _)| v.to_string_lossy().starts_with("SWORN_")) {
            command.env_remove(variable);
        }
        command.envs(variables.iter().copied()).env("SWORN_HOME", self.0.path()).current_dir(self.0.path());
        let output = command.args(arguments).stdin(Stdio::null()).output().unwrap();
        assert!(!stderr(&output).contains("panicked"), "{arguments:?}: {}", stderr(&output));
        output
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.run(&[arguments, &["--json"]].concat());
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// An answer of `tiny`.
    fn answer(&self, flags: &[&str]) -> Value {
        self.json(&[&["run", "Once upon", "--raw", "--model", "tiny", "--backend", "cpu"], flags].concat())
    }

    fn fails(&self, code: i32, arguments: &[&str], words: &[&str]) {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", stderr(&output));
        for word in words {
            assert!(stderr(&output).contains(word), "{arguments:?} does not mention {word:?}: {}", stderr(&output));
        }
    }

    /// Imports a small model as `name`; gives what the import says.
    fn import(&self, layout: Layout, name: &str, flags: &[&str]) -> Value {
        let path = write(Family::SmolLm2, layout, 7, &self.path("files")).unwrap();
        self.json(&[&["model", "import", text(&path), "--name", name], flags].concat())
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn imports_say_what_they_made() {
    let home = Home::new();
    let int8 = home.import(Layout::HuggingFace, "tiny", &["--greedy"]);
    assert_eq!((&int8["sampling"], &int8["max_positions"]), (&json!(false), &json!(128)));
    let formats = int8["formats"].as_object().unwrap();
    assert!(formats.len() == 1 && formats.contains_key("I8"), "{formats:?}");
    // The head shares the embedding's matrix: every byte is read.
    assert_eq!(int8["bytes_per_token"], formats["I8"]);
    assert_eq!(
        home.import(Layout::HuggingFace, "again", &["--greedy", "--weights", "int8"])["model_id"],
        int8["model_id"]
    );

    let blocks = home.import(Layout::Blocks, "blocks", &["--max-positions", "64"]);
    assert_eq!((&blocks["sampling"], &blocks["max_positions"]), (&json!(true), &json!(64)));
    assert_eq!(home.import(Layout::Blocks, "int8", &["--weights", "int8"])["formats"].as_object().unwrap().len(), 1);
    let formats: Vec<_> = blocks["formats"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(formats, ["Q4", "Q8"]);
    assert!(blocks["bytes_per_token"].as_u64() < int8["bytes_per_token"].as_u64());
    let shown = home.run(&["model", "show", "blocks"]);
    let shown = String::from_utf8_lossy(&shown.stdout);
    for word in ["Q4", "Q8", "read per token", "sampled or greedy", "llama"] {
        assert!(shown.contains(word), "no {word}: {shown}");
    }
    // An embedding that is only looked up in counts by the row.
    let untied = write(Family::Llama2, Layout::HuggingFace, 7, &home.path("files")).unwrap();
    let untied = home.json(&["model", "import", text(&untied)]);
    assert_eq!(untied["name"], "llama2");
    assert!(untied["bytes_per_token"].as_u64() < untied["formats"]["I8"].as_u64());

    home.fails(1, &["model", "import", "nowhere"], &["nowhere"]);
    home.fails(2, &["model", "import", "files", "--weights", "int3"], &["int3", "auto"]);
    std::fs::create_dir(home.path("empty")).unwrap();
    home.fails(1, &["model", "import", "empty"], &["config.json"]);
    home.fails(1, &["model", "import", "files/llama2", "--name", "x", "--max-positions", "0"], &["position"]);
}

#[test]
fn sampled_runs_are_repeated_and_audited() {
    let home = Home::new();
    home.import(Layout::HuggingFace, "tiny", &[]);
    let flags =
        ["--temperature", "1.5", "--top-k", "200", "--top-p", "0.99", "--min-p", "0.001", "--repeat-penalty", "1.1"];
    let with = |more: &[&'static str]| home.answer(&[&flags, more].concat());
    let seven = with(&["--max-tokens", "24", "--seed", "7", "--save", "a.json"]);
    assert_eq!(seven["seed"], format!("0x{:064x}", 7));
    assert_eq!(
        seven["sampling"],
        json!({"inverse_temperature": 2731, "top_k": 200, "top_p": 64881, "min_distance": 113177, "penalty": 4506})
    );
    let again = with(&["--max-tokens", "24", "--seed", seven["seed"].as_str().unwrap().to_owned().leak()]);
    assert_eq!((&again["tokens"], &again["trace_root"]), (&seven["tokens"], &seven["trace_root"]));
    let other = with(&["--max-tokens", "24", "--seed", "8"]);
    assert_ne!(other["tokens"], seven["tokens"]);
    let random = with(&["--max-tokens", "2"]);
    assert_ne!(random["seed"], with(&["--max-tokens", "2"])["seed"]);
    let greedy = home.answer(&["--max-tokens", "24", "--save", "greedy.json"]);
    assert_eq!((&greedy["seed"], &greedy["sampling"]["penalty"]), (&json!(format!("0x{:064x}", 0)), &json!(0)));

    let audit = |file: &str| home.run(&["audit", file, "--backend", "cpu"]);
    assert!(audit("a.json").status.success(), "{}", stderr(&audit("a.json")));
    assert!(audit("greedy.json").status.success());
    std::fs::write(home.path("printed.json"), seven.to_string()).unwrap();
    assert!(audit("printed.json").status.success());
    let saved: Value = serde_json::from_str(&std::fs::read_to_string(home.path("a.json")).unwrap()).unwrap();
    assert_eq!(saved["format"], "sworn-answer/2");
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut changed = saved.clone();
        change(&mut changed);
        std::fs::write(home.path("b.json"), changed.to_string()).unwrap();
        audit("b.json")
    };
    for change in [
        (&|a: &mut Value| a["seed"] = json!(format!("0x{:064x}", 8))) as &dyn Fn(&mut Value),
        &|a| a["sampling"]["inverse_temperature"] = json!(800_000),
        &|a| {
            let fields = a.as_object_mut().unwrap();
            fields.remove("sampling");
            fields.remove("seed");
        },
    ] {
        let output = changed(change);
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        assert!(String::from_utf8_lossy(&output.stdout).contains("WRONG"));
    }
    let wild = changed(&|a| a["sampling"]["penalty"] = json!(3));
    assert!(wild.status.code() == Some(1) && stderr(&wild).contains("out of range"), "{}", stderr(&wild));

    // Files of greedy runs from before there were parameters.
    let mut old: Value = serde_json::from_str(&std::fs::read_to_string(home.path("greedy.json")).unwrap()).unwrap();
    assert_eq!(old["format"], "sworn-answer/1");
    let fields = old.as_object_mut().unwrap();
    assert!(fields.remove("sampling").is_some() && fields.remove("seed").is_some());
    std::fs::write(home.path("old.json"), old.to_string()).unwrap();
    assert!(audit("old.json").status.success());
}

#[test]
fn parameters_come_from_everywhere_and_slips_name_the_cure() {
    let home = Home::new();
    home.import(Layout::HuggingFace, "tiny", &[]);
    home.import(Layout::HuggingFace, "greedy", &["--greedy"]);
    let run = ["run", "x", "--model", "tiny"];
    let fails = |flags: &[&str], words: &[&str]| home.fails(2, &[&run, flags].concat(), words);
    fails(&["--temperature", "0.001"], &["--temperature", "0.00390625"]);
    fails(&["--temperature", "hot"], &["--temperature"]);
    fails(&["--temperature", "NaN"], &["--temperature"]);
    fails(&["--temperature", "1", "--top-p", "1.5"], &["--top-p", "1 for all"]);
    fails(&["--top-k", "40"], &["--temperature 0.8"]);
    fails(&["--repeat-penalty", "17"], &["--repeat-penalty", "15.999"]);
    fails(&["--temperature", "1", "--seed", "0xab"], &["--seed", "64"]);
    fails(&["--stop", ""], &["--stop"]);
    home.fails(
        1,
        &["run", "x", "--model", "greedy", "--temperature", "1"],
        &["most likely token", "sworn model import --greedy"],
    );
    home.fails(1, &["ask", "x", "--model", "greedy", "--temperature", "1"], &["sworn model import --greedy"]);
    home.fails(1, &["job", "create", "x", "--model", "greedy", "--repeat-penalty", "2"], &["most likely token"]);
    home.fails(2, &["job", "create", "x", "--model", "tiny", "--min-p", "0.1"], &["--temperature 0.8"]);

    std::fs::write(home.path("sworn.toml"), "temperature = 0.5\n[run]\nmax-tokens = 2\n").unwrap();
    let inverse = |flags: &[&str]| home.answer(flags)["sampling"]["inverse_temperature"].as_u64().unwrap();
    assert_eq!((inverse(&[]), inverse(&["--temperature", "2"]), inverse(&["--temperature", "0"])), (8192, 2048, 0));
    let arguments = ["run", "x", "--model", "tiny", "--backend", "cpu", "--json"];
    let output = home.run_with(&arguments, &[("SWORN_TEMPERATURE", "1"), ("SWORN_SEED", "9")]);
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&answer["sampling"]["inverse_temperature"], &answer["seed"]),
        (&json!(4096), &json!(format!("0x{:064x}", 9)))
    );
}

#[test]
fn stop_strings_end_what_is_generated() {
    let home = Home::new();
    home.import(Layout::HuggingFace, "tiny", &[]);
    let flags = ["--temperature", "1", "--seed", "3", "--max-tokens", "40"];
    let whole = home.answer(&flags);
    let said: Vec<char> = whole["text"].as_str().unwrap().chars().collect();
    // Three characters in the middle, which tokens of a byte-level vocabulary rarely spell as one.
    let at = said.len() / 2;
    let stop: String = said[at..at + 3].iter().collect();
    let text: String = said.iter().collect();
    let before = &text[..text.find(&stop).unwrap()];
    let stopped = home.answer(&[&flags[..], &["--stop", "never said", "--stop", &stop, "--save", "a.json"]].concat());
    assert_eq!((&stopped["text"], &stopped["stopped_by"]), (&json!(before), &json!(stop)));
    let (tokens, all) = (stopped["tokens"].as_array().unwrap(), whole["tokens"].as_array().unwrap());
    assert!(tokens.len() < all.len() && all.starts_with(tokens), "{} of {}", tokens.len(), all.len());
    // The trace is of the tokens that were generated.
    let audited = home.run(&["audit", "a.json", "--backend", "cpu"]);
    assert!(audited.status.success(), "{}", stderr(&audited));
    let arguments =
        [&["run", "Once upon", "--raw", "--model", "tiny", "--backend", "cpu", "--stop", &stop], &flags[..]];
    let streamed = home.run(&arguments.concat());
    assert_eq!(String::from_utf8_lossy(&streamed.stdout), format!("{before}\n"));
    assert!(whole["stopped_by"].is_null());
}
